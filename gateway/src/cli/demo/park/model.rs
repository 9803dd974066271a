//! What every register of the park holds at a second of the day, given what happened. Pure.

use std::{collections::BTreeSet, f64::consts::TAU};

const DAY_S: u64 = 86_400;
pub(super) const HOUR_S: u64 = 3_600;
const CIRCUITS: usize = 4;
/// Lamps burn from dusk to dawn; near the equator both hardly move through the year.
const DUSK_S: u64 = 17 * HOUR_S + 45 * 60;
const DAWN_S: u64 = 5 * HOUR_S + 45 * 60;
/// When the park closes, every second circuit is switched off.
const CLOSING_S: u64 = 22 * HOUR_S;
const CIRCUIT_W: f64 = 180.0;
const POWER_FACTOR: f64 = 0.95;
/// A flood rises, and drains, by 4 cm a minute, until the water stands 45 cm higher.
const FLOOD_CM_S: f64 = 4.0 / 60.0;
const FLOOD_MAX_CM: f64 = 45.0;
/// Where the float switch hangs.
const FLOAT_CM: f64 = 95.0;

/// A unit of the cabinet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Door, mains and lamp circuits.
    Panel = 1,
    /// The energy meter.
    Meter = 2,
    /// Water level and panic button.
    Pond = 3,
    /// Currents of the lamp circuits.
    Lamp = 4,
}

impl Unit {
    /// Every unit.
    pub const ALL: [Self; 4] = [Self::Panel, Self::Meter, Self::Pond, Self::Lamp];
}

/// Something that happens in the park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incident {
    /// Someone opens the cabinet.
    DoorOpened,
    /// And closes it.
    DoorClosed,
    /// The mains fail.
    MainsLost,
    /// And return.
    MainsBack,
    /// The pond begins to rise.
    WaterHigh,
    /// It begins to drain.
    WaterNormal,
    /// Someone presses the panic button.
    PanicPressed,
    /// A unit stops answering.
    UnitDead(Unit),
    /// It answers again.
    UnitBack(Unit),
    /// The cabinet's network cable is pulled.
    LinkCut,
    /// And plugged in again.
    LinkBack,
}

/// What has happened so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Incidents {
    is_door_open: bool,
    mains_lost_at: Option<u64>,
    flood: Flood,
    panic_presses: u16,
    pub(super) dead: BTreeSet<Unit>,
    pub(super) is_link_cut: bool,
}

/// The water above its usual level: how much at one second, and how fast it changes from there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Flood {
    since: u64,
    cm: f64,
    cm_s: f64,
}

impl Flood {
    #[expect(clippy::cast_precision_loss, reason = "seconds of a demonstration")]
    fn cm_at(&self, second: u64) -> f64 {
        (self.cm + self.cm_s * second.saturating_sub(self.since) as f64).clamp(0.0, FLOOD_MAX_CM)
    }
}

impl Incidents {
    /// One more, at this second.
    pub fn apply(&mut self, incident: Incident, second: u64) {
        let flood = |cm_s| Flood { since: second, cm: self.flood.cm_at(second), cm_s };
        match incident {
            Incident::DoorOpened => self.is_door_open = true,
            Incident::DoorClosed => self.is_door_open = false,
            Incident::MainsLost => self.mains_lost_at = self.mains_lost_at.or(Some(second)),
            Incident::MainsBack => self.mains_lost_at = None,
            Incident::WaterHigh => self.flood = flood(FLOOD_CM_S),
            Incident::WaterNormal => self.flood = flood(-FLOOD_CM_S),
            Incident::PanicPressed => self.panic_presses = self.panic_presses.wrapping_add(1),
            Incident::UnitDead(unit) => drop(self.dead.insert(unit)),
            Incident::UnitBack(unit) => drop(self.dead.remove(&unit)),
            Incident::LinkCut => self.is_link_cut = true,
            Incident::LinkBack => self.is_link_cut = false,
        }
    }
}

/// What one unit holds; addresses beyond the end do not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// Coils from 0.
    pub coils: Vec<bool>,
    /// Discrete inputs from 0.
    pub discrete: Vec<bool>,
    /// Input registers from 0.
    pub input: Vec<u16>,
}

/// The park without its incidents: the same seed gives the same days.
#[derive(Debug, Clone, Copy)]
pub struct ParkModel {
    seed: u64,
}

/// Streams of noise that must not move together.
#[derive(Debug, Clone, Copy)]
enum Channel {
    Temperature = 1,
    Volts,
    Watts,
    Water,
    Lamps,
}

impl ParkModel {
    /// A park of its own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// What a unit holds at a second, counted from midnight of the first day.
    #[must_use]
    pub fn at(&self, unit: Unit, second: u64, incidents: &Incidents) -> Tables {
        match unit {
            Unit::Panel => self.panel(second, incidents),
            Unit::Meter => Tables { input: self.meter(second, incidents), ..Tables::default() },
            Unit::Pond => self.pond(second, incidents),
            Unit::Lamp => Tables { input: self.lamp(second, incidents), ..Tables::default() },
        }
    }

