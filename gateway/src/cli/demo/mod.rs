//! `gardu demo`: a whole simulated park in one process, nothing to install, loopback only.
//!
//! The real daemon runs on a temporary folder between a simulated cabinet ([`park`]), two cameras ([`cameras`]) and a
//! simulated command center ([`center`]). A play of incidents goes by, the link to the center is cut and comes back,
//! and at the end the center says what was raised, what arrived and what is missing: nothing may be.

pub mod cameras;
pub mod center;
pub mod ledger;
pub mod paper;
pub mod park;

use std::{
    fs, future, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::{
    cameras::{Camera, Scene},
    center::{Center, Handle, Link},
    ledger::Summary,
    paper::{Colour, Paper},
    park::{Incident, Pace, Park, Unit},
};
use crate::{clock::Clock, config::Language, supervise::Shutdown};

/// One round of the play, unless `--for` says how long it may take.
const ROUND: Duration = Duration::from_secs(60);
/// Shorter, incidents would fall inside one poll and one alarm delay.
const ROUND_MIN: Duration = Duration::from_secs(15);
/// The pond needs 500 s of the park to rise to its limit and a tenth of the round to do it in.
const PARK_SECONDS_A_ROUND: u64 = 12_000;
/// The park's day begins in the late afternoon, so that its lamps come on during the play.
const FROM_SECOND: u64 = 16 * 3_600;
/// After the last incident, delays and telemetry run out within this.
const CALM: Duration = Duration::from_secs(2);
/// How long the gateway may take to deliver what it kept; its reconnect may wait up to a minute.
const SETTLE_MAX: Duration = Duration::from_secs(90);
const GATEWAY: &str = "taman-demo";
const PREFIX: &str = "gardu/v1";

/// How the demonstration goes.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the play takes; without it, it repeats until Ctrl-C.
    pub length: Option<Duration>,
    /// Language of what is printed.
    pub language: Language,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Cabinet(Incident),
    Kolam(Scene),
    Gudang(Scene),
    Center(Link),
}

/// When, in percent of a round; what; and the sentence that announces it.
const PLAY: [(u32, Step, &str); 20] = [
    (10, Step::Cabinet(Incident::DoorOpened), "demo-step-door-opened"),
    (16, Step::Kolam(Scene::Person), "demo-step-person"),
    (22, Step::Cabinet(Incident::PanicPressed), "demo-step-panic"),
    (26, Step::Kolam(Scene::Empty), "demo-step-person-gone"),
    (30, Step::Cabinet(Incident::DoorClosed), "demo-step-door-closed"),
    (34, Step::Cabinet(Incident::UnitDead(Unit::Meter)), "demo-step-meter-dead"),
    (44, Step::Center(Link::Cut), "demo-step-link-cut"),
    (47, Step::Cabinet(Incident::PanicPressed), "demo-step-panic"),
    (49, Step::Gudang(Scene::Person), "demo-step-person-shed"),
    (51, Step::Cabinet(Incident::DoorOpened), "demo-step-door-opened"),
    (53, Step::Cabinet(Incident::UnitBack(Unit::Meter)), "demo-step-meter-back"),
    (55, Step::Cabinet(Incident::DoorClosed), "demo-step-door-closed"),
    (57, Step::Gudang(Scene::Empty), "demo-step-person-gone"),
    (60, Step::Center(Link::Up), "demo-step-link-up"),
    (64, Step::Cabinet(Incident::WaterHigh), "demo-step-water"),
    (72, Step::Cabinet(Incident::MainsLost), "demo-step-mains-lost"),
    (76, Step::Kolam(Scene::Person), "demo-step-person"),
    (80, Step::Cabinet(Incident::MainsBack), "demo-step-mains-back"),
    (84, Step::Kolam(Scene::Empty), "demo-step-person-gone"),
    (86, Step::Cabinet(Incident::WaterNormal), "demo-step-water-normal"),
];

