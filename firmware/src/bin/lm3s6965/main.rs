//! The board that is emulated: an LM3S6965 (Cortex-M3) as QEMU has it, with the test bench at its pins. Bring-up only.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "registers, and memory that outlives a reset")]

mod bench;
mod chip;
mod flash;
#[path = "../shared.rs"]
mod shared;

use cortex_m_rt::entry;
use gardu_node::{
    device::{Device, Next, Parts, Start},
    node::{Identity, Pins},
    registers::ResetCause,
    settings,
    time::{Duration, after},
};

use crate::{
    bench::{Bench, DIRECTION, LAMP, RELAY_1, RELAY_2},
    chip::{Clock, Port, Watchdog},
    flash::Flash,
    shared::{Before, LastPanic, Slots},
};

/// Looking through it takes a tenth of a millisecond.
const LOOK_AT_STACK_EVERY: Duration = Duration::secs(1);

#[entry]
fn main() -> ! {
    // Nothing is interrupted: a pending interrupt only ends a sleep.
    cortex_m::interrupt::disable();
    let clock = Clock::start();
    let watchdog = Watchdog::start();
    let bench = Bench::new(&clock, Port::open_second());
    let (before, panic, mut slots) = (shared::before(), LastPanic::take(), Slots::open());
    let mut flash = if before == Before::Off { Flash::blank() } else { Flash };
    // The chip has a register for it (§5.5, RESC), which is empty when emulated: what nobody asked for was the watchdog.
    let reset_cause = match before {
        Before::Off => ResetCause::PowerOn,
        Before::Asked if panic.text().is_some() => ResetCause::Panic,
        Before::Asked => ResetCause::Software,
        Before::Running => ResetCause::Watchdog,
    };
    let start = Start {
        loaded: settings::load(&mut flash),
        kept: slots.kept(),
        identity: Identity { reset_cause, serial_number: 0x6965 },
        model_name: "LM3S6965",
        last_panic: panic.text().unwrap_or_default(),
    };
    let parts = Parts {
        pins: Pins {
            contacts: bench.contacts(),
            outputs: [RELAY_1, RELAY_2].map(|bit| bench.output(bit)),
            lamp: bench.output(LAMP),
            climate: bench.i2c(),
            converter: bench.i2c(),
        },
        uart: bench.bus(Port::open_first()),
        direction: bench.output(DIRECTION),
        flash,
    };
    let mut device = Device::new(parts, start, clock.now());
    let mut look_at_stack = clock.now();
    loop {
        bench.step();
        let now = clock.now();
        let next = device.poll(now);
        slots.keep(device.kept());
        match next {
            Next::Sleep => {
                watchdog.feed();
                clock.sleep();
            }
            Next::Again => watchdog.feed(),
            Next::Restart => shared::restart(),
            Next::Stuck => {}
        }
        if now >= look_at_stack {
            look_at_stack = after(now, LOOK_AT_STACK_EVERY);
            device.set_stack_free(shared::stack_free());
        }
    }
}
