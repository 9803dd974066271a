//! What `gardu check` says of the Modbus buses: their requests, the time these take, and what will not work out.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value as Json, json};

use crate::{
    config::{Bus, Device, Link, Profile, SerialLine, units},
    source::modbus::{
        plan,
        timing::{Medium, ROUND_TRIP, TURNAROUND},
    },
    text::Arg,
};

/// Beyond this share a serial line is called full: the rest is for devices slower than assumed, and for requests that
/// nobody answers, each of which takes the whole timeout.
const LINE_BUSY_PERCENT_MAX: f64 = 80.0;
/// What the timeout should leave beyond the longest answer: slow devices begin to answer after 50 ms, and converters and
/// USB adapters gather bytes.
const TIMEOUT_MARGIN: Duration = Duration::from_millis(200);
/// A timeout is advised in steps of this.
const TIMEOUT_STEP_MS: u64 = 100;

/// One bus, estimated.
pub(super) struct BusPlan<'a> {
    bus: &'a Bus,
    medium: Medium,
    devices: Vec<DevicePlan<'a>>,
}

/// One device, estimated.
struct DevicePlan<'a> {
    device: &'a Device,
    requests: usize,
    /// The time of one poll.
    cycle: Duration,
    /// The time of its longest request with the answer.
    longest: Duration,
}

impl<'a> DevicePlan<'a> {
    fn of(device: &'a Device, medium: Medium) -> Self {
        let costs: Vec<Duration> = plan(device, medium).iter().map(|request| medium.cost(request)).collect();
        let longest = costs.iter().max().copied().unwrap_or_default();
        Self { device, requests: costs.len(), cycle: costs.iter().sum(), longest }
    }

    /// Share of the bus's time, in percent.
    fn busy_percent(&self) -> f64 {
        self.cycle.as_secs_f64() / self.device.poll.as_secs_f64() * 100.0
    }

    fn json(&self) -> Json {
        let Device { name, unit, poll, points, profile, .. } = self.device;
        let profile = profile.as_deref().map(|Profile { name, version, title, source, file, .. }| {
            json!({"name": name, "version": version, "title": title, "source": source, "file": file})
        });
        json!({"name": name, "unit": unit, "profile": profile, "poll_ms": poll.as_millis() as u64, "points": points.len(),
               "requests": self.requests, "cycle_ms": up_to_ms(self.cycle), "busy_percent": self.busy_percent()})
    }
}

impl<'a> BusPlan<'a> {
    pub(super) fn of(bus: &'a Bus) -> Self {
        let medium = Medium::of(&bus.link);
        Self { bus, medium, devices: bus.devices.iter().map(|device| DevicePlan::of(device, medium)).collect() }
    }

    pub(super) const fn line(&self) -> Option<SerialLine> {
        self.medium.line()
    }

    fn requests(&self) -> usize {
        self.devices.iter().map(|device| device.requests).sum()
    }

    fn cycle(&self) -> Duration {
        self.devices.iter().map(|device| device.cycle).sum()
    }

    fn longest(&self) -> Duration {
        self.devices.iter().map(|device| device.longest).max().unwrap_or_default()
    }

    fn busy_percent(&self) -> f64 {
        self.devices.iter().map(DevicePlan::busy_percent).sum()
    }

    /// The timeout to write instead of one that ends before the longest answer.
    fn timeout_needed(&self) -> Option<Duration> {
        let needed_ms = up_to_ms(self.longest() + TIMEOUT_MARGIN).next_multiple_of(TIMEOUT_STEP_MS);
        (self.bus.timeout < self.longest()).then_some(Duration::from_millis(needed_ms))
    }

    /// Devices that are one unit, where that matters: the planner keeps apart only what belongs to one device.
    fn shared_units(&self) -> BTreeMap<u8, Vec<&str>> {
        let mut units: BTreeMap<u8, Vec<&str>> = BTreeMap::new();
        for DevicePlan { device, .. } in self.devices.iter().filter(|_| self.line().is_some()) {
            units.entry(device.unit).or_default().push(device.name.as_str());
        }
        units.retain(|_, devices| devices.len() > 1);
        units
    }

    /// Profiles whose devices come set to another line than this one, with the devices.
    fn differently_set(&self) -> BTreeMap<(&str, String), Vec<&str>> {
        let mut found: BTreeMap<_, Vec<&str>> = BTreeMap::new();
        for DevicePlan { device, .. } in &self.devices {
            let Some(profile) = &device.profile else { continue };
            if let (Some(line), Some(set)) = (self.line(), profile.serial)
                && line != set
            {
                found.entry((profile.name.as_str(), set.to_string())).or_default().push(device.name.as_str());
            }
        }
        found
    }