/// Plays the park around `daemon`, which is given the configuration's path, the clock and the moment to stop.
///
/// Returns what the command center counted; `lost` is 0 unless the gateway has a fault.
pub async fn run<D, F>(options: Options, clock: Clock, daemon: D) -> anyhow::Result<Summary>
where
    D: FnOnce(PathBuf, Clock, WaitForCancellationFutureOwned) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let round = options.length.unwrap_or(ROUND).max(ROUND_MIN);
    let folder = Folder::new().context("cannot make a temporary folder")?;
    let speed = u32::try_from(PARK_SECONDS_A_ROUND / round.as_secs()).unwrap_or(u32::MAX).max(1);
    let (park, cabinet) = Park::start(Pace::new(clock.clone(), FROM_SECOND, speed), fastrand::u64(..)).await?;
    let root = format!("{PREFIX}/{GATEWAY}/");
    let paper = Paper::new(Box::new(io::stdout()), Colour::of_stdout(), options.language);
    let (center, handle) = Center::bind(root, paper, clock.clone()).await?;
    let cctv = free_port().context("no free port on loopback")?;
    let path = folder.0.join("gardu.toml");
    fs::write(&path, config(&folder.0, options.language, handle.address, cctv, park.address()))?;

    let (stop, ended) = (Shutdown::new(), Shutdown::new());
    let (kolam, kolam_scenes) = mpsc::channel(16);
    let (gudang, gudang_scenes) = mpsc::channel(16);
    let gateway = async {
        let result = daemon(path, clock.clone(), stop.clone().cancelled_owned()).await;
        ended.cancel();
        result
    };
    let story = async {
        tokio::select! {
            () = ended.cancelled() => {}
            () = play(&options, round, &park, &handle, [&kolam, &gudang]) => {}
        }
        stop.cancel();
    };
    let (result, summary, cabinet, ..) = tokio::join!(
        gateway,
        center.run(ended.clone()),
        cabinet.run(ended.clone()),
        Camera::new("cam07", "kolam", cctv, clock.clone()).run(kolam_scenes, ended.clone()),
        Camera::new("cam09", "gudang", cctv, clock.clone()).run(gudang_scenes, ended.clone()),
        story,
    );
    result?;
    cabinet.map_err(|reason| anyhow::anyhow!("the simulated cabinet: {reason}"))?;
    Ok(summary)
}

/// Incidents in their order, then calm until everything has arrived.
async fn play(
    options: &Options,
    round: Duration,
    park: &Park,
    handle: &Handle,
    [kolam, gudang]: [&mpsc::Sender<Scene>; 2],
) {
    let acts = async {
        loop {
            let mut at = Duration::ZERO;
            for (percent, step, sentence) in PLAY {
                let due = round * percent / 100;
                tokio::time::sleep(due - at).await;
                at = due;
                let _nobody_reads = handle.lines.send(sentence).await;
                match step {
                    Step::Cabinet(incident) => park.apply(incident),
                    Step::Kolam(scene) => drop(kolam.send(scene).await),
                    Step::Gudang(scene) => drop(gudang.send(scene).await),
                    Step::Center(link) => drop(handle.link.send_replace(link)),
                }
            }
            tokio::time::sleep(round - at).await;
            if options.length.is_some() {
                return;
            }
        }
    };
    tokio::select! {
        () = acts => {}
        () = interrupted() => drop(handle.link.send_replace(Link::Up)),
    }
    let _nobody_reads = handle.lines.send("demo-settling").await;
    tokio::time::sleep(CALM).await;
    let mut complete = handle.complete.clone();
    tokio::select! {
        _arrived = complete.wait_for(|complete| *complete) => {}
        () = tokio::time::sleep(SETTLE_MAX) => {}
        () = interrupted() => {}
    }
}

/// Ctrl-C; never, where that cannot be heard.
async fn interrupted() {
    if tokio::signal::ctrl_c().await.is_err() {
        future::pending::<()>().await;
    }
}

/// The configuration of the gateway in the middle.
fn config(folder: &Path, language: Language, center: SocketAddr, cctv: SocketAddr, park: SocketAddr) -> String {
    let gateway = include_str!("gateway.toml")
        .replace("{language}", language.code())
        .replace("{center}", &center.to_string())
        .replace("{outbox}", &folder.join("outbox").display().to_string());
    [gateway, cameras::CONFIG.replace("{address}", &cctv.to_string()), park::config_toml(park)].join("\n")
}

/// A port that was free a moment ago; the gateway itself binds it.
fn free_port() -> io::Result<SocketAddr> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// A folder that goes with its value.
struct Folder(PathBuf);

impl Folder {
    /// A new one that only we may enter; an existing one of that name is an error.
    fn new() -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = std::env::temp_dir().join(format!("gardu-demo-{:016x}", fastrand::u64(..)));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the temporary folder is removed by the system, at the latest at the next boot.
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests;
