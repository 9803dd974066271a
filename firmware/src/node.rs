//! What the node measures and drives, as the four tables a master sees.
//!
//! [`Node::step`] looks at contacts every millisecond and moves sensors on; nothing in it waits. What is missing or fails is
//! a bit of `faults` and a sentinel in its register; the rest goes on.
//!
//! Outputs: a master switches them; when none was heard for `fail-safe-after`, they take their safe state, and keep it until
//! a master writes again. They start in it.

use embedded_hal::{
    digital::{InputPin, OutputPin},
    i2c::I2c,
};

use crate::{
    contact::Contact,
    filter::Window,
    kept::Kept,
    modbus::{Audience, Bits, CoilValues, Exception, RegisterValues, Registers, Tables},
    registers::{CONTACTS, Fault, Fitted, MAP_VERSION, OUTPUTS, ResetCause, address},
    sensors::{
        analog::{Channel, Converter, Loop, line_current_ma, loop_current_ua, supply_mv},
        climate::{Air, Climate},
    },
    settings::{APPLY, Loaded, Origin, Settings},
    time::{Duration, Instant},
};

/// A node and everything at its pins.
pub struct Node<C, O, I> {
    contacts: [(C, Contact); CONTACTS],
    outputs: [O; OUTPUTS],
    lamp: O,
    climate: Climate<I>,
    converter: Converter<I>,
    settings: Settings,
    /// What holding registers say: `settings`, or what is to become of them.
    draft: Settings,
    apply: Apply,
    coils: [bool; COILS],
    values: Values,
    faults: u16,
    identity: Identity,
    resets: u16,
    bus_errors: u16,
    stack_free: u16,
    started: Instant,
    now: Instant,
    /// When a master was heard last.
    heard: Option<Instant>,
    identify_since: Instant,
}

/// The pins and buses of a node.
pub struct Pins<C, O, I> {
    /// Dry contacts to ground: low while closed.
    pub contacts: [C; CONTACTS],
    /// Relays, high while on.
    pub outputs: [O; OUTPUTS],
    /// The lamp on the board, high while lit.
    pub lamp: O,
    /// The bus with the climate sensor.
    pub climate: I,
    /// The bus with the converter; usually the same.
    pub converter: I,
}

/// What does not change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Why it started.
    pub reset_cause: ResetCause,
    /// The chip's own number.
    pub serial_number: u64,
}

/// What becomes of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Apply {
    No,
    Asked,
}

/// Measured values as registers.
#[derive(Debug, Clone, Copy)]
struct Values {
    temperature: u16,
    humidity: u16,
    supply: u16,
    loops: [u16; 2],
    line_current: u16,
}

/// Registers without a value.
const NO_VALUE: u16 = u16::MAX;
const NO_TEMPERATURE: u16 = i16::MIN.cast_unsigned();

impl Values {
    const NONE: Self = Self {
        temperature: NO_TEMPERATURE,
        humidity: NO_VALUE,
        supply: NO_VALUE,
        loops: [NO_VALUE; 2],
        line_current: NO_VALUE,
    };
}

/// Time between two looks at the contacts: a press of 50 ms is seen tens of times.
pub const TICK: Duration = Duration::millis(1);

/// How long the lamp shows which node this is: long enough to walk along a park, short enough to be forgotten.
const IDENTIFY_FOR: Duration = Duration::minutes(10);

/// A master that was not heard for so long shows at the lamp.
const HEARD_FOR: Duration = Duration::secs(10);

const COILS: usize = OUTPUTS + 1;
const OUTPUT: u16 = address("output-1");
const IDENTIFY: u16 = address("identify");
const CONTACT: u16 = address("contact-1");
const CONTACT_LAST: u16 = CONTACT + CONTACTS as u16 - 1;
const FAULT: u16 = address("fault");
const CONTACT_BITS: u16 = address("contacts");
const EVENTS: u16 = address("contact-1-events");
const EVENTS_LAST: u16 = EVENTS + CONTACTS as u16 - 1;
const TEMPERATURE: u16 = address("temperature");
const HUMIDITY: u16 = address("humidity");
const SUPPLY: u16 = address("supply");
const LOOP_1: u16 = address("loop-1");
const LOOP_2: u16 = address("loop-2");
const LINE_CURRENT: u16 = address("line-current");
const OUTPUT_BITS: u16 = address("outputs");
const FAULTS: u16 = address("faults");
const UPTIME: u16 = address("uptime");
const UPTIME_LOW: u16 = UPTIME + 1;
const RESET_CAUSE: u16 = address("reset-cause");
const RESETS: u16 = address("resets");
const BUS_ERRORS: u16 = address("bus-errors");
const STACK_FREE: u16 = address("stack-free");
const VERSION_OF_MAP: u16 = address("map-version");
const VERSION: u16 = address("version-major");
const VERSION_MINOR: u16 = address("version-minor");
const VERSION_PATCH: u16 = address("version-patch");
const SERIAL_NUMBER: u16 = address("serial-number");
const SERIAL_NUMBER_LAST: u16 = SERIAL_NUMBER + 3;