    fn panel(&self, second: u64, incidents: &Incidents) -> Tables {
        let celsius = 31.0 + 5.0 * day_wave(second, 14) + 0.6 * self.noise(Channel::Temperature, second);
        Tables {
            coils: circuits(second).to_vec(),
            discrete: vec![incidents.is_door_open, incidents.mains_lost_at.is_none(), true],
            input: vec![signed(celsius * 10.0)],
        }
    }

    fn meter(&self, second: u64, incidents: &Incidents) -> Vec<u16> {
        let is_fed = incidents.mains_lost_at.is_none();
        let volts = 226.0 - 3.0 * day_wave(second, 19) + 1.5 * self.noise(Channel::Volts, second);
        let watts = nominal_w(second) * (1.0 + 0.02 * self.noise(Channel::Watts, second));
        let hertz = 50.0 + 0.03 * self.noise(Channel::Volts, second.wrapping_add(30));
        let kwh = 1_840.0 + energy_kwh(incidents.mains_lost_at.unwrap_or(second));
        let mut input = vec![0; 74];
        for (address, quantity) in [(0, volts), (6, watts / volts / POWER_FACTOR), (12, watts), (70, hertz)] {
            put_f32(&mut input, address, if is_fed { quantity } else { 0.0 });
        }
        put_f32(&mut input, 72, kwh);
        input
    }

    fn pond(&self, second: u64, incidents: &Incidents) -> Tables {
        let usual_cm = 62.0 + 2.0 * day_wave(second, 17) + 0.8 * self.noise(Channel::Water, second);
        let cm = usual_cm + incidents.flood.cm_at(second);
        Tables { discrete: vec![cm >= FLOAT_CM], input: vec![signed(cm), incidents.panic_presses], ..Tables::default() }
    }

    fn lamp(&self, second: u64, incidents: &Incidents) -> Vec<u16> {
        let amps = CIRCUIT_W / 226.0 / POWER_FACTOR * (1.0 + 0.01 * self.noise(Channel::Lamps, second));
        let burns = |is_on| is_on && incidents.mains_lost_at.is_none();
        let mut input: Vec<u16> =
            circuits(second).map(|is_on| signed(if burns(is_on) { amps * 1e3 } else { 0.0 })).into();
        let today_s = second % DAY_S;
        let burnt_s = second / DAY_S * (DAWN_S + DAY_S - DUSK_S) + today_s.min(DAWN_S) + today_s.saturating_sub(DUSK_S);
        let [a, b, c, d] = u32::try_from(9_120 + burnt_s / HOUR_S).unwrap_or(u32::MAX).to_be_bytes();
        input.extend([[c, d], [a, b]].map(u16::from_be_bytes));
        input
    }

