//! What a technician sets, once: the holding registers below `apply` as a checked type, and two copies of it in flash.
//!
//! A copy is 64 bytes: mark and layout version, a number that rises with each saving, the registers (high byte first), and
//! a CRC-32 of all that. Both copies are written one after the other, each in an erase block of its own, so that a power
//! cut leaves at least one, and a bit that flips later leaves the other. The copy with the higher number counts.

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};
use embedded_storage::nor_flash::NorFlash;

use crate::{
    registers::{CONTACTS, Fitted, OUTPUTS, Parity, address},
    time::Duration,
};

/// How many holding registers are settings.
pub const SETTINGS: usize = APPLY as usize;

/// The holding register that keeps the draft.
pub const APPLY: u16 = address("apply");

const UNIT: u16 = address("unit");
const BAUD: u16 = address("baud");
const PARITY: u16 = address("parity");
const STOP_BITS: u16 = address("stop-bits");
const DEBOUNCE: u16 = address("debounce-1");
const DEBOUNCE_LAST: u16 = DEBOUNCE + CONTACTS as u16 - 1;
const ACTIVE_OPEN: u16 = address("active-open");
const FITTED: u16 = address("fitted");
const TRANSFORMER: u16 = address("transformer");
const FAIL_SAFE_AFTER: u16 = address("fail-safe-after");
const FAIL_SAFE_OUTPUTS: u16 = address("fail-safe-outputs");
const SUPPLY_LOW: u16 = address("supply-low");

/// Valid settings of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    registers: [u16; SETTINGS],
}

/// A register was given a value that it cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl Default for Settings {
    /// As it leaves the workshop: unit 1 at 9600 8N1, what most devices on Indonesian buses come with; contacts that rest
    /// 20 ms (a button bounces for less than 10), climate and supply fitted, outputs off after a minute of silence.
    fn default() -> Self {
        let mut registers = [0; SETTINGS];
        for (register, address) in registers.iter_mut().zip(0..) {
            *register = match address {
                UNIT => 1,
                BAUD => 96,
                PARITY => Parity::None as u16,
                STOP_BITS => 1,
                DEBOUNCE..=DEBOUNCE_LAST => 20,
                FITTED => Fitted::Climate.bit() | Fitted::Supply.bit(),
                TRANSFORMER => 30,
                FAIL_SAFE_AFTER => 60,
                SUPPLY_LOW => 10_500,
                _ => 0,
            };
        }
        Self { registers }
    }
}

impl Settings {
    /// What stands in the holding register at `address`.
    #[must_use]
    pub fn register(&self, address: u16) -> Option<u16> {
        self.registers.get(usize::from(address)).copied()
    }

    /// Takes a value, or refuses it and stays as it was.
    pub fn set(&mut self, address: u16, value: u16) -> Result<(), Refused> {
        let register = self.registers.get_mut(usize::from(address)).ok_or(Refused)?;
        if !is_valid(address, value) {
            return Err(Refused);
        }
        *register = value;
        Ok(())
    }

    /// The Modbus unit, 1 to 247.
    #[must_use]
    pub fn unit(&self) -> u8 {
        self.value(UNIT).to_be_bytes()[1]
    }

    /// Bits a second.
    #[must_use]
    pub fn baud(&self) -> u32 {
        u32::from(self.value(BAUD)) * 100
    }

    /// The parity bit.
    #[must_use]
    pub fn parity(&self) -> Parity {
        Parity::from_register(self.value(PARITY)).unwrap_or(Parity::None)
    }

    /// Stop bits, 1 or 2.
    #[must_use]
    pub fn stop_bits(&self) -> u8 {
        if self.value(STOP_BITS) == 2 { 2 } else { 1 }
    }

    /// How long each contact must rest.
    pub fn debounces(&self) -> impl Iterator<Item = Duration> + '_ {
        (DEBOUNCE..=DEBOUNCE_LAST).map(|address| Duration::millis(self.value(address).into()))
    }

    /// Contacts that are active while open, one bit each.
    #[must_use]
    pub fn active_open(&self) -> u16 {
        self.value(ACTIVE_OPEN)
    }

    /// Whether it is connected.
    #[must_use]
    pub fn has(&self, what: Fitted) -> bool {
        self.value(FITTED) & what.bit() != 0
    }

    /// Primary current of the current transformer at 1 V, in ampere.
    #[must_use]
    pub fn transformer_a(&self) -> u16 {
        self.value(TRANSFORMER)
    }

    /// Silence after which the outputs take their safe state.
    #[must_use]
    pub fn fail_safe_after(&self) -> Option<Duration> {
        match self.value(FAIL_SAFE_AFTER) {
            0 => None,
            seconds => Some(Duration::secs(seconds.into())),
        }
    }

    /// The safe state of the outputs, one bit each.
    #[must_use]
    pub fn fail_safe_outputs(&self) -> u16 {
        self.value(FAIL_SAFE_OUTPUTS)
    }

    /// Supply below which it is a fault, in millivolt; 0 for never.
    #[must_use]
    pub fn supply_low_mv(&self) -> u16 {
        self.value(SUPPLY_LOW)
    }

    fn value(&self, address: u16) -> u16 {
        self.register(address).unwrap_or(0)
    }
}

