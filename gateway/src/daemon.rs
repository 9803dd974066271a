//! The wiring: who is started, in which order, and who stops first. Only this file knows everybody.
//!
//! Start: the store, then every address that is bound, then the tasks, so that a start that cannot succeed says why
//! before anything moved. Stop: the sources end and let go of the pipeline's queue; the uplink drains and lets go as
//! well; the pipeline takes what is left and lets go of the store; the store writes and ends.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    config::{Config, Outbox, points::Points},
    flash::FlashTask,
    http::{BindError, HttpTask, Names, OutboxView, View},
    keeper::{self, KeeperTask},
    machine::Machine,
    metrics::Metrics,
    notify::{Manager, Summary, WatchdogTask},
    pipeline::{INPUT_QUEUE, Input, Pipeline, Raised, core::Core},
    record::Lane,
    source::{
        gpio::{self, GpioTask},
        i2c::{self, I2cTask},
        modbus::bus::BusTask,
        mqtt::{self, devices::Devices},
        outlet::Outlet,
    },
    status::{About, DeviceUpdate, StatusBoard},
    store::{self, OpenError, Space, Store},
    supervise::{Failure, Pulse, Shutdown, Supervisor, TaskResult},
    uplink::{message, session::UplinkTask},
};

/// How long everything together may take to stop: the uplink's drain, one slow sync of each chain, and room. systemd's
/// own limit must be longer.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How often it is tried whether an outbox that cannot be used can be: an alarm in memory is at risk until then.
const LOOK_FOR_OUTBOX_EVERY: Duration = Duration::from_secs(10);

/// How long a stop waits for room once there is none: what goes out in this time may still give some back.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// A daemon that has started and is not stopped yet.
#[derive(Debug)]
pub struct Daemon {
    supervisor: Supervisor,
    manager: Manager,
    space: watch::Receiver<Space>,
    /// Cancelled when the outbox, which is in memory, can be used again.
    outbox_usable: CancellationToken,
}

/// Why a daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// Its outbox was in memory, and can be used again: a new start takes in what memory holds.
    OutboxUsable,
}

/// What every task is handed.
struct Handles {
    clock: Clock,
    metrics: Metrics,
    pulse: Pulse,
    shutdown: Shutdown,
}

impl Daemon {
    /// Opens the store, binds the addresses and starts every task.
    pub async fn start(mut config: Config, clock: Clock, manager: Manager) -> Result<Self, StartError> {
        let mut supervisor = Supervisor::new();
        let pulse = Pulse::new(clock.clone());
        let handles = Handles { metrics: Metrics::new(), shutdown: supervisor.shutdown(), clock, pulse };
        let board = StatusBoard::new(About::of(&config), handles.clock.clone(), handles.pulse.clone());

        let ((store, recovered, committers), unusable) = open_outbox(&mut config, &board, &handles)?;
        for (bus, device) in config.modbus.iter().flat_map(|bus| bus.devices.iter().map(move |device| (bus, device))) {
            board.set_device(DeviceUpdate::unheard(device.name.clone(), bus.name.as_str()));
        }
        let chips = config.gpio.iter().map(|gpio| (&gpio.name, &gpio.chip));
        for (device, file) in chips.chain(config.i2c.iter().map(|device| (&device.name, &device.bus))) {
            board.set_device(DeviceUpdate::unheard(device.clone(), &file.to_string_lossy()));
        }
        board.set_lanes(Lane::ALL.map(|lane| (lane, store.head(lane))));
        let space = store.space();
        board.set_space(space.clone());
        serve(&config, &board, &store, &handles, &mut supervisor).await?;

        for (name, committer) in committers {
            supervisor.thread(name, committer);
        }
        let outbox_usable = CancellationToken::new();
        if let Some(options) = unusable {
            let (usable, shutdown) = (outbox_usable.clone(), handles.shutdown.clone());
            supervisor.thread("outbox", move || look_for_outbox(&options, &usable, &shutdown));
        }
        let (readings, inputs) = mpsc::channel(INPUT_QUEUE);
        let interval_ms = u64::try_from(config.telemetry.interval.as_millis()).unwrap_or(u64::MAX);
        let (boot, now) = (handles.clock.boot().clone(), handles.clock.now());
        let (core, first) = Core::new(recovered, config.rules.clone(), Points::new(&config), interval_ms, boot, now);
        let pipeline = Pipeline {
            core,
            first,
            inputs,
            store: store.clone(),
            board: board.clone(),
            clock: handles.clock.clone(),
            metrics: handles.metrics.clone(),
            beat: handles.pulse.stage("pipeline"),
            raised: Raised::default(),
        };
        pipeline.show_alarms();
        supervisor.task("pipeline", pipeline.run());
        let Handles { clock, metrics, pulse, shutdown } = &handles;
        let (clock, metrics, shutdown, beat) =
            (clock.clone(), metrics.clone(), shutdown.clone(), pulse.stage("uplink"));
        let keeper = KeeperTask {
            outbox: config.outbox.clone(),
            store: store.clone(),
            pipeline: readings.clone(),
            board: board.clone(),
            clock: clock.clone(),
            metrics: metrics.clone(),
            beat: pulse.stage("keeper"),
            shutdown: shutdown.clone(),
        };
        supervisor.task("keeper", keeper.run());
        let uplink = UplinkTask::new(&config, store, readings.clone(), clock, metrics, beat, shutdown, board.clone());
        supervisor.task("uplink", uplink.run());
        watch_storage(&config, &readings, &board, &handles, &mut supervisor);
        sources(config, &readings, &handles, &mut supervisor);
        let summary = Summary(Box::new({
            let board = board.clone();
            move || board.summary()
        }));
        let watchdog = WatchdogTask { manager: manager.clone(), pulse: handles.pulse.clone(), summary };
        supervisor.task("watchdog", watchdog.run(handles.shutdown.clone()));
        board.set_ready();
        manager.ready();
        Ok(Self { supervisor, manager, space, outbox_usable })
    }

