//! The registers of the LM3S6965 that are used here, as QEMU's `lm3s6965evb` has them: clock, watchdog, two serial ports.
//!
//! This board is built to be emulated. It runs at the 12.5 MHz of a reset, and line settings change nothing on the serial
//! ports, which QEMU does not pace. Clauses are those of the LM3S6965 data sheet and the ARMv7-M manual.

use core::{cell::Cell, ptr};

use embedded_hal_nb::{nb, serial};
use gardu_node::time::{Duration, Instant, after};

/// One register.
#[derive(Debug, Clone, Copy)]
struct Register(usize);

impl Register {
    fn read(self) -> u32 {
        // SAFETY: the constants and ports of this file are the only registers there are; all lie where the data sheet has
        // a readable 32-bit register.
        unsafe { ptr::with_exposed_provenance::<u32>(self.0).read_volatile() }
    }

    fn write(self, value: u32) {
        // SAFETY: as above; none of them lets the hardware touch memory.
        unsafe { ptr::with_exposed_provenance_mut::<u32>(self.0).write_volatile(value) }
    }
}

/// System control: clocks to the watchdog; to both ports and the timer (§5.5).
const RCGC0: Register = Register(0x400F_E100);
const RCGC1: Register = Register(0x400F_E104);

/// SysTick (ARMv7-M B3.3).
const SYST_CSR: Register = Register(0xE000_E010);
const SYST_RVR: Register = Register(0xE000_E014);
const SYST_CVR: Register = Register(0xE000_E018);

/// NVIC: which interrupts may end a sleep, and which are no more pending (B3.4).
const NVIC_ISER0: Register = Register(0xE000_E100);
const NVIC_ICPR0: Register = Register(0xE000_E280);

/// General-purpose timer 0 (§10.5).
const GPTMCFG: Register = Register(0x4003_0000);
const GPTMTAMR: Register = Register(0x4003_0004);
const GPTMCTL: Register = Register(0x4003_000C);
const GPTMIMR: Register = Register(0x4003_0018);
const GPTMICR: Register = Register(0x4003_0024);
const GPTMTAILR: Register = Register(0x4003_0028);

/// Watchdog (§11.4).
const WDTLOAD: Register = Register(0x4000_0000);
const WDTCTL: Register = Register(0x4000_0008);

/// Both serial ports and timer 0 (table 2-9).
const WAKES: u32 = 1 << 5 | 1 << 6 | 1 << 19;

const TICKS_A_SECOND: u32 = 12_500_000;
/// Ticks × 2 / 25 are microseconds.
const TICKS_OF_TWO_MICROSECONDS: u32 = 25;
const COUNTER_MASK: u32 = 0x00FF_FFFF;
/// Longest sleep that is believed: no debounce time of 20 ms is missed by it.
const LATE: Duration = Duration::millis(4);

/// Microseconds since the start, from a counter of 24 bits: to be asked at least each 1.3 s.
#[derive(Debug)]
pub(crate) struct Clock {
    last_ticks: Cell<u32>,
    /// Half ticks that are no microsecond yet.
    rest: Cell<u32>,
    now_us: Cell<u64>,
    asleep_us: Cell<u64>,
}

impl Clock {
    /// Starts the clock, and the interrupt each millisecond that ends a sleep.
    pub(crate) fn start() -> Self {
        RCGC0.write(1 << 3);
        RCGC1.write(1 << 16 | 0b11);
        SYST_RVR.write(COUNTER_MASK);
        SYST_CVR.write(0);
        SYST_CSR.write(0b101); // the processor's clock, no interrupt
        GPTMCTL.write(0);
        GPTMCFG.write(0); // 32 bits
        GPTMTAMR.write(2); // periodic
        GPTMTAILR.write(TICKS_A_SECOND / 1000 - 1);
        GPTMIMR.write(1);
        GPTMCTL.write(1);
        NVIC_ISER0.write(WAKES);
        let (rest, now_us, asleep_us) = (Cell::new(0), Cell::new(0), Cell::new(0));
        Self { last_ticks: Cell::new(SYST_CVR.read()), rest, now_us, asleep_us }
    }

