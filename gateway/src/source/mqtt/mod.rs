//! MQTT inputs: devices and cameras that publish, through a broker ([`client`]) or straight to the gateway
//! ([`listener`]).
//!
//! Both ends hand every message to an [`intake::Intake`], which makes readings of it, and both keep the publisher's
//! acknowledgement back until the pipeline says that what the message caused is on stable storage. A message that
//! makes no reading is acknowledged at once and counted: it would only come again.
//!
//! Pure: [`json`] (a message to a reading), [`names`] (foreign names), [`devices`] (who owns a device), [`silence`]
//! (who has gone quiet).

pub mod client;
pub mod devices;
pub mod intake;
pub mod json;
pub mod listener;
pub mod names;
pub mod silence;

use self::{
    client::{Broker, ClientTask},
    devices::Devices,
    intake::Intake,
    listener::ingest::ListenTask,
};
use crate::{
    clock::Clock,
    config::{Endpoint, MqttInput},
    metrics::Metrics,
    reading::Segment,
    source::outlet::Outlet,
    supervise::TaskResult,
};

/// Messages of one peer that may wait for their commit. More than one serial camera ever has under way, and enough for
/// a bridge to fill a group commit; at 64 KiB each it bounds a peer to 2 MiB.
pub const UNCOMMITTED_MAX: u16 = 32;

/// Runs one MQTT input of `gateway` until shutdown.
pub async fn run(
    gateway: Segment,
    input: MqttInput,
    devices: Devices,
    outlet: Outlet,
    clock: Clock,
    metrics: Metrics,
) -> TaskResult {
    let intake = Intake::new(input.name, input.subscriptions, devices, &metrics, clock.now());
    match input.endpoint {
        Endpoint::Broker { url, version, login, tls, keep_alive } => {
            let broker = Broker { url, version, login, tls, keep_alive };
            ClientTask::new(&gateway, broker, intake, outlet, clock).run().await
        }
        Endpoint::Listen { address, login, tls } => {
            ListenTask::new(address, login, tls, intake, outlet, clock).run().await
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        clock::Now,
        config::{PointTemplate, Report, Subscription, TemplateSegment, TopicLevel},
        pipeline::Input,
        supervise::{Pulse, Shutdown},
    };

    pub(crate) const NOW: Now = Now { mono_ms: 50_000, wall_ms: 1_795_262_671_220, trusted: true };

    /// A subscription to bare values, spelled as in the configuration.
    pub(crate) fn subscription(topic: &str, point: &str) -> Subscription {
        let capture = |text: &str| text.strip_prefix('{')?.strip_suffix('}').map(str::to_owned);
        let level = |text: &str| capture(text).map_or(TopicLevel::Exactly(text.into()), TopicLevel::Capture);
        let exactly = |text: &str| TemplateSegment::Exactly(Segment::parse(text).expect("a name"));
        let segment = |text: &str| capture(text).map_or_else(|| exactly(text), TemplateSegment::Capture);
        Subscription {
            topic: topic.split('/').map(level).collect(),
            point: PointTemplate(point.split('/').map(segment).collect()),
            value: String::new(),
            time: None,
            values: Vec::new(),
            stale: None,
            unit: None,
            report: Report::Interval,
        }
    }

    /// The input `cctv` of `sensors/{device}/{name}`, its outlet, and the pipeline's end of it.
    pub(crate) fn input(clock: &Clock) -> (Intake, Outlet, mpsc::Receiver<Input>) {
        let (pipeline, inputs) = mpsc::channel(8);
        let outlet = Outlet { pipeline, beat: Pulse::new(clock.clone()).stage("cctv"), shutdown: Shutdown::default() };
        let name = Segment::parse("cctv").expect("a name");
        let subscriptions = vec![subscription("sensors/{device}/{name}", "{device}/{name}")];
        let intake = Intake::new(name, subscriptions, Devices::default(), &Metrics::new(), clock.now());
        (intake, outlet, inputs)
    }
}