impl<C, O, I> Node<C, O, I>
where
    C: InputPin,
    O: OutputPin,
    I: I2c,
{
    /// A node that starts, its outputs in their safe state.
    pub fn new(pins: Pins<C, O, I>, loaded: &Loaded, kept: &Kept, identity: Identity, now: Instant) -> Self {
        let settings = loaded.settings;
        let mut counted = settings.debounces().zip(kept.events);
        let contacts = pins.contacts.map(|pin| {
            let (debounce, events) = counted.next().unwrap_or((TICK, 0));
            (pin, Contact::new(debounce, events))
        });
        let mut node = Self {
            contacts,
            outputs: pins.outputs,
            lamp: pins.lamp,
            climate: Climate::new(pins.climate),
            converter: Converter::new(pins.converter),
            settings,
            draft: settings,
            apply: Apply::No,
            coils: [false; COILS],
            values: Values::NONE,
            faults: 0,
            identity,
            resets: kept.resets,
            bus_errors: 0,
            stack_free: 0,
            started: now,
            now,
            heard: None,
            identify_since: now,
        };
        node.set_fault(Fault::SettingsLost, loaded.origin == Origin::Lost);
        node.set_fault(Fault::Panicked, identity.reset_cause == ResetCause::Panic);
        node.be_safe();
        node.drive();
        node
    }

    /// Looks at everything once; called every [`TICK`].
    pub fn step(&mut self, now: Instant) {
        self.now = now;
        self.look();
        self.measure();
        let silent_for = now.checked_duration_since(self.heard.unwrap_or(self.started));
        let is_silent = match (self.settings.fail_safe_after(), silent_for) {
            (Some(limit), Some(silent_for)) => silent_for >= limit,
            (None, _) | (_, None) => false,
        };
        if is_silent && !self.has_fault(Fault::FailSafe) {
            self.be_safe();
        }
        self.set_fault(Fault::FailSafe, is_silent);
        if self.since(self.identify_since) >= IDENTIFY_FOR {
            self.set_coil(IDENTIFY, false);
        }
        self.drive();
    }

    /// A master spoke to this node.
    pub const fn heard(&mut self) {
        self.heard = Some(self.now);
    }

    /// Says how many frames were cut or garbled.
    pub const fn set_bus_errors(&mut self, count: u16) {
        self.bus_errors = count;
    }

    /// What must outlive a reset.
    pub fn kept(&self) -> Kept {
        let mut kept = Kept { events: [0; CONTACTS], resets: self.resets };
        for (events, (_, contact)) in kept.events.iter_mut().zip(&self.contacts) {
            *events = contact.events();
        }
        kept
    }

    /// The settings that are to be kept and used, if a master asked for it; once.
    pub fn to_apply(&mut self) -> Option<Settings> {
        match core::mem::replace(&mut self.apply, Apply::No) {
            Apply::No => None,
            Apply::Asked => Some(self.draft),
        }
    }

    /// The settings could not be kept.
    pub fn not_kept(&mut self) {
        self.set_fault(Fault::SettingsNotKept, true);
    }

    /// Says how much stack was never used.
    pub const fn set_stack_free(&mut self, bytes: u16) {
        self.stack_free = bytes;
    }

    fn look(&mut self) {
        let (now, active_open) = (self.now, self.settings.active_open());
        let mut failed = false;
        for (at, (pin, contact)) in self.contacts.iter_mut().enumerate() {
            let is_active_open = active_open >> at & 1 == 1;
            match pin.is_high() {
                Ok(is_open) => {
                    contact.sample(is_open == is_active_open, now);
                }
                Err(_) => failed = true,
            }
        }
        self.set_fault(Fault::Pin, failed);
    }

    fn measure(&mut self) {
        let (now, settings) = (self.now, self.settings);
        if settings.has(Fitted::Climate)
            && let Some(air) = self.climate.step(now)
        {
            self.set_fault(Fault::Climate, air.is_err());
            (self.values.temperature, self.values.humidity) =
                air.map_or((NO_TEMPERATURE, NO_VALUE), |air| registers_of(&air));
        }
        let has_analog =
            [Fitted::Loop1, Fitted::Loop2, Fitted::Transformer, Fitted::Supply].iter().any(|what| settings.has(*what));
        if has_analog && let Some((channel, window)) = self.converter.step(now) {
            self.set_fault(Fault::Converter, window.is_err());
            let window = window.ok();
            match channel {
                Channel::Loop1 => {
                    self.values.loops[0] = self.current_loop(Fitted::Loop1, Fault::Loop1, window.as_ref());
                }
                Channel::Loop2 => {
                    self.values.loops[1] = self.current_loop(Fitted::Loop2, Fault::Loop2, window.as_ref());
                }
                Channel::Transformer => {
                    let window = window.filter(|_| settings.has(Fitted::Transformer));
                    let current = window.map(|window| line_current_ma(&window, settings.transformer_a()) / 10);
                    self.values.line_current = register(current);
                }
                Channel::Supply => {
                    let supply = window.filter(|_| settings.has(Fitted::Supply)).map(|window| supply_mv(&window));
                    self.values.supply = register(supply);
                    self.set_fault(Fault::SupplyLow, supply.is_some_and(|mv| mv < settings.supply_low_mv().into()));
                }
            }
        }
    }

    /// The register of a loop, and its fault.
    fn current_loop(&mut self, fitted: Fitted, fault: Fault, window: Option<&Window>) -> u16 {
        let current = window.filter(|_| self.settings.has(fitted)).map(loop_current_ua);
        self.set_fault(fault, current.is_some_and(|ua| Loop::of(ua) != Loop::Good));
        register(current)
    }

    fn be_safe(&mut self) {
        let safe = self.settings.fail_safe_outputs();
        for (at, coil) in self.coils.iter_mut().take(OUTPUTS).enumerate() {
            *coil = safe >> at & 1 == 1;
        }
    }

    fn drive(&mut self) {
        let lamp = self.lamp();
        let wanted = self.coils.iter().copied();
        let outputs = self.outputs.iter_mut().zip(wanted).map(|(pin, on)| pin.set_state(on.into()).is_err());
        // Every pin is driven, whichever fails.
        let failed = outputs.fold(false, |a, b| a | b) | self.lamp.set_state(lamp.into()).is_err();
        if failed {
            self.set_fault(Fault::Pin, true);
        }
    }

    /// What the lamp shows: five flashes a second to be found; steady while a master is heard, with two short gaps every two
    /// seconds if there is a fault; a flash every two seconds while it is not.
    fn lamp(&self) -> bool {
        let ms = self.since(self.started).to_millis() % 2_000;
        if self.coil(IDENTIFY) == Some(true) {
            return ms % 200 < 100;
        }
        match self.heard {
            Some(heard) if self.since(heard) < HEARD_FOR => {
                self.faults == 0 || !(matches!(ms, 0..150) || matches!(ms, 300..450))
            }
            Some(_) | None => ms < 100,
        }
    }

    fn since(&self, then: Instant) -> Duration {
        self.now.checked_duration_since(then).unwrap_or(Duration::from_ticks(0))
    }

    fn coil(&self, address: u16) -> Option<bool> {
        self.coils.get(usize::from(address)).copied()
    }

    fn set_coil(&mut self, address: u16, on: bool) {
        if let Some(coil) = self.coils.get_mut(usize::from(address)) {
            *coil = on;
        }
    }

    const fn has_fault(&self, fault: Fault) -> bool {
        self.faults & fault.bit() != 0
    }

    const fn set_fault(&mut self, fault: Fault, stands: bool) {
        if stands {
            self.faults |= fault.bit();
        } else {
            self.faults &= !fault.bit();
        }
    }

    fn contact(&self, at: u16) -> Option<&Contact> {
        self.contacts.get(usize::from(at)).map(|(_, contact)| contact)
    }

    fn contact_bits(&self) -> u16 {
        let active = self.contacts.iter().map(|(_, contact)| contact.is_active() == Some(true));
        active.zip(0..).fold(0, |bits, (active, at)| bits | u16::from(active) << at)
    }

    fn input(&self, address: u16) -> Option<u16> {
        let uptime = || u32::try_from(self.since(self.started).to_secs()).unwrap_or(u32::MAX).to_be_bytes();
        let value = match address {
            CONTACT_BITS => self.contact_bits(),
            EVENTS..=EVENTS_LAST => self.contact(address - EVENTS)?.events(),
            TEMPERATURE => self.values.temperature,
            HUMIDITY => self.values.humidity,
            SUPPLY => self.values.supply,
            LOOP_1 => self.values.loops[0],
            LOOP_2 => self.values.loops[1],
            LINE_CURRENT => self.values.line_current,
            OUTPUT_BITS => u16::from(self.coils[0]) | u16::from(self.coils[1]) << 1,
            FAULTS => self.faults,
            UPTIME => u16::from_be_bytes([uptime()[0], uptime()[1]]),
            UPTIME_LOW => u16::from_be_bytes([uptime()[2], uptime()[3]]),
            RESET_CAUSE => self.identity.reset_cause as u16,
            RESETS => self.resets,
            BUS_ERRORS => self.bus_errors,
            STACK_FREE => self.stack_free,
            VERSION_OF_MAP => MAP_VERSION,
            VERSION => VERSIONS[0],
            VERSION_MINOR => VERSIONS[1],
            VERSION_PATCH => VERSIONS[2],
            SERIAL_NUMBER..=SERIAL_NUMBER_LAST => {
                let shift = 16 * (SERIAL_NUMBER_LAST - address);
                (self.identity.serial_number >> shift & 0xffff) as u16
            }
            _ => return None,
        };
        Some(value)
    }
}

