#![doc = include_str!("../docs/registers.md")]

/// Version of [`MAP`]: changed whenever an entry moves or changes its meaning, not when one is added.
pub const MAP_VERSION: u16 = 1;

/// Dry contacts.
pub const CONTACTS: usize = 8;

/// Relays, transistors or whatever a board switches.
pub const OUTPUTS: usize = 2;

/// One of the four Modbus tables (Modbus Application Protocol 1.1b3 §4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Read-write bits.
    Coil,
    /// Read-only bits.
    Discrete,
    /// Read-only words.
    Input,
    /// Read-write words.
    Holding,
}

/// How a value lies in its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// One bit.
    Bool,
    /// One register.
    U16,
    /// One register, two's complement.
    I16,
    /// Two registers, high word first.
    U32,
    /// Four registers, high word first.
    U64,
}

impl Type {
    /// How many bits (of a bit table) or registers it takes.
    #[must_use]
    pub const fn width(self) -> u16 {
        match self {
            Self::Bool | Self::U16 | Self::I16 => 1,
            Self::U32 => 2,
            Self::U64 => 4,
        }
    }
}

/// What a master may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

/// One named value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub table: Table,
    /// First address, 0-based.
    pub address: u16,
    /// Its name, fit for a point of the gateway.
    pub name: &'static str,
    /// How it lies there.
    pub type_: Type,
    /// Unit of the scaled value; empty where it has none.
    pub unit: &'static str,
    /// The value is the raw number × 10^exponent.
    pub exponent: i8,
    /// What a master may do.
    pub access: Access,
    /// The raw number that says: there is no value.
    pub without: Option<i32>,
    /// What it says.
    pub meaning: &'static str,
}

impl Entry {
    /// The first address behind it.
    #[must_use]
    pub const fn end(&self) -> u16 {
        self.address + self.type_.width()
    }
}

/// Everything, by table and address.
pub const MAP: &[Entry] = &[
    output(0, "output-1", "relay 1 is on"),
    output(1, "output-2", "relay 2 is on"),
    output(2, "identify", "the lamp blinks, to find this node among many; ends by itself after 10 minutes"),
    contact(0, "contact-1", "contact 1 is active, after debouncing"),
    contact(1, "contact-2", "contact 2 is active, after debouncing"),
    contact(2, "contact-3", "contact 3 is active, after debouncing"),
    contact(3, "contact-4", "contact 4 is active, after debouncing"),
    contact(4, "contact-5", "contact 5 is active, after debouncing"),
    contact(5, "contact-6", "contact 6 is active, after debouncing"),
    contact(6, "contact-7", "contact 7 is active, after debouncing"),
    contact(7, "contact-8", "contact 8 is active, after debouncing"),
    contact(8, "fault", "any bit of input faults is set"),
    input(0, "contacts", Type::U16, "bit 0 to 7: contact 1 to 8, as the discrete inputs"),
    input(1, "contact-1-events", Type::U16, "activations of contact 1, modulo 65536"),
    input(2, "contact-2-events", Type::U16, "activations of contact 2, modulo 65536"),
    input(3, "contact-3-events", Type::U16, "activations of contact 3, modulo 65536"),
    input(4, "contact-4-events", Type::U16, "activations of contact 4, modulo 65536"),
    input(5, "contact-5-events", Type::U16, "activations of contact 5, modulo 65536"),
    input(6, "contact-6-events", Type::U16, "activations of contact 6, modulo 65536"),
    input(7, "contact-7-events", Type::U16, "activations of contact 7, modulo 65536"),
    input(8, "contact-8-events", Type::U16, "activations of contact 8, modulo 65536"),
    input(9, "temperature", Type::I16, "inside the housing").in_unit("°C", -1).or_without(),
    input(10, "humidity", Type::U16, "relative, inside the housing").in_unit("%", -1).or_without(),
    input(11, "supply", Type::U16, "supply voltage").in_unit("V", -3).or_without(),
    input(12, "loop-1", Type::U16, "current loop 1").in_unit("mA", -3).or_without(),
    input(13, "loop-2", Type::U16, "current loop 2").in_unit("mA", -3).or_without(),
    input(14, "line-current", Type::U16, "current transformer, true RMS").in_unit("A", -2).or_without(),
    input(15, "outputs", Type::U16, "bit 0 and 1: output 1 and 2 as driven, the fail-safe state included"),
    input(16, "faults", Type::U16, "standing faults, see `Fault`"),
    input(17, "uptime", Type::U32, "since the last reset").in_unit("s", 0),
    input(19, "reset-cause", Type::U16, "why it started last, see `ResetCause`"),
    input(20, "resets", Type::U16, "resets since the power came on, modulo 65536"),
    input(21, "bus-errors", Type::U16, "frames that were cut or garbled, since it started, modulo 65536"),
    input(22, "stack-free", Type::U16, "bytes of stack that were never used").in_unit("B", 0),
    input(256, "map-version", Type::U16, "version of this table"),
    input(257, "version-major", Type::U16, "firmware version"),
    input(258, "version-minor", Type::U16, "firmware version"),
    input(259, "version-patch", Type::U16, "firmware version"),
    input(260, "serial-number", Type::U64, "the chip's own number"),
    holding(0, "unit", "Modbus unit of this node, 1 to 247"),
    holding(1, "baud", "12 to 1152: 1200 to 115200 baud, a standard rate").in_unit("Bd", 2),
    holding(2, "parity", "see `Parity`"),
    holding(3, "stop-bits", "1 or 2"),
    holding(4, "debounce-1", "how long contact 1 must rest, 1 to 10000").in_unit("ms", 0),
    holding(5, "debounce-2", "how long contact 2 must rest, 1 to 10000").in_unit("ms", 0),
    holding(6, "debounce-3", "how long contact 3 must rest, 1 to 10000").in_unit("ms", 0),
    holding(7, "debounce-4", "how long contact 4 must rest, 1 to 10000").in_unit("ms", 0),
    holding(8, "debounce-5", "how long contact 5 must rest, 1 to 10000").in_unit("ms", 0),
    holding(9, "debounce-6", "how long contact 6 must rest, 1 to 10000").in_unit("ms", 0),
    holding(10, "debounce-7", "how long contact 7 must rest, 1 to 10000").in_unit("ms", 0),
    holding(11, "debounce-8", "how long contact 8 must rest, 1 to 10000").in_unit("ms", 0),
    holding(12, "active-open", "bit 0 to 7: contact 1 to 8 is active while open (normally closed)"),
    holding(13, "fitted", "what is connected, see `Fitted`; what is not is no fault"),
    holding(14, "transformer", "current transformer: primary current at 1 V, 1 to 600").in_unit("A", 0),
    holding(15, "fail-safe-after", "silence after which outputs take their safe state, 0 for never").in_unit("s", 0),
    holding(16, "fail-safe-outputs", "bit 0 and 1: the safe state of output 1 and 2"),
    holding(17, "supply-low", "supply below which the fault is set, 0 for never").in_unit("V", -3),
    holding(18, "apply", "write 1 to keep and use holding 0 to 17; reads 1 while they differ from those in use"),
];