    /// Runs until `stop` resolves, the outbox can be used again or a task ends, then drains within its bound.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<Ended, Failure> {
        let Self { supervisor, manager, space, outbox_usable } = self;
        let mut ended = Ended::Stopped;
        let told = async {
            tokio::select! {
                () = stop => manager.stopping(),
                () = outbox_usable.cancelled() => ended = Ended::OutboxUsable,
            }
        };
        supervisor.run(told, DRAIN_MAX, waits_in_vain(space)).await?;
        Ok(ended)
    }
}

/// Resolves when nothing can be stored for a while: at a stop some wait for room then, and everybody else for them.
async fn waits_in_vain(mut space: watch::Receiver<Space>) {
    loop {
        if space.wait_for(|space| *space == Space::None).await.is_err() {
            // The store has ended, as it should.
            return std::future::pending().await;
        }
        let room = space.wait_for(|space| *space != Space::None);
        match tokio::time::timeout(ROOM_PATIENCE, room).await.map(|room| room.is_ok()) {
            Ok(true) => {}
            Ok(false) => return std::future::pending().await,
            Err(_) => break,
        }
    }
    tracing::warn!("nothing can be stored: stopping without what waits for room, which nobody was promised");
}

/// Opens the outbox; where its folder cannot be used, one in memory, which `config` describes then. Returns what cannot be
/// used as well.
fn open_outbox(
    config: &mut Config,
    board: &StatusBoard,
    handles: &Handles,
) -> Result<(store::Opened, Option<store::Options>), OpenError> {
    let Outbox { path, max_size, .. } = &mut config.outbox;
    let memory = store::memory::folder(path);
    let options = store::Options {
        path: path.clone(),
        machine: Machine::this(),
        boot: handles.clock.boot().clone(),
        generation_size: keeper::generation_size(*max_size),
        memory: Some(memory.clone()),
    };
    let unusable = match store::open(&options, &handles.metrics) {
        Err(error @ (OpenError::InUse { .. } | OpenError::Random(_))) => return Err(error),
        Err(error) => error,
        Ok(opened) => return Ok((opened, None)),
    };
    *max_size = store::memory::SIZE_MAX.min(*max_size);
    let in_memory = store::Options { generation_size: keeper::generation_size(*max_size), ..options.clone() };
    let opened = store::open_in_memory(&in_memory, &memory, &handles.metrics).map_err(|error| {
        tracing::error!("nor can it be kept in memory: {error}");
        unusable.clone()
    })?;
    tracing::error!(reason = %unusable, "the outbox cannot be used: records are in memory, and a power cut takes them");
    board.set_unusable(unusable.to_string());
    handles.metrics.outbox_in_memory.set(1);
    *path = memory;
    Ok((opened, Some(options)))
}

