//! Every number Prometheus sees, in one place. Names carry base units, counters end in `_total`, labels are bounded by
//! the configuration or by an enum (DESIGN.md §7).

use prometheus::{
    CounterVec, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, core::Collector,
    process_collector::ProcessCollector,
};
/// Handles that others may keep: `prometheus` itself is named only here and in `http`.
pub use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

/// Handles to every metric; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// What `/metrics` serves.
    pub registry: Registry,
    /// `gardu_readings_total{device}`
    pub readings: IntCounterVec,
    /// `gardu_read_errors_total{device,reason}`
    pub read_errors: IntCounterVec,
    /// `gardu_modbus_request_seconds{bus}`
    pub modbus_request_seconds: HistogramVec,
    /// `gardu_modbus_busy_seconds_total{bus}`: its rate is the bus's utilisation
    pub modbus_busy_seconds: CounterVec,
    /// `gardu_modbus_poll_late_seconds{bus}`
    pub modbus_poll_late_seconds: HistogramVec,
    /// `gardu_modbus_connects_total{bus}`
    pub modbus_connects: IntCounterVec,
    /// `gardu_modbus_line_faults_total{bus,fault}`: serial lines only
    pub modbus_line_faults: IntCounterVec,
    /// `gardu_modbus_quarantine_seconds_total{bus}`: part of the busy seconds
    pub modbus_quarantine_seconds: CounterVec,
    /// `gardu_modbus_discarded_bytes_total{bus}`: noise, echoes of others, late answers
    pub modbus_discarded_bytes: IntCounterVec,
    /// `gardu_mqtt_messages_total{input,result}`; result: taken, refused, ignored
    pub mqtt_messages: IntCounterVec,
    /// `gardu_alarm_transitions_total{severity,kind}`
    pub alarm_transitions: IntCounterVec,
    /// `gardu_alarms{state}`
    pub alarms: IntGaugeVec,
    /// `gardu_alarms_raised_10m`
    pub alarms_raised_10m: IntGauge,
    /// `gardu_points_refused_total`: readings of points beyond the limit
    pub points_refused: IntCounter,
    /// `gardu_outbox_records{lane}`
    pub outbox_records: IntGaugeVec,
    /// `gardu_outbox_bytes{lane}`
    pub outbox_bytes: IntGaugeVec,
    /// `gardu_outbox_oldest_age_seconds{lane}`
    pub outbox_oldest_age_seconds: IntGaugeVec,
    /// `gardu_outbox_lost_total{lane,reason}`
    pub outbox_lost: IntCounterVec,
    /// `gardu_outbox_evictions_total{lane,reason}`: generations from which something was given up
    pub outbox_evictions: IntCounterVec,
    /// `gardu_outbox_disk_bytes`: allocated for everything below the outbox's folder
    pub outbox_disk_bytes: IntGauge,
    /// `gardu_outbox_quota_bytes`
    pub outbox_quota_bytes: IntGauge,
    /// `gardu_outbox_full_in_seconds`: `+Inf` while it does not grow
    pub outbox_full_in_seconds: Gauge,
    /// `gardu_outbox_disk_full`: 1 while the room that was kept for that is in use
    pub outbox_disk_full: IntGauge,
    /// `gardu_outbox_in_memory`: 1 while its folder cannot be used
    pub outbox_in_memory: IntGauge,
    /// `gardu_outbox_waits_for_room`: 1 while nothing can be stored
    pub outbox_waits_for_room: IntGauge,
    /// `gardu_outbox_sync_seconds{chain}`
    pub outbox_sync_seconds: HistogramVec,
    /// `gardu_outbox_written_bytes_total{chain}`: payload handed to sled
    pub outbox_written_bytes: IntCounterVec,
    /// `gardu_process_written_bytes_total`: what the kernel counts as written to storage
    pub process_written_bytes: IntCounter,
    /// `gardu_process_written_bytes_per_day`: forecast from the last hours; 0 while nothing is known
    pub process_written_bytes_per_day: IntGauge,
    /// `gardu_outbox_blobs_total{chain}`: generations with files that sled does not sync
    pub outbox_blobs: IntCounterVec,
    /// `gardu_uplink_connected`
    pub uplink_connected: IntGauge,
    /// `gardu_uplink_publishes_total{lane}`
    pub uplink_publishes: IntCounterVec,
    /// `gardu_uplink_refused_total{lane,reason}`
    pub uplink_refused: IntCounterVec,
    /// `gardu_uplink_puback_seconds`
    pub uplink_puback_seconds: Histogram,
    /// `gardu_uplink_in_flight`
    pub uplink_in_flight: IntGauge,
    /// `gardu_uplink_reconnects_total{reason}`
    pub uplink_reconnects: IntCounterVec,
    /// `gardu_uplink_sent_bytes_total`: payload and topics, without TCP
    pub uplink_sent_bytes: IntCounter,
    /// `gardu_end_to_end_seconds{lane}`: from field stamp to confirmation, in this boot
    pub end_to_end_seconds: HistogramVec,
    /// `gardu_commands_total{command,result}`
    pub commands: IntCounterVec,
    /// `gardu_clock_trusted`
    pub clock_trusted: IntGauge,
    /// `gardu_stage_idle_seconds{stage}`: time since a stage last made progress
    pub stage_idle_seconds: IntGaugeVec,
}