/// The first address of the entry with this name, for use in constants: a name that is not in the map does not compile.
///
/// # Panics
/// If there is no such entry.
#[must_use]
pub const fn address(name: &str) -> u16 {
    let mut at = 0;
    while at < MAP.len() {
        if is_same(MAP[at].name.as_bytes(), name.as_bytes()) {
            return MAP[at].address;
        }
        at += 1;
    }
    panic!("no entry of this name in the map")
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// How many events lie between two readings of a counter, given that there were fewer than 65536.
#[must_use]
pub const fn events_between(earlier: u16, later: u16) -> u16 {
    later.wrapping_sub(earlier)
}

/// A bit of input `faults`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Fault {
    /// The climate sensor does not answer, or garbled.
    Climate = 1 << 0,
    /// The converter of loops, line current and supply does not answer.
    Converter = 1 << 1,
    /// Current loop 1 is below 3.6 mA or above 21 mA (NAMUR NE 43): cut, shorted or its transmitter failed.
    Loop1 = 1 << 2,
    /// The same of current loop 2.
    Loop2 = 1 << 3,
    /// The supply is below holding `supply-low`.
    SupplyLow = 1 << 4,
    /// The kept settings were damaged; the node runs on its defaults.
    SettingsLost = 1 << 5,
    /// The settings could not be kept; the node goes on with the ones it has.
    SettingsNotKept = 1 << 6,
    /// Outputs are in their safe state, because no master was heard.
    FailSafe = 1 << 7,
    /// The firmware panicked before its last reset; where stands in the device identification, object 0x80.
    Panicked = 1 << 8,
    /// A pin could not be read or driven.
    Pin = 1 << 9,
}

impl Fault {
    /// Every one, by its bit.
    pub const ALL: [Self; 10] = [
        Self::Climate,
        Self::Converter,
        Self::Loop1,
        Self::Loop2,
        Self::SupplyLow,
        Self::SettingsLost,
        Self::SettingsNotKept,
        Self::FailSafe,
        Self::Panicked,
        Self::Pin,
    ];

