//! The board that people buy: a Raspberry Pi Pico (RP2040). Bring-up only; `firmware/README.md` shows the wiring.
//!
//! It runs at the 12 MHz of its crystal, without PLLs: that is enough to answer in time, and saves most of the power.

#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "boot loader, flash, two registers of lines that a driver owns, and wake-up interrupts"
)]

mod flash;
mod i2c;
#[path = "../shared.rs"]
mod shared;

use core::cell::RefCell;

use cortex_m::peripheral::{NVIC, SCB, syst::SystClkSource};
use embedded_hal::digital::InputPin;
use fugit::{HertzU32, MicrosDurationU32, RateExtU32};
use gardu_node::{
    device::{Device, Next, Parts, Start},
    node::{Identity, Pins},
    registers::{Parity, ResetCause},
    settings::{self, Loaded, Settings},
    time::{Duration, after},
};
use rp2040_hal::{
    Clock, I2C, Sio, Timer, Watchdog,
    clocks::ClocksManager,
    gpio::{self, FunctionI2C, FunctionUart, PullNone, PullUp},
    pac,
    uart::{self, DataBits, StopBits, UartConfig, UartPeripheral},
    xosc::setup_xosc_blocking,
};

use crate::{
    flash::Flash,
    i2c::Bus,
    shared::{Before, LastPanic, Slots},
};

/// The second-stage boot loader, which the chip's own looks for at the start of the flash.
#[unsafe(link_section = ".boot2")]
#[used]
static BOOT2: [u8; 256] = rp2040_boot2::BOOT_LOADER_GENERIC_03H;

/// The crystal of a Pico.
const CRYSTAL: HertzU32 = HertzU32::MHz(12);
/// Cycles of the crystal in a microsecond: what the timer counts.
const CYCLES_A_MICROSECOND: u8 = 12;
/// Cycles of the crystal between two looks at the contacts.
const CYCLES_A_TICK: u32 = 12_000;
/// Far longer than the flash needs to take settings (two blocks of up to 0.4 s) and short enough for who waits.
const WATCHDOG: MicrosDurationU32 = MicrosDurationU32::millis(2_000);
/// Looking through it takes a tenth of a millisecond.
const LOOK_AT_STACK_EVERY: Duration = Duration::secs(1);