/// Whether the setting at `address` may have this value; the ranges are those of the map.
const fn is_valid(address: u16, value: u16) -> bool {
    match address {
        UNIT => matches!(value, 1..=247), // Modbus over Serial Line 1.02 §2.2
        BAUD => matches!(value, 12 | 24 | 48 | 96 | 192 | 384 | 576 | 1152),
        PARITY => Parity::from_register(value).is_some(),
        STOP_BITS => matches!(value, 1 | 2),
        DEBOUNCE..=DEBOUNCE_LAST => matches!(value, 1..=10_000),
        ACTIVE_OPEN => value < 1 << CONTACTS,
        FITTED => value & !Fitted::ALL == 0,
        TRANSFORMER => matches!(value, 1..=600),
        FAIL_SAFE_OUTPUTS => value < 1 << OUTPUTS,
        FAIL_SAFE_AFTER | SUPPLY_LOW => true,
        _ => false,
    }
}

/// Settings as they were found at a start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// What the node runs with.
    pub settings: Settings,
    /// Where they are from.
    pub origin: Origin,
}

/// Where the settings of a start are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A copy in flash.
    Kept,
    /// Never kept: the defaults.
    New,
    /// Both copies are damaged, or the flash cannot be read: the defaults.
    Lost,
    /// A jumper asks for the defaults; what is kept stays.
    Jumper,
}

impl Loaded {
    /// What a board uses whose jumper asks for the defaults: the way back from a unit or a speed that nobody knows.
    #[must_use]
    pub fn defaults() -> Self {
        Self { settings: Settings::default(), origin: Origin::Jumper }
    }
}

/// Bytes of a copy.
const COPY_SIZE: usize = 64;
const MARK: [u8; 4] = *b"GN\x00\x01";
/// Of what is kept, in flash and in memory.
pub(crate) const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// Reads the settings that were kept.
pub fn load<F: NorFlash>(flash: &mut F) -> Loaded {
    let copies = [0, 1].map(|copy| read(flash, copy));
    let newest = match copies {
        [Copy::Good(a, first), Copy::Good(b, second)] => Some(if is_newer(b, a) { second } else { first }),
        [Copy::Good(_, settings), _] | [_, Copy::Good(_, settings)] => Some(settings),
        _ => None,
    };
    match newest {
        Some(settings) => Loaded { settings, origin: Origin::Kept },
        None if matches!(copies, [Copy::Erased, Copy::Erased]) => {
            Loaded { settings: Settings::default(), origin: Origin::New }
        }
        None => Loaded { settings: Settings::default(), origin: Origin::Lost },
    }
}

/// Keeps settings in both copies, the older first. Whenever the power goes, the old or the new ones are found.
pub fn save<F: NorFlash>(flash: &mut F, settings: &Settings) -> Result<(), Refused> {
    let (number, first) = match [0, 1].map(|copy| read(flash, copy)) {
        [Copy::Good(a, _), Copy::Good(b, _)] if is_newer(b, a) => (b, 0),
        [Copy::Good(a, _), _] => (a, 1),
        [_, Copy::Good(b, _)] => (b, 0),
        _ => (0, 0),
    };
    let copy = encode(settings, number.wrapping_add(1));
    for which in [first, 1 - first] {
        let start = F::ERASE_SIZE as u32 * which;
        flash.erase(start, start + F::ERASE_SIZE as u32).map_err(|_| Refused)?;
        flash.write(start, &copy).map_err(|_| Refused)?;
        match read(flash, which) {
            Copy::Good(_, kept) if kept == *settings => {}
            _ => return Err(Refused),
        }
    }
    Ok(())
}

/// What lies where a copy should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    Erased,
    Damaged,
    Good(u16, Settings),
}

/// Whether number `b` was given after `a`; they wrap.
const fn is_newer(b: u16, a: u16) -> bool {
    b.wrapping_sub(a).cast_signed() > 0
}

fn read<F: NorFlash>(flash: &mut F, copy: u32) -> Copy {
    let mut bytes = [0; COPY_SIZE];
    match flash.read(F::ERASE_SIZE as u32 * copy, &mut bytes) {
        Ok(()) if bytes.iter().all(|byte| *byte == 0xff) => Copy::Erased,
        Ok(()) => decode(&bytes).unwrap_or(Copy::Damaged),
        Err(_) => Copy::Damaged,
    }
}

fn encode(settings: &Settings, number: u16) -> [u8; COPY_SIZE] {
    let mut bytes = [0; COPY_SIZE];
    let head = MARK.into_iter().chain(number.to_be_bytes());
    let body = settings.registers.iter().flat_map(|register| register.to_be_bytes());
    for (byte, value) in bytes.iter_mut().zip(head.chain(body)) {
        *byte = value;
    }
    if let Some((body, check)) = bytes.split_last_chunk_mut::<4>() {
        *check = CRC.checksum(body).to_be_bytes();
    }
    bytes
}

fn decode(bytes: &[u8; COPY_SIZE]) -> Option<Copy> {
    let (body, check) = bytes.split_last_chunk::<4>()?;
    let (mark, rest) = body.split_first_chunk::<4>()?;
    let (number, values) = rest.split_first_chunk::<2>()?;
    if CRC.checksum(body).to_be_bytes() != *check || *mark != MARK {
        return None;
    }
    let mut settings = Settings::default();
    for (value, address) in values.chunks_exact(2).zip(0..APPLY) {
        settings.set(address, u16::from_be_bytes(value.try_into().ok()?)).ok()?;
    }
    Some(Copy::Good(u16::from_be_bytes(*number), settings))
}

/// A copy fits with room for the settings of a later version.
const _: () = assert!(MARK.len() + 2 + 2 * SETTINGS + 4 <= COPY_SIZE);

#[cfg(test)]
mod tests;