    /// Its name, fit for a point of the gateway.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Climate => "fault-climate",
            Self::Converter => "fault-converter",
            Self::Loop1 => "fault-loop-1",
            Self::Loop2 => "fault-loop-2",
            Self::SupplyLow => "fault-supply-low",
            Self::SettingsLost => "fault-settings-lost",
            Self::SettingsNotKept => "fault-settings-not-kept",
            Self::FailSafe => "fault-fail-safe",
            Self::Panicked => "fault-panicked",
            Self::Pin => "fault-pin",
        }
    }
}

/// A bit of holding `fitted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Fitted {
    /// A climate sensor.
    Climate = 1 << 0,
    /// A transmitter on current loop 1.
    Loop1 = 1 << 1,
    /// A transmitter on current loop 2.
    Loop2 = 1 << 2,
    /// A current transformer.
    Transformer = 1 << 3,
    /// The divider that measures the supply.
    Supply = 1 << 4,
}

/// Input `reset-cause`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ResetCause {
    /// The chip does not say.
    Unknown = 0,
    /// Power came on.
    PowerOn = 1,
    /// Its own watchdog ended a hang.
    Watchdog = 2,
    /// The supply sagged.
    BrownOut = 3,
    /// It asked for it: new settings or new firmware.
    Software = 4,
    /// The reset button.
    Button = 5,
    /// The firmware panicked.
    Panic = 6,
}

/// Holding `parity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Parity {
    /// No parity bit.
    None = 0,
    /// Even parity: the default of the Modbus serial line specification.
    Even = 1,
    /// Odd parity.
    Odd = 2,
}

impl Fault {
    /// Its bit.
    #[must_use]
    pub const fn bit(self) -> u16 {
        self as u16
    }
}

impl Fitted {
    /// Its bit.
    #[must_use]
    pub const fn bit(self) -> u16 {
        self as u16
    }

    /// Every bit that means something.
    pub const ALL: u16 =
        Self::Climate.bit() | Self::Loop1.bit() | Self::Loop2.bit() | Self::Transformer.bit() | Self::Supply.bit();
}

impl Parity {
    /// What a master wrote, if it means anything.
    #[must_use]
    pub const fn from_register(raw: u16) -> Option<Self> {
        match raw {
            0 => Some(Self::None),
            1 => Some(Self::Even),
            2 => Some(Self::Odd),
            _ => None,
        }
    }
}

impl Entry {
    const fn new(table: Table, address: u16, name: &'static str, type_: Type, meaning: &'static str) -> Self {
        let access = match table {
            Table::Coil | Table::Holding => Access::ReadWrite,
            Table::Discrete | Table::Input => Access::Read,
        };
        Self { table, address, name, type_, unit: "", exponent: 0, access, without: None, meaning }
    }

    const fn in_unit(self, unit: &'static str, exponent: i8) -> Self {
        Self { unit, exponent, ..self }
    }

    /// Of its type, the number farthest from any that is measured stands for none.
    const fn or_without(self) -> Self {
        let without = match self.type_ {
            Type::U16 => Some(u16::MAX as i32),
            Type::I16 => Some(i16::MIN as i32),
            Type::Bool | Type::U32 | Type::U64 => None,
        };
        Self { without, ..self }
    }
}

const fn output(address: u16, name: &'static str, meaning: &'static str) -> Entry {
    Entry::new(Table::Coil, address, name, Type::Bool, meaning)
}

const fn contact(address: u16, name: &'static str, meaning: &'static str) -> Entry {
    Entry::new(Table::Discrete, address, name, Type::Bool, meaning)
}

const fn input(address: u16, name: &'static str, type_: Type, meaning: &'static str) -> Entry {
    Entry::new(Table::Input, address, name, type_, meaning)
}