/// Tries again and again whether the outbox can be used.
fn look_for_outbox(options: &store::Options, usable: &CancellationToken, shutdown: &Shutdown) -> TaskResult {
    let runtime = tokio::runtime::Handle::current();
    let pause = || async { tokio::time::timeout(LOOK_FOR_OUTBOX_EVERY, shutdown.cancelled()).await };
    while runtime.block_on(pause()).is_err() {
        if store::can_be_opened(options).is_ok() {
            tracing::info!("the outbox can be used again: the daemon starts anew with it");
            usable.cancel();
            runtime.block_on(shutdown.cancelled());
        }
    }
    Ok(())
}

/// Page, API, metrics and health.
async fn serve(
    config: &Config,
    board: &StatusBoard,
    store: &Store,
    handles: &Handles,
    supervisor: &mut Supervisor,
) -> Result<(), BindError> {
    let about = message::About::new(&config.gateway, &config.command_center.topic_prefix);
    let outbox = OutboxView::new(store.clone(), about, config.outbox.path.clone(), config.outbox.max_size);
    let view = View {
        board: board.clone(),
        metrics: handles.metrics.clone(),
        pulse: handles.pulse.clone(),
        clock: handles.clock.clone(),
        outbox: Some(outbox),
    };
    let names = Names::of(&config.gateway.id);
    let http = HttpTask::bind(&config.http, &names, view, handles.pulse.stage("http")).await?;
    supervisor.task("http", http.run(handles.shutdown.clone()));
    Ok(())
}

/// What is written to the card.
fn watch_storage(
    config: &Config,
    readings: &mpsc::Sender<Input>,
    board: &StatusBoard,
    handles: &Handles,
    supervisor: &mut Supervisor,
) {
    let flash = FlashTask {
        budget_bytes: config.outbox.write_budget_bytes,
        pipeline: readings.clone(),
        board: board.clone(),
        metrics: handles.metrics.clone(),
        clock: handles.clock.clone(),
        beat: handles.pulse.stage("flash"),
    };
    supervisor.task("flash", flash.run(handles.shutdown.clone()));
}

/// One task a bus and one an MQTT input, and one thread a chip on the gateway's own pins.
fn sources(config: Config, readings: &mpsc::Sender<Input>, handles: &Handles, supervisor: &mut Supervisor) {
    let Handles { clock, metrics, pulse, shutdown } = handles;
    let outlet =
        |stage: &str| Outlet { pipeline: readings.clone(), beat: pulse.stage(stage), shutdown: shutdown.clone() };
    let devices = Devices::of(&config);
    for bus in config.modbus {
        let name = format!("modbus {}", bus.name);
        let task = BusTask::new(bus, clock.clone(), metrics.clone(), outlet(&name));
        supervisor.task(name, task.run());
    }
    let runtime = tokio::runtime::Handle::current();
    for gpio in config.gpio {
        let (name, header) = (format!("gpio {}", gpio.name), gpio::Header(gpio.clone()));
        let task = GpioTask::new(gpio, header, clock.clone(), metrics.clone(), outlet(&name));
        let runtime = runtime.clone();
        supervisor.thread(name, move || runtime.block_on(task.run()));
    }
    for device in config.i2c {
        let name = format!("i2c {}", device.name);
        let task = I2cTask::new(device, i2c::open, clock.clone(), metrics.clone(), outlet(&name));
        let runtime = runtime.clone();
        supervisor.thread(name, move || runtime.block_on(task.run()));
    }
    for input in config.mqtt {
        let name = format!("mqtt {}", input.name);
        let (gateway, devices, outlet) = (config.gateway.id.clone(), devices.clone(), outlet(&name));
        supervisor.task(name, mqtt::run(gateway, input, devices, outlet, clock.clone(), metrics.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_in_vain_only_while_nothing_can_be_stored() {
        let space = watch::Sender::new(Space::Tight);
        let in_vain = waits_in_vain(space.subscribe());
        tokio::pin!(in_vain);
        let mut resolves = async |within: Duration| tokio::time::timeout(within, &mut in_vain).await.is_ok();
        assert!(!resolves(2 * DRAIN_MAX).await, "what waits is stored");
        space.send_replace(Space::None);
        assert!(!resolves(ROOM_PATIENCE / 2).await);
        space.send_replace(Space::Enough);
        assert!(!resolves(2 * DRAIN_MAX).await, "there was room in time");
        space.send_replace(Space::None);
        assert!(resolves(2 * ROOM_PATIENCE).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_has_ended_needs_no_room() {
        let space = watch::Sender::new(Space::Enough);
        let in_vain = waits_in_vain(space.subscribe());
        drop(space);
        assert!(tokio::time::timeout(2 * DRAIN_MAX, in_vain).await.is_err());
    }
}