impl<C, O, I> Tables for Node<C, O, I>
where
    C: InputPin,
    O: OutputPin,
    I: I2c,
{
    fn bit(&self, table: Bits, address: u16) -> Option<bool> {
        match (table, address) {
            (Bits::Coils, address) => self.coil(address),
            (Bits::DiscreteInputs, CONTACT..=CONTACT_LAST) => {
                Some(self.contact(address - CONTACT)?.is_active() == Some(true))
            }
            (Bits::DiscreteInputs, FAULT) => Some(self.faults != 0),
            (Bits::DiscreteInputs, _) => None,
        }
    }

    fn register(&self, table: Registers, address: u16) -> Option<u16> {
        match (table, address) {
            (Registers::Input, address) => self.input(address),
            (Registers::Holding, APPLY) => Some((self.draft != self.settings).into()),
            (Registers::Holding, address) => self.draft.register(address),
        }
    }

    fn write_coils(&mut self, first: u16, values: CoilValues<'_>) -> Result<(), Exception> {
        if usize::from(first) + usize::from(values.quantity()) > COILS {
            return Err(Exception::IllegalDataAddress);
        }
        for (address, on) in (first..).zip(values.iter()) {
            self.set_coil(address, on);
            if address == IDENTIFY {
                self.identify_since = self.now;
            }
        }
        self.drive();
        Ok(())
    }

    fn write_registers(&mut self, first: u16, values: RegisterValues<'_>, audience: Audience) -> Result<(), Exception> {
        let end = usize::from(first) + values.quantity();
        if end > usize::from(APPLY) + 1 || audience == Audience::Everyone {
            return Err(Exception::IllegalDataAddress);
        }
        let (mut draft, mut apply) = (self.draft, self.apply);
        for (address, value) in (first..).zip(values.iter()) {
            match (address, value) {
                (APPLY, 0) => {}
                (APPLY, 1) => apply = Apply::Asked,
                (APPLY, _) => return Err(Exception::IllegalDataValue),
                (address, value) => draft.set(address, value).map_err(|_| Exception::IllegalDataValue)?,
            }
        }
        (self.draft, self.apply) = (draft, apply);
        Ok(())
    }

    fn diagnostic_register(&self) -> u16 {
        self.faults
    }
}