#[rp2040_hal::entry]
fn main() -> ! {
    // Nothing is interrupted: a pending interrupt only ends a sleep.
    cortex_m::interrupt::disable();
    let (before, panic, mut slots) = (shared::before(), LastPanic::take(), Slots::open());
    let (Some(mut pac), Some(mut core)) = (pac::Peripherals::take(), cortex_m::Peripherals::take()) else {
        shared::restart();
    };
    let reset_cause = reset_cause(before, panic.text(), &pac);

    let mut watchdog = Watchdog::new(pac.WATCHDOG);
    watchdog.start(WATCHDOG);
    watchdog.enable_tick_generation(CYCLES_A_MICROSECOND);
    let mut clocks = ClocksManager::new(pac.CLOCKS);
    let crystal = setup_xosc_blocking(pac.XOSC, CRYSTAL).expect("a crystal of a speed that is allowed");
    clocks.reference_clock.configure_clock(&crystal, CRYSTAL).expect("the crystal's own speed");
    clocks.system_clock.configure_clock(&clocks.reference_clock, CRYSTAL).expect("the crystal's own speed");
    clocks.peripheral_clock.configure_clock(&clocks.system_clock, CRYSTAL).expect("the crystal's own speed");
    let timer = Timer::new(pac.TIMER, &mut pac.RESETS, &clocks);
    core.SYST.set_clock_source(SystClkSource::Core);
    core.SYST.set_reload(CYCLES_A_TICK - 1);
    core.SYST.enable_interrupt();
    core.SYST.enable_counter();

    let sio = Sio::new(pac.SIO);
    let pins = gpio::Pins::new(pac.IO_BANK0, pac.PADS_BANK0, sio.gpio_bank0, &mut pac.RESETS);
    // The wiring: firmware/README.md and firmware/docs/wiring.svg.
    let (transmit, receive) = (pins.gpio0, pins.gpio1);
    let direction = pins.gpio2.into_push_pull_output();
    let (data, clock) = (pins.gpio4, pins.gpio5);
    let contacts = [
        pins.gpio6.into_pull_up_input().into_dyn_pin(),
        pins.gpio7.into_pull_up_input().into_dyn_pin(),
        pins.gpio8.into_pull_up_input().into_dyn_pin(),
        pins.gpio9.into_pull_up_input().into_dyn_pin(),
        pins.gpio10.into_pull_up_input().into_dyn_pin(),
        pins.gpio11.into_pull_up_input().into_dyn_pin(),
        pins.gpio12.into_pull_up_input().into_dyn_pin(),
        pins.gpio13.into_pull_up_input().into_dyn_pin(),
    ];
    let outputs =
        [pins.gpio14.into_push_pull_output().into_dyn_pin(), pins.gpio15.into_push_pull_output().into_dyn_pin()];
    let mut defaults = pins.gpio16.into_pull_up_input();
    let lamp = pins.gpio25.into_push_pull_output().into_dyn_pin();

    let mut flash = Flash;
    cortex_m::asm::delay(CYCLES_A_TICK); // the pull-up of the jumper
    let loaded = if defaults.is_low() == Ok(true) { Loaded::defaults() } else { settings::load(&mut flash) };
    let mut uart = UartPeripheral::new(
        pac.UART0,
        (transmit.reconfigure::<FunctionUart, PullNone>(), receive.reconfigure::<FunctionUart, PullUp>()),
        &mut pac.RESETS,
    )
    .enable(line(&loaded.settings), clocks.peripheral_clock.freq())
    .unwrap_or_else(|_| shared::restart());
    uart.enable_rx_interrupt();
    // SAFETY: interrupts stay masked, so that no handler ever runs; unmasked in the controller they end a sleep.
    unsafe { NVIC::unmask(pac::Interrupt::UART0_IRQ) };
    let i2c = I2C::i2c0(
        pac.I2C0,
        data.reconfigure::<FunctionI2C, PullUp>(),
        clock.reconfigure::<FunctionI2C, PullUp>(),
        400.kHz(),
        &mut pac.RESETS,
        &clocks.system_clock,
    );
    let i2c = RefCell::new(i2c);

    let start = Start {
        loaded,
        kept: slots.kept(),
        identity: Identity { reset_cause, serial_number: flash.serial_number() },
        model_name: "Raspberry Pi Pico",
        last_panic: panic.text().unwrap_or_default(),
    };
    let pins = Pins { contacts, outputs, lamp, climate: Bus(&i2c), converter: Bus(&i2c) };
    let mut device = Device::new(Parts { pins, uart, direction, flash }, start, timer.get_counter());
    let mut look_at_stack = timer.get_counter();
    loop {
        let now = timer.get_counter();
        let next = device.poll(now);
        slots.keep(device.kept());
        match next {
            Next::Sleep => {
                watchdog.feed();
                cortex_m::asm::wfi();
                SCB::clear_pendst();
                NVIC::unpend(pac::Interrupt::UART0_IRQ);
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

/// Why it started, by what memory and the chip tell (RP2040 data sheet, CHIP_RESET and the watchdog's REASON).
fn reset_cause(before: Before, panic: Option<&str>, pac: &pac::Peripherals) -> ResetCause {
    let chip = pac.VREG_AND_CHIP_RESET.chip_reset().read();
    match before {
        Before::Asked if panic.is_some() => ResetCause::Panic,
        Before::Asked => ResetCause::Software,
        Before::Running if pac.WATCHDOG.reason().read().timer().bit() => ResetCause::Watchdog,
        Before::Running | Before::Off if chip.had_run().bit() => ResetCause::Button,
        // So short that memory outlived it.
        Before::Running if chip.had_por().bit() => ResetCause::BrownOut,
        Before::Running => ResetCause::Unknown,
        Before::Off => ResetCause::PowerOn,
    }
}

fn line(settings: &Settings) -> UartConfig {
    let parity = match settings.parity() {
        Parity::None => None,
        Parity::Even => Some(uart::Parity::Even),
        Parity::Odd => Some(uart::Parity::Odd),
    };
    let stop_bits = if settings.stop_bits() == 2 { StopBits::Two } else { StopBits::One };
    UartConfig::new(settings.baud().Hz(), DataBits::Eight, parity, stop_bits)
}