    /// Between -1 and 1: one value a minute, and straight lines between them.
    #[expect(clippy::cast_precision_loss, reason = "53 bits of a hash, and seconds within a minute")]
    fn noise(&self, channel: Channel, second: u64) -> f64 {
        let at = |minute: u64| {
            let hash = mix(mix(self.seed.wrapping_add(channel as u64)).wrapping_add(minute));
            (hash >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        };
        let (minute, into) = (second / 60, (second % 60) as f64 / 60.0);
        at(minute) * (1.0 - into) + at(minute + 1) * into
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): neighbouring numbers to unrelated ones.
const fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A cosine over the day, 1 at the hour of its peak.
#[expect(clippy::cast_precision_loss, reason = "seconds of a day")]
fn day_wave(second: u64, peak_hour: u64) -> f64 {
    let since_peak = (second % DAY_S + DAY_S - peak_hour * HOUR_S) as f64;
    (since_peak / DAY_S as f64 * TAU).cos()
}

/// Which lamp circuits are on: one after the other at dusk, so that they do not start together.
fn circuits(second: u64) -> [bool; CIRCUITS] {
    let second = second % DAY_S;
    std::array::from_fn(|circuit| {
        let delay_s = 60 * u64::try_from(circuit).expect("a few circuits");
        let is_night = second < DAWN_S || second >= DUSK_S + delay_s;
        let is_closed = !(DAWN_S..CLOSING_S).contains(&second);
        is_night && !(is_closed && circuit % 2 == 1)
    })
}

/// What the park draws: the gateway and cameras, the pond's pump by day, the lamps by night.
fn nominal_w(second: u64) -> f64 {
    let lamps = circuits(second).into_iter().filter(|is_on| *is_on).map(|_| CIRCUIT_W).sum::<f64>();
    let is_pumping = (6 * HOUR_S..21 * HOUR_S).contains(&(second % DAY_S));
    35.0 + lamps + if is_pumping { 250.0 } else { 0.0 }
}

/// What it drew since the first midnight, in steps of a minute.
#[expect(clippy::cast_precision_loss, reason = "days of a demonstration")]
fn energy_kwh(second: u64) -> f64 {
    let until = |end: u64| (0..end / 60).map(|minute| nominal_w(minute * 60) / 60.0 / 1e3).sum::<f64>();
    until(DAY_S) * (second / DAY_S) as f64 + until(second % DAY_S)
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to what the register holds")]
fn signed(quantity: f64) -> u16 {
    let whole = quantity.round().clamp(f64::from(i16::MIN), f64::from(i16::MAX));
    (whole as i16).cast_unsigned()
}

#[expect(clippy::cast_possible_truncation, reason = "the meter's registers are single precision")]
fn put_f32(registers: &mut [u16], address: usize, quantity: f64) {
    let bits = (quantity as f32).to_bits().to_be_bytes();
    registers[address] = u16::from_be_bytes([bits[0], bits[1]]);
    registers[address + 1] = u16::from_be_bytes([bits[2], bits[3]]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet(unit: Unit, second: u64) -> Tables {
        ParkModel::new(7).at(unit, second, &Incidents::default())
    }

    fn f32_at(registers: &[u16], address: usize) -> f32 {
        f32::from_bits(u32::from(registers[address]) << 16 | u32::from(registers[address + 1]))
    }

    #[test]
    fn a_quiet_day_stays_within_every_limit() {
        for second in (0..DAY_S).step_by(60) {
            let panel = quiet(Unit::Panel, second);
            assert_eq!(panel.discrete, [false, true, true]);
            assert!((240..=400).contains(&panel.input[0].cast_signed()), "{panel:?}");
            let meter = quiet(Unit::Meter, second).input;
            assert!((210.0..=240.0).contains(&f32_at(&meter, 0)) && f32_at(&meter, 12) >= 30.0, "{second}");
            let pond = quiet(Unit::Pond, second);
            assert!(!pond.discrete[0] && (55..=70).contains(&pond.input[0]) && pond.input[1] == 0, "{pond:?}");
        }
    }

    #[test]
    fn lamps_burn_by_night_and_fewer_after_closing() {
        for (hour, expect) in [(3, [true, false, true, false]), (12, [false; 4]), (20, [true; 4])] {
            let second = DAY_S + hour * HOUR_S;
            assert_eq!(quiet(Unit::Panel, second).coils, expect, "{hour} h");
            let lamp = quiet(Unit::Lamp, second).input;
            assert_eq!([0, 1, 2, 3].map(|i| lamp[i] > 500), expect, "{hour} h: {lamp:?}");
        }
    }

    #[test]
    fn meters_only_count_up() {
        let readings = |second| (f32_at(&quiet(Unit::Meter, second).input, 72), quiet(Unit::Lamp, second).input[4]);
        let all: Vec<_> = (0..3 * DAY_S).step_by(900).map(readings).collect();
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 <= w[1].1));
        assert!(all[0].1 + 35 <= all[all.len() - 1].1, "twelve hours a night");
    }

    #[test]
    fn the_same_seed_gives_the_same_day_and_another_another() {
        let day = |seed| {
            let at = move |s| ParkModel::new(seed).at(Unit::Meter, s, &Incidents::default());
            (0..DAY_S).step_by(600).map(at).collect::<Vec<_>>()
        };
        assert_eq!(day(1), day(1));
        assert_ne!(day(1), day(2));
    }

    #[test]
    fn incidents_show_in_the_registers() {
        let model = ParkModel::new(7);
        let noon = 12 * HOUR_S;
        let mut all = Incidents::default();
        for incident in [Incident::DoorOpened, Incident::MainsLost, Incident::PanicPressed, Incident::WaterHigh] {
            all.apply(incident, noon);
        }
        assert_eq!(model.at(Unit::Panel, noon, &all).discrete, [true, false, true]);
        let meter = model.at(Unit::Meter, noon + HOUR_S, &all).input;
        assert_eq!((f32_at(&meter, 0), f32_at(&meter, 72)), (0.0, f32_at(&quiet(Unit::Meter, noon).input, 72)));
        let level = |all: &Incidents, second| model.at(Unit::Pond, second, all);
        assert_eq!(level(&all, noon).input[1], 1);
        assert!(!level(&all, noon).discrete[0], "a flood takes its time");
        let flooded = level(&all, noon + 900);
        assert!(flooded.discrete[0] && flooded.input[0] >= 100, "{flooded:?}");
        all.apply(Incident::WaterNormal, noon + 900);
        assert!(level(&all, noon + 960).input[0] > 90 && level(&all, noon + 1_800).input[0] < 70);
        for incident in [Incident::DoorClosed, Incident::MainsBack] {
            all.apply(incident, noon + 1_800);
        }
        assert_eq!(model.at(Unit::Panel, noon, &all).discrete, [false, true, true]);
    }
}