    pub(super) fn json(&self) -> Json {
        json!({"name": self.bus.name, "url": self.bus.link.to_string(), "line": self.line().map(|line| line.to_string()),
               "requests": self.requests(), "cycle_ms": up_to_ms(self.cycle()), "busy_percent": self.busy_percent(),
               "timeout_ms": self.bus.timeout.as_millis() as u64, "longest_ms": up_to_ms(self.longest()),
               "devices": self.devices.iter().map(DevicePlan::json).collect::<Vec<_>>()})
    }

    /// Says it line by line: indent, key, arguments.
    pub(super) fn text(&self, say: &mut impl FnMut(usize, &str, &[Arg<'_>])) {
        let mut at = self.bus.link.to_string();
        if let Some(line) = self.line() {
            at = format!("{at}, {line}");
        }
        say(0, "check-plan-bus", &[("name", self.bus.name.as_str().into()), ("url", at.into())]);
        for DevicePlan { device, requests, cycle, .. } in &self.devices {
            let mut args = vec![
                ("name", device.name.as_str().into()),
                ("unit", device.unit.to_string().into()),
                ("points", device.points.len().into()),
                ("requests", (*requests).into()),
                ("poll", units::show_duration(device.poll).into()),
                ("cycle", up_to_ms(*cycle).to_string().into()),
            ];
            let Some(profile) = &device.profile else {
                say(2, "check-plan-device", &args);
                continue;
            };
            args.push(("profile", profile.name.as_str().into()));
            args.push(("version", profile.version.to_string().into()));
            say(2, "check-plan-device-profile", &args);
            if let Some(file) = &profile.file {
                say(4, "check-plan-profile-file", &[("path", file.display().to_string().into())]);
            }
        }
        let busy = self.busy_percent();
        let args = [
            ("requests", self.requests().into()),
            ("cycle", up_to_ms(self.cycle()).to_string().into()),
            ("busy", format!("{busy:.1}").into()),
        ];
        let sum = match self.line() {
            _ if busy > 100.0 => "check-plan-bus-over",
            Some(_) if busy > LINE_BUSY_PERCENT_MAX => "check-plan-bus-full",
            Some(_) | None => "check-plan-bus-sum",
        };
        say(2, sum, &args);
        self.advice(say);
    }

    fn advice(&self, say: &mut impl FnMut(usize, &str, &[Arg<'_>])) {
        if let Some(needed) = self.timeout_needed() {
            let args = [
                ("longest", up_to_ms(self.longest()).to_string().into()),
                ("timeout", units::show_duration(self.bus.timeout).into()),
                ("needed", units::show_duration(needed).into()),
            ];
            say(2, "check-plan-timeout", &args);
        }
        if let Link::Rtu { path, .. } = &self.bus.link {
            let shown = path.display().to_string();
            // The kernel numbers USB adapters as they come.
            if ["/dev/ttyUSB", "/dev/ttyACM"].iter().any(|start| shown.starts_with(start)) {
                say(2, "check-plan-port", &[("path", shown.into())]);
            }
        }
        for ((profile, set), devices) in self.differently_set() {
            let line = self.line().map(|line| line.to_string()).unwrap_or_default();
            let args = [
                ("devices", devices.join(", ").into()),
                ("profile", profile.into()),
                ("set", set.into()),
                ("line", line.into()),
            ];
            say(2, "check-plan-serial", &args);
        }
        for (unit, devices) in self.shared_units() {
            say(2, "check-plan-unit", &[("unit", unit.to_string().into()), ("devices", devices.join(", ").into())]);
        }
    }
}

/// Says what is assumed of the buses there are.
pub(super) fn assumed(plans: &[BusPlan<'_>], say: &mut impl FnMut(usize, &str, &[Arg<'_>])) {
    let ms = |duration: Duration| duration.as_millis().to_string().into();
    if plans.iter().any(|plan| plan.line().is_none()) {
        say(2, "check-plan-assumed-trip", &[("ms", ms(ROUND_TRIP))]);
    }
    if plans.iter().any(|plan| plan.line().is_some()) {
        say(2, "check-plan-assumed-line", &[("turnaround", ms(TURNAROUND)), ("network", ms(ROUND_TRIP))]);
    }
}

/// Whole milliseconds, rounded up: an estimate of time must not be too small.
fn up_to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