    pub(crate) fn now(&self) -> Instant {
        let ticks = SYST_CVR.read();
        let passed = self.last_ticks.replace(ticks).wrapping_sub(ticks) & COUNTER_MASK;
        let doubled = self.rest.get() + 2 * passed;
        self.rest.set(doubled % TICKS_OF_TWO_MICROSECONDS);
        self.now_us.set(self.now_us.get() + u64::from(doubled / TICKS_OF_TWO_MICROSECONDS));
        Instant::from_ticks(self.now_us.get())
    }

    pub(crate) fn since(&self, then: Instant) -> Duration {
        Duration::from_ticks(self.now().ticks().saturating_sub(then.ticks()))
    }

    /// Sleeps until the next millisecond or until a byte comes, and counts that as sleep.
    pub(crate) fn sleep(&self) {
        let from = self.now();
        self.doze();
        self.asleep_us.set(self.asleep_us.get() + self.since(from).ticks());
    }

    /// The same, not counted. With interrupts masked none is served: it only ends the sleep.
    ///
    /// The timer ends it after a millisecond. What is much more is time in which the machine below was too busy to go on with
    /// the emulator, whose clock runs on while it sleeps: it is none of the node's.
    pub(crate) fn doze(&self) {
        let from = self.now();
        cortex_m::asm::wfi();
        GPTMICR.write(1);
        NVIC_ICPR0.write(WAKES);
        self.now_us.set(self.now().min(after(from, LATE)).ticks());
    }

    /// How much of its time it slept.
    pub(crate) fn asleep(&self) -> Duration {
        Duration::from_ticks(self.asleep_us.get())
    }

    /// Takes what was waited for the test bench out of time, and puts the time in that the real thing takes. To be asked
    /// at least each 1.3 s while waiting, with the time at its beginning.
    pub(crate) fn count_as(&self, from: Instant, took: Duration) {
        self.now();
        self.now_us.set((from + took).ticks());
    }
}

/// Resets the chip when it is not fed for two seconds: the first in vain raises an interrupt that nobody serves.
#[derive(Debug)]
pub(crate) struct Watchdog;

impl Watchdog {
    pub(crate) fn start() -> Self {
        WDTLOAD.write(TICKS_A_SECOND);
        WDTCTL.write(0b11);
        Self
    }

    pub(crate) fn feed(&self) {
        WDTLOAD.write(TICKS_A_SECOND);
    }
}

/// A serial port (§12.5).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Port(usize);

impl Port {
    const RECEIVE_EMPTY: u32 = 1 << 4;
    const TRANSMIT_FULL: u32 = 1 << 5;
    const BUSY: u32 = 1 << 3;

    pub(crate) fn open_first() -> Self {
        Self::open(0x4000_C000)
    }

    pub(crate) fn open_second() -> Self {
        Self::open(0x4000_D000)
    }

    fn open(base: usize) -> Self {
        let port = Self(base);
        port.register(0x2C).write(0x70); // 8 bits, FIFO
        port.register(0x38).write(0x50); // received, or received and silent
        port.register(0x30).write(0x301); // on, both ways
        port
    }

    const fn register(self, offset: usize) -> Register {
        Register(self.0 + offset)
    }

    fn has(self, flag: u32) -> bool {
        self.register(0x18).read() & flag != 0
    }
}

impl serial::ErrorType for Port {
    type Error = serial::ErrorKind;
}

impl serial::Read for Port {
    fn read(&mut self) -> nb::Result<u8, Self::Error> {
        if self.has(Self::RECEIVE_EMPTY) {
            return Err(nb::Error::WouldBlock);
        }
        let [_, _, errors, byte] = self.register(0).read().to_be_bytes();
        match errors {
            0 => Ok(byte),
            _ => Err(nb::Error::Other(serial::ErrorKind::Other)),
        }
    }
}

impl serial::Write for Port {
    fn write(&mut self, byte: u8) -> nb::Result<(), Self::Error> {
        if self.has(Self::TRANSMIT_FULL) {
            return Err(nb::Error::WouldBlock);
        }
        self.register(0).write(u32::from(byte));
        Ok(())
    }

    fn flush(&mut self) -> nb::Result<(), Self::Error> {
        if self.has(Self::BUSY) { Err(nb::Error::WouldBlock) } else { Ok(()) }
    }
}