const fn holding(address: u16, name: &'static str, meaning: &'static str) -> Entry {
    Entry::new(Table::Holding, address, name, Type::U16, meaning)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, format, string::String, vec::Vec};

    use super::*;

    /// Longest read request (Modbus Application Protocol 1.1b3 §6.4).
    const REQUEST_REGISTERS_MAX: u16 = 125;

    fn of(table: Table) -> Vec<&'static Entry> {
        MAP.iter().filter(|entry| entry.table == table).collect()
    }

    fn named(name: &str) -> &'static Entry {
        MAP.iter().find(|entry| entry.name == name).expect(name)
    }

    #[test]
    fn no_two_entries_overlap_and_the_table_is_in_order() {
        for pair in MAP.windows(2) {
            let (a, b) = (pair[0], pair[1]);
            assert!(a.table < b.table || (a.table == b.table && a.end() <= b.address), "{} and {}", a.name, b.name);
        }
    }

    #[test]
    fn one_request_reads_values_counters_and_health() {
        let polled: Vec<_> =
            of(Table::Input).into_iter().filter(|entry| entry.address < named("map-version").address).collect();
        let mut next = 0;
        for entry in &polled {
            assert_eq!(entry.address, next, "a gap before {}", entry.name);
            next = entry.end();
        }
        assert!(next <= REQUEST_REGISTERS_MAX);
        for name in ["contacts", "temperature", "contact-1-events", "contact-8-events", "faults", "uptime", "resets"] {
            assert!(polled.contains(&named(name)), "{name} needs a request of its own");
        }
    }

    #[test]
    fn identity_and_settings_each_fit_one_request() {
        for (table, first) in [(Table::Input, "map-version"), (Table::Holding, "unit"), (Table::Discrete, "contact-1")]
        {
            let mut next = named(first).address;
            for entry in of(table).into_iter().filter(|entry| entry.address >= named(first).address) {
                assert_eq!(entry.address, next, "a gap before {}", entry.name);
                next = entry.end();
            }
        }
    }

    #[test]
    fn bits_lie_in_bit_tables_and_only_coils_and_holdings_are_written() {
        for entry in MAP {
            let bit_table = matches!(entry.table, Table::Coil | Table::Discrete);
            assert_eq!(entry.type_ == Type::Bool, bit_table, "{}", entry.name);
            let written = matches!(entry.table, Table::Coil | Table::Holding);
            assert_eq!(entry.access == Access::ReadWrite, written, "{}", entry.name);
        }
    }

    #[test]
    fn every_contact_has_its_bit_its_counter_and_its_debounce() {
        for contact in 1..=CONTACTS {
            let bit = named(&format!("contact-{contact}"));
            assert_eq!((bit.table, usize::from(bit.address)), (Table::Discrete, contact - 1));
            let counter = named(&format!("contact-{contact}-events"));
            assert_eq!((counter.table, counter.type_, counter.access), (Table::Input, Type::U16, Access::Read));
            assert_eq!(named(&format!("debounce-{contact}")).unit, "ms");
        }
    }

    #[test]
    fn names_are_unique_and_fit_the_gateway() {
        let names: BTreeSet<_> = MAP.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), MAP.len());
        let fits =
            |name: &&str| name.len() <= 64 && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        assert!(names.iter().all(fits));
    }

    #[test]
    fn every_fault_has_a_bit_of_its_own_in_order() {
        for (bit, fault) in Fault::ALL.into_iter().enumerate() {
            assert_eq!(fault as u16, 1 << bit, "{}", fault.name());
            assert!(MAP.iter().all(|entry| entry.name != fault.name()), "{} is taken", fault.name());
        }
    }

    #[test]
    fn a_counter_that_wraps_loses_no_event() {
        assert_eq!(events_between(65_534, 3), 5);
        assert_eq!(events_between(7, 7), 0);
    }

    #[test]
    fn a_parity_that_means_nothing_is_refused() {
        for parity in [Parity::None, Parity::Even, Parity::Odd] {
            assert_eq!(Parity::from_register(parity as u16), Some(parity));
        }
        assert_eq!(Parity::from_register(3), None);
    }

    /// The rows of the page's table with this heading.
    fn documented(heading: &str) -> Vec<&'static str> {
        let page = include_str!("../docs/registers.md");
        let table = page.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
        table.map_while(|line| line.strip_prefix("| ")).collect()
    }

    #[test]
    fn the_documented_table_is_this_table() {
        let rows: Vec<String> = MAP.iter().map(row).collect();
        assert_eq!(documented("| table |"), rows);
    }

    #[test]
    fn every_fault_is_documented_with_its_bit() {
        let faults = documented("| bit |");
        assert_eq!(faults.len(), Fault::ALL.len());
        for (bit, (fault, row)) in Fault::ALL.into_iter().zip(faults).enumerate() {
            assert!(row.starts_with(&format!("{bit} | {} | ", fault.name())), "{row}");
        }
    }

    fn row(entry: &Entry) -> String {
        let table = match entry.table {
            Table::Coil => "coil",
            Table::Discrete => "discrete",
            Table::Input => "input",
            Table::Holding => "holding",
        };
        let type_ = match entry.type_ {
            Type::Bool => "bool",
            Type::U16 => "u16",
            Type::I16 => "i16",
            Type::U32 => "u32",
            Type::U64 => "u64",
        };
        let access = match entry.access {
            Access::Read => "read-only",
            Access::ReadWrite => "read-write",
        };
        let unit = if entry.unit.is_empty() { String::new() } else { format!("{} ", entry.unit) };
        let without = entry.without.map(|raw| format!("; {raw} without a value")).unwrap_or_default();
        let Entry { address, name, exponent, meaning, .. } = entry;
        format!("{table} | {address} | {name} | {type_} | {unit}| {exponent} | {access} | {meaning}{without} |")
    }
}
