//! Who owns a device: one source each, so that no MQTT client can forge the readings of a Modbus device, of the
//! gateway's own pins or of another input.
//!
//! Names that the configuration spells out belong to their source from the start; a captured name belongs to the input
//! that hears it first. The table is shared by the inputs and bounded by their tables of names.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::json::Refused;
use crate::{
    config::{Config, TemplateSegment},
    reading::Segment,
};

/// The device that the gateway itself speaks as.
const RESERVED: &str = "gateway";

/// Device to owner; clones share the table.
#[derive(Debug, Clone, Default)]
pub struct Devices(Arc<Mutex<HashMap<String, Arc<str>>>>);

impl Devices {
    /// The owners that the configuration names.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut owners: HashMap<String, Arc<str>> = HashMap::new();
        owners.insert(RESERVED.into(), "the gateway".into());
        for bus in &config.modbus {
            for device in &bus.devices {
                owners.insert(device.name.to_string(), format!("the Modbus bus `{}`", bus.name).into());
            }
        }
        let pins = config.gpio.iter().map(|gpio| &gpio.name).chain(config.i2c.iter().map(|device| &device.name));
        owners.extend(pins.map(|device| (device.to_string(), "the gateway's own pins".into())));
        for input in &config.mqtt {
            let templates = input.subscriptions.iter().filter_map(|subscription| subscription.point.0.first());
            for template in templates {
                if let TemplateSegment::Exactly(device) = template {
                    owners.entry(device.to_string()).or_insert_with(|| owner(&input.name));
                }
            }
        }
        Self(Arc::new(Mutex::new(owners)))
    }

    /// Whether `device` is, or now becomes, a device of `input`.
    pub fn claim(&self, device: &str, input: &Segment) -> Result<(), Refused> {
        let mut owners = self.0.lock().expect("no panic while the owners are held");
        let ours = owner(input);
        match owners.get(device) {
            Some(theirs) if *theirs == ours => Ok(()),
            Some(theirs) => Err(Refused::OtherSource { device: device.into(), owner: theirs.to_string() }),
            None => {
                owners.insert(device.into(), ours);
                Ok(())
            }
        }
    }
}

fn owner(input: &Segment) -> Arc<str> {
    format!("the MQTT input `{input}`").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_belongs_to_whoever_came_first() {
        let devices = Devices::default();
        let shared = devices.clone();
        let [cctv, lora] = ["cctv", "lora"].map(|name| Segment::parse(name).expect("name"));
        assert_eq!(devices.claim("cam07", &cctv), Ok(()));
        assert_eq!(shared.claim("cam07", &cctv), Ok(()));
        let refused = devices.claim("cam07", &lora).expect_err("taken");
        assert_eq!(refused.to_string(), "device `cam07` belongs to the MQTT input `cctv`: name the point differently");
    }
}
