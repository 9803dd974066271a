//! What the configuration says about a point: its unit and how it is reported.
//!
//! Points of Modbus and of the gateway's own pins are known from the start. MQTT captures name points as messages come in;
//! those are matched against their subscription's template.

use std::{collections::HashMap, sync::Arc};

use super::{Config, PointTemplate, Report, TemplateSegment};
use crate::{alarm::rule::Selector, reading::PointId};

/// Unit and report of every point.
#[derive(Debug, Clone)]
pub struct Points {
    known: HashMap<PointId, About>,
    captured: Vec<(Selector, About)>,
}

/// What the configuration says about one point.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// Unit for people.
    pub unit: Option<Arc<str>>,
    /// How it is reported as telemetry.
    pub report: Report,
}

impl Points {
    /// Gathers every point of the configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let devices = config.modbus.iter().flat_map(|bus| &bus.devices);
        let points = devices.flat_map(|device| &device.points);
        let modbus = points.map(|p| (p.id.clone(), About { unit: p.unit.clone(), report: p.report }));
        let contacts = config.gpio.iter().flat_map(|gpio| &gpio.contacts);
        let gpio = contacts.flat_map(|contact| {
            let about = About { unit: None, report: contact.report };
            [(contact.state.clone(), about.clone()), (contact.events.clone(), about)]
        });
        let i2c = config.i2c.iter().flat_map(|device| &device.points);
        let i2c = i2c.map(|p| (p.id.clone(), About { unit: p.unit.clone(), report: p.report }));
        let subscriptions = config.mqtt.iter().flat_map(|input| &input.subscriptions);
        Self {
            known: modbus.chain(gpio).chain(i2c).collect(),
            captured: subscriptions
                .map(|s| (s.point.selector(), About { unit: s.unit.clone(), report: s.report }))
                .collect(),
        }
    }

    /// What is said about `point`; a point nobody configured (such as `panel/communication`) has no unit and is not
    /// reported.
    #[must_use]
    pub fn about(&self, point: &PointId) -> About {
        let captured = || self.captured.iter().find(|(selector, _)| selector.matches(point)).map(|(_, about)| about);
        self.known.get(point).or_else(captured).cloned().unwrap_or(About { unit: None, report: Report::Off })
    }

    /// Points that are only matched by selectors.
    #[cfg(test)]
    pub(crate) fn for_tests(captured: Vec<(Selector, About)>) -> Self {
        Self { known: HashMap::new(), captured }
    }

    /// The points known without any message, with what is said about them.
    pub fn known(&self) -> impl Iterator<Item = (&PointId, &About)> {
        self.known.iter()
    }
}

impl PointTemplate {
    /// Which points this template can make.
    #[must_use]
    pub fn selector(&self) -> Selector {
        let segments: Vec<&str> = self
            .0
            .iter()
            .map(|segment| match segment {
                TemplateSegment::Exactly(name) => name.as_str(),
                TemplateSegment::Capture(_) => "+",
            })
            .collect();
        Selector::parse(&segments.join("/")).expect("a template has the segments of a point")
    }
}