/// The firmware's version, of its package.
const VERSIONS: [u16; 3] = [
    number(env!("CARGO_PKG_VERSION_MAJOR")),
    number(env!("CARGO_PKG_VERSION_MINOR")),
    number(env!("CARGO_PKG_VERSION_PATCH")),
];

const fn number(text: &str) -> u16 {
    match u16::from_str_radix(text, 10) {
        Ok(number) => number,
        Err(_) => panic!("a version is made of numbers"),
    }
}

/// In tenths of a degree and of a percent.
fn registers_of(air: &Air) -> (u16, u16) {
    let tenths = |thousandths: i32| (thousandths + 50).div_euclid(100);
    let temperature = i16::try_from(tenths(air.temperature_mc)).map_or(NO_TEMPERATURE, i16::cast_unsigned);
    (temperature, u16::try_from(tenths(air.humidity_mp)).unwrap_or(NO_VALUE))
}

/// A register that holds `value`, or as much as it can.
fn register(value: Option<u32>) -> u16 {
    value.map_or(NO_VALUE, |value| u16::try_from(value).unwrap_or(NO_VALUE - 1).min(NO_VALUE - 1))
}

const _: () =
    assert!(OUTPUT == 0 && OUTPUTS == 2 && IDENTIFY as usize == COILS - 1, "coils lie in the order of `coils`");