/// From one fdatasync to a minute of outage: 0.5 ms doubling to 65 s.
fn seconds_buckets() -> Vec<f64> {
    (0..18).map(|i| 0.0005 * f64::from(1_u32 << i)).collect()
}

impl Metrics {
    /// Registers everything; a name registered twice is a bug in this file.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        r.register(Box::new(ProcessCollector::for_self())).expect("registered once");
        let counters =
            |name, help, labels: &[&str]| put(r, IntCounterVec::new(opts(name, help), labels).expect("valid names"));
        let gauges =
            |name, help, labels: &[&str]| put(r, IntGaugeVec::new(opts(name, help), labels).expect("valid names"));
        let times = |name, help, labels: &[&str]| {
            put(
                r,
                HistogramVec::new(HistogramOpts::from(opts(name, help)).buckets(seconds_buckets()), labels)
                    .expect("valid names"),
            )
        };
        let gauge = |name, help| put(r, IntGauge::with_opts(opts(name, help)).expect("valid name"));
        let build = gauges("build_info", "1, with what runs here.", &["version"]);
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Self {
            readings: counters("readings_total", "Readings taken.", &["device"]),
            read_errors: counters("read_errors_total", "Readings of bad quality.", &["device", "reason"]),
            modbus_request_seconds: times("modbus_request_seconds", "Round trip of one request.", &["bus"]),
            modbus_busy_seconds: put(
                r,
                CounterVec::new(opts("modbus_busy_seconds_total", "Time spent in requests."), &["bus"])
                    .expect("valid names"),
            ),
            modbus_poll_late_seconds: times(
                "modbus_poll_late_seconds",
                "Start of a poll after its due time.",
                &["bus"],
            ),
            modbus_connects: counters("modbus_connects_total", "Connections opened.", &["bus"]),
            modbus_line_faults: counters(
                "modbus_line_faults_total",
                "Requests on a serial line without a believable answer.",
                &["bus", "fault"],
            ),
            modbus_quarantine_seconds: put(
                r,
                CounterVec::new(
                    opts("modbus_quarantine_seconds_total", "Time serial lines were kept silent after a fault."),
                    &["bus"],
                )
                .expect("valid names"),
            ),
            modbus_discarded_bytes: counters(
                "modbus_discarded_bytes_total",
                "Bytes on serial lines that nobody asked for.",
                &["bus"],
            ),
            mqtt_messages: counters("mqtt_messages_total", "Messages received.", &["input", "result"]),
            alarm_transitions: counters("alarm_transitions_total", "Alarm transitions.", &["severity", "kind"]),
            alarms: gauges("alarms", "Alarms by state.", &["state"]),
            alarms_raised_10m: gauge("alarms_raised_10m", "Alarms raised in the last 10 minutes."),
            points_refused: put(
                r,
                IntCounter::with_opts(opts("points_refused_total", "Readings of points beyond the limit."))
                    .expect("valid name"),
            ),
            outbox_records: gauges("outbox_records", "Records waiting for delivery.", &["lane"]),
            outbox_bytes: gauges("outbox_bytes", "Bytes of the records waiting.", &["lane"]),
            outbox_oldest_age_seconds: gauges("outbox_oldest_age_seconds", "Age of the oldest waiting.", &["lane"]),
            outbox_lost: counters("outbox_lost_total", "Records declared lost.", &["lane", "reason"]),
            outbox_evictions: counters(
                "outbox_evictions_total",
                "Generations from which something was given up.",
                &["lane", "reason"],
            ),
            outbox_disk_bytes: gauge("outbox_disk_bytes", "What the outbox takes on the disk."),
            outbox_quota_bytes: gauge("outbox_quota_bytes", "What the outbox may take."),
            outbox_full_in_seconds: put(
                r,
                Gauge::with_opts(opts("outbox_full_in_seconds", "When the outbox is full if it goes on growing."))
                    .expect("valid name"),
            ),
            outbox_disk_full: gauge(
                "outbox_disk_full",
                "1 while the disk is full and the room kept for that is in use.",
            ),
            outbox_in_memory: gauge(
                "outbox_in_memory",
                "1 while the outbox cannot be used and records are kept in memory.",
            ),
            outbox_waits_for_room: gauge("outbox_waits_for_room", "1 while nothing can be stored for want of room."),
            outbox_sync_seconds: times("outbox_sync_seconds", "Duration of one durable commit.", &["chain"]),
            outbox_written_bytes: counters("outbox_written_bytes_total", "Bytes handed to the store.", &["chain"]),
            process_written_bytes: put(
                r,
                IntCounter::with_opts(opts("process_written_bytes_total", "Bytes this process wrote to storage."))
                    .expect("valid name"),
            ),
            process_written_bytes_per_day: gauge(
                "process_written_bytes_per_day",
                "Bytes a day at the rate of the last hours; 0 while unknown.",
            ),
            outbox_blobs: counters("outbox_blobs_total", "Generations with files a power cut can destroy.", &["chain"]),
            uplink_connected: gauge("uplink_connected", "1 while the command center's broker accepts us."),
            uplink_publishes: counters("uplink_publishes_total", "Records published, repeats included.", &["lane"]),
            uplink_refused: counters("uplink_refused_total", "Publishes the broker refused.", &["lane", "reason"]),
            uplink_puback_seconds: put(
                r,
                Histogram::with_opts(
                    HistogramOpts::from(opts("uplink_puback_seconds", "Publish to PUBACK.")).buckets(seconds_buckets()),
                )
                .expect("valid name"),
            ),
            uplink_in_flight: gauge("uplink_in_flight", "Publishes waiting for their PUBACK."),
            uplink_reconnects: counters("uplink_reconnects_total", "Connections that ended.", &["reason"]),
            uplink_sent_bytes: put(
                r,
                IntCounter::with_opts(opts("uplink_sent_bytes_total", "Topics and payloads sent."))
                    .expect("valid name"),
            ),
            end_to_end_seconds: times("end_to_end_seconds", "Field stamp to confirmation.", &["lane"]),
            commands: counters("commands_total", "Commands answered.", &["command", "result"]),
            clock_trusted: gauge("clock_trusted", "1 while the kernel calls the clock synchronised."),
            stage_idle_seconds: gauges("stage_idle_seconds", "Time since a stage made progress.", &["stage"]),
            registry,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(format!("gardu_{name}"), help)
}

fn put<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> C {
    registry.register(Box::new(metric.clone())).expect("every name is registered once");
    metric
}
