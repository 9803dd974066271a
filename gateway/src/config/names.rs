//! Who is who: devices, their owners and points, so that names are unique and alarms watch something that exists.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    PointTemplate, TemplateSegment,
    document::Node,
    problem::{Findings, Spot},
};
use crate::reading::{PointId, Segment};

/// What a point can say, as far as an alarm on it must know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Says {
    /// True or false.
    Bool,
    /// A number, perhaps plausible only in a range.
    Number(Option<(f64, f64)>),
    /// An unsigned whole number as the device counts it, perhaps plausible only in a range.
    Counter(Option<(f64, f64)>),
    /// A text.
    Text,
    /// Not known before a message arrives.
    Anything,
}

/// The source a device belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// A Modbus bus; a device is written once.
    Modbus,
    /// The gateway's own pins (`[[gpio]]`, `[[i2c]]`); a device is written once.
    Pins,
    /// An MQTT input by its place in the list; its subscriptions share devices.
    Mqtt(usize),
}

/// Names known so far.
#[derive(Debug, Default)]
pub(super) struct Names {
    devices: BTreeMap<String, (Owner, Spot)>,
    points: BTreeMap<PointId, (Says, Spot)>,
    /// Names that messages complete.
    open: Vec<PointTemplate>,
    /// Devices whose points could not be read.
    unread: BTreeSet<String>,
}

impl Names {
    /// Takes a device's name for its owner, or notes both places of a clash. Only who has the name may name points.
    pub(super) fn device(&mut self, name: &Segment, owner: Owner, at: Node<'_>) -> Option<()> {
        if name.as_str() == "gateway" {
            return at.wrong("check-reserved", &[("name", name.as_str().into())]);
        }
        match self.devices.get(name.as_str()) {
            Some((other, _)) if *other == owner && matches!(owner, Owner::Mqtt(_)) => Some(()),
            Some((_, spot)) => {
                clash(name.as_str(), *spot, at);
                None
            }
            None => {
                self.devices.insert(name.as_str().to_owned(), (owner, at.spot));
                Some(())
            }
        }
    }

    /// Takes a point's name; a clash names both places.
    pub(super) fn point(&mut self, id: &PointId, says: Says, at: Node<'_>) {
        match self.points.get(id) {
            Some((_, spot)) => clash(id.as_str(), *spot, at),
            None => drop(self.points.insert(id.clone(), (says, at.spot))),
        }
    }

    /// Remembers that a device may have any point: there is nothing to blame on who names one.
    pub(super) fn unread(&mut self, device: &Segment) {
        self.unread.insert(device.as_str().to_owned());
    }

    /// How many points are known.
    pub(super) fn point_count(&self) -> usize {
        self.points.len()
    }

    /// Takes a template: a point if it is fixed, else a family of points.
    pub(super) fn template(&mut self, template: &PointTemplate, owner: Owner, at: Node<'_>) {
        if let Some(TemplateSegment::Exactly(device)) = template.0.first()
            && self.device(device, owner, at).is_none()
        {
            return;
        }
        match fixed(template) {
            Some(id) => self.point(&id, Says::Anything, at),
            None => self.open.push(template.clone()),
        }
    }

    /// What a point says; none if no source can have it.
    pub(super) fn says(&self, point: &PointId) -> Option<Says> {
        let known = self.points.get(point).map(|(says, _)| *says);
        known.or_else(|| self.may_come(point.as_str()).then_some(Says::Anything))
    }

    /// Whether a pattern matches any point that is known or may come.
    pub(super) fn any(&self, pattern: &str) -> bool {
        self.points.keys().any(|point| overlap(point.as_str(), pattern)) || self.may_come(pattern)
    }

    /// Whether a message may name a point of this pattern, or a device that could not be read may have it. A captured
    /// device is never one that a wire owns.
    fn may_come(&self, pattern: &str) -> bool {
        let device = pattern.split('/').next().unwrap_or_default();
        if self.unread.iter().any(|unread| overlap(unread, device)) {
            return true;
        }
        let is_wired = self.devices.get(device).is_some_and(|(owner, _)| matches!(owner, Owner::Modbus | Owner::Pins));
        !is_wired && self.open.iter().any(|template| overlap(&as_pattern(template), pattern))
    }

    /// The known point that was probably meant.
    pub(super) fn nearest<'s>(&'s self, text: &str, findings: &Findings<'_>) -> Option<&'s str> {
        findings.nearest(text, self.points.keys().map(PointId::as_str))
    }
}

/// Notes that a name is taken, and where.
pub(super) fn clash(name: &str, first: Spot, again: Node<'_>) {
    let place = again.findings.place(first).to_string();
    again.wrong::<()>("check-clash", &[("name", name.into()), ("place", place.into())]);
}

/// The point a template without captures names.
pub(super) fn fixed(template: &PointTemplate) -> Option<PointId> {
    let name = |segment: &TemplateSegment| match segment {
        TemplateSegment::Exactly(name) => Some(name.as_str().to_owned()),
        TemplateSegment::Capture(_) => None,
    };
    let names: Option<Vec<String>> = template.0.iter().map(name).collect();
    PointId::parse(&names?.join("/")).ok()
}

/// The pattern of all points a template may name.
pub(super) fn as_pattern(template: &PointTemplate) -> String {
    let segments: Vec<&str> = template
        .0
        .iter()
        .map(|segment| match segment {
            TemplateSegment::Exactly(name) => name.as_str(),
            TemplateSegment::Capture(_) => "+",
        })
        .collect();
    segments.join("/")
}

/// Whether two patterns can match the same point.
pub(super) fn overlap(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_overlap_when_one_point_fits_both() {
        for (a, b) in [("a/b", "a/b"), ("+/b", "a/+"), ("a/#", "+/b/c"), ("#", "a/b"), ("a/b", "a/b/#")] {
            assert!(overlap(a, b) && overlap(b, a), "{a} {b}");
        }
        for (a, b) in [("a/b", "a/c"), ("a/+", "b/+"), ("a/b", "a/b/c"), ("+/+", "+/+/+"), ("a/#", "b/#")] {
            assert!(!overlap(a, b) && !overlap(b, a), "{a} {b}");
        }
    }
}
