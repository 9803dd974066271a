//! Serial lines against a slave that does every wrong thing: on ends of a pseudo-terminal at the pace of a real line, over
//! TCP, and, exactly repeatable, in stopped time.

use std::path::Path;

use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::{TcpListener, TcpStream},
};
use tokio_serial::SerialPort;

use super::{
    slave::{Cable, Deed, FAULTS, Slave},
    *,
};
use crate::{
    config::{Parity, SerialLine},
    source::modbus::{
        Request,
        decode::Answer,
        line::{Fault, Line, Quarantine},
        poll::Trouble,
        port,
    },
};

const UNIT: u8 = 7;

pub(super) fn serial(baud: u32) -> SerialLine {
    SerialLine { baud, parity: Parity::None, stop_bits: 1 }
}

fn bus(link: Link, devices: Vec<Device>) -> Bus {
    Bus { name: Segment::parse("cabinet").expect("a segment"), link, timeout: TIMEOUT, devices }
}

fn line<S: AsyncRead + AsyncWrite + Unpin>(stream: S, wire: SerialLine, metrics: &Metrics) -> Line<S> {
    let link = Link::Rtu { path: "/dev/ttyUSB0".into(), line: wire };
    Line::new(stream, &bus(link, Vec::new()), wire, metrics.clone())
}

fn holding(address: u16, count: u16) -> Request {
    Request { table: Table::Holding, address, count, points: Vec::new() }
}

/// How reads after a fault went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Tally {
    right: u32,
    errors: u32,
    wrong: u32,
}

impl Tally {
    fn add(&mut self, address: u16, count: u16, result: &Result<Answer, Trouble>) {
        let expect: Vec<u16> = (0..count).map(|n| truth(UNIT, address + n)).collect();
        match result {
            Ok(Answer::Registers(words)) if *words == expect => self.right += 1,
            Ok(_) => self.wrong += 1,
            Err(_) => self.errors += 1,
        }
    }
}

/// Between two beats of [`Pulse`].
const BEAT: Duration = Duration::from_millis(5);
/// A machine that stands still for longer may make an answer later than any slave would, and proves nothing.
const STOOD_STILL: Duration = Duration::from_millis(50);
/// How often a fault is tried on a machine that stands still.
const TRIES: u32 = 20;

/// Knows for how long this runtime, master and slave in it, stood still.
struct Pulse {
    longest: Arc<Mutex<Duration>>,
    _beats: JoinSet<()>,
}

impl Pulse {
    fn start() -> Self {
        let longest = Arc::<Mutex<Duration>>::default();
        let (noted, mut beats) = (longest.clone(), JoinSet::new());
        beats.spawn(async move {
            loop {
                let began = tokio::time::Instant::now();
                sleep(BEAT).await;
                let mut longest = noted.lock().expect("no panic while it is held");
                *longest = longest.max(began.elapsed() - BEAT);
            }
        });
        Self { longest, _beats: beats }
    }

    /// Whether it did since this was last asked.
    fn stood_still(&self) -> bool {
        std::mem::take(&mut *self.longest.lock().expect("no panic while it is held")) > STOOD_STILL
    }
}

/// Each fault, then five reads of equal shape: nothing but the address, which no answer carries, tells them apart.
async fn table<M, S>(mut master: M, slave_end: S, wire: SerialLine, quarantine: Quarantine) -> Tally
where
    M: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let slave = Slave::default();
    let serving = tokio::spawn(slave.clone().serve(slave_end, wire));
    let mut all = Tally::default();
    eprintln!("{} baud, quarantine {quarantine:?}: fault, follow-ups right, errors, wrong", wire.baud);
    let pulse = Pulse::start();
    for deed in FAULTS {
        for tries in 1.. {
            pulse.stood_still();
            let tally = follow_ups(&mut master, &slave, wire, (deed, quarantine)).await;
            if pulse.stood_still() && tries < TRIES {
                continue;
            }
            eprintln!("{:>14}  {}  {}  {}", format!("{deed:?}"), tally.right, tally.errors, tally.wrong);
            all.right += tally.right;
            all.errors += tally.errors;
            all.wrong += tally.wrong;
            break;
        }
    }
    eprintln!("{:>14}  {}  {}  {}", "all", all.right, all.errors, all.wrong);
    serving.abort();
    all
}

/// One fault, and the reads after it.
async fn follow_ups<M>(master: M, slave: &Slave, wire: SerialLine, (deed, quarantine): (Deed, Quarantine)) -> Tally
where
    M: AsyncRead + AsyncWrite + Unpin,
{
    let mut line = line(master, wire, &Metrics::new());
    line.quarantine = quarantine;
    // An answer of many bytes, so that one in a lump is too early on the slowest machine.
    let count = if deed == Deed::TwiceLater { 60 } else { 2 };
    let deeds = if deed == Deed::Echo { 6 } else { 1 };
    let done = slave.with(|s| {
        s.next = std::iter::repeat_n(deed, deeds).collect();
        s.done
    });
    let mut faulted = Tally::default();
    faulted.add(99, count, &line.ask(UNIT, &holding(99, count)).await);
    // Of the read that meets the fault only this counts.
    let mut tally = Tally { wrong: faulted.wrong, ..Tally::default() };
    if deed == Deed::Noise {
        let idle = async {
            while slave.with(|s| s.done) == done {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(DEADLINE, idle).await.expect("the noise ends");
    }
    for address in 100..105 {
        tally.add(address, count, &line.ask(UNIT, &holding(address, count)).await);
    }
    // Leaves nothing to the next fault, protected or not.
    line.quarantine = Quarantine::On;
    for _ in 0..3 {
        drop(line.ask(UNIT, &holding(7, 1)).await);
    }
    tally
}

/// On a pseudo-terminal of the kernel's own: master and slave stand still together, with nothing between them that could be
/// late by itself.
async fn table_on_a_pty(baud: u32, quarantine: Quarantine) -> Tally {
    let (slave, end) = tokio_serial::SerialStream::pair().expect("a pseudo-terminal");
    let master = port::open(Path::new(&end.name().expect("it has a path")), serial(baud)).expect("a port");
    drop(end);
    table(master, slave, serial(baud), quarantine).await
}

/// All but the one that meets the repeated answer; a busy machine may make a few more answers late, never wrong.
fn assert_safe(tally: Tally) {
    let asked = u32::try_from(FAULTS.len()).expect("few") * 5;
    assert_eq!(tally.wrong, 0, "{tally:?}");
    assert_eq!(tally.right + tally.errors, asked);
    assert!(tally.errors <= asked / 8, "{tally:?}");
}

#[tokio::test]
async fn at_9600_baud_no_fault_makes_a_later_answer_wrong() {
    assert_safe(table_on_a_pty(9_600, Quarantine::On).await);
}

#[tokio::test]
async fn at_19200_baud_no_fault_makes_a_later_answer_wrong() {
    assert_safe(table_on_a_pty(19_200, Quarantine::On).await);
}

/// The twin.
#[tokio::test]
async fn without_the_quarantine_later_answers_are_silently_wrong() {
    let (slow, fast) = tokio::join!(table_on_a_pty(9_600, Quarantine::Off), table_on_a_pty(19_200, Quarantine::Off));
    assert!(slow.wrong > 0 && fast.wrong > 0, "{slow:?} {fast:?}");
}

#[tokio::test(start_paused = true)]
async fn in_stopped_time_the_table_is_exact() {
    for baud in [1_200, 9_600, 19_200, 115_200] {
        let (master, slave) = duplex(512);
        let protected = table(master, slave, serial(baud), Quarantine::On).await;
        assert_eq!(protected, Tally { right: 99, errors: 1, wrong: 0 }, "{baud}: the repeated answer is refused");
        let (master, slave) = duplex(512);
        let twin = table(master, slave, serial(baud), Quarantine::Off).await;
        assert!(twin.wrong >= 4, "{baud}: {twin:?}");
    }
}

/// Faults at random, half of all requests, one upon the other; again nothing but the address tells requests apart.
async fn reads_among_faults(reads: u16, quarantine: Quarantine) -> Tally {
    let (wire, slave, mut chance) = (serial(19_200), Slave::default(), fastrand::Rng::with_seed(9_600));
    let (master, slave_end) = duplex(512);
    tokio::spawn(slave.clone().serve(slave_end, wire));
    let (mut line, mut tally) = (line(master, wire, &Metrics::new()), Tally::default());
    line.quarantine = quarantine;
    for address in 0..reads {
        if chance.bool() {
            slave.with(|s| s.next.push_back(FAULTS[chance.usize(..FAULTS.len())]));
        }
        tally.add(address, 2, &line.ask(UNIT, &holding(address, 2)).await);
    }
    eprintln!("{reads} reads among faults, quarantine {quarantine:?}: {tally:?}");
    tally
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_reads_among_faults_bring_no_wrong_value() {
    let tally = reads_among_faults(10_000, Quarantine::On).await;
    assert_eq!(tally.wrong, 0);
    assert!(tally.right > 5_000 && tally.errors > 2_000, "{tally:?}");
    let twin = reads_among_faults(1_000, Quarantine::Off).await;
    assert!(twin.wrong > 0, "{twin:?}");
}

#[tokio::test]
async fn a_converter_is_as_safe_as_a_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (master, slave) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (master, (slave, _)) = (master.expect("loopback"), slave.expect("loopback"));
    master.set_nodelay(true).expect("loopback");
    slave.set_nodelay(true).expect("loopback");
    assert_safe(table(master, slave, serial(19_200), Quarantine::On).await);
}

/// A line in stopped time, its slave, and its numbers. Nothing happens by itself.
fn stopped(wire: SerialLine) -> (Line<tokio::io::DuplexStream>, tokio::io::DuplexStream, Metrics) {
    let (master, slave_end) = duplex(4096);
    let metrics = Metrics::new();
    (line(master, wire, &metrics), slave_end, metrics)
}

fn faults(metrics: &Metrics, fault: Fault) -> u64 {
    metrics.modbus_line_faults.with_label_values(&["cabinet", fault.as_str()]).get()
}

fn quarantine_s(metrics: &Metrics) -> f64 {
    metrics.modbus_quarantine_seconds.with_label_values(&["cabinet"]).get()
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_teaches_how_long_a_quarantine_must_be() {
    let (mut line, slave_end, metrics) = stopped(serial(19_200));
    let slave = Slave::default();
    tokio::spawn(slave.clone().serve(slave_end, serial(19_200)));
    assert!(line.ask(UNIT, &holding(1, 1)).await.is_ok());
    let opened_s = quarantine_s(&metrics);
    assert!((0.400..0.405).contains(&opened_s), "a new line begins in quarantine, {opened_s} s");
    slave.with(|s| s.next.push_back(Deed::Silence));
    assert_eq!(line.ask(UNIT, &holding(2, 1)).await, Err(Trouble::Timeout));
    let timeout_s = quarantine_s(&metrics) - opened_s;
    assert!((0.400..0.405).contains(&timeout_s), "as long as the time-out, {timeout_s} s");
    slave.with(|s| s.next.push_back(Deed::Late));
    assert_eq!(line.ask(UNIT, &holding(3, 1)).await, Err(Trouble::Timeout));
    slave.with(|s| s.next.push_back(Deed::Silence));
    let before_s = quarantine_s(&metrics);
    assert_eq!(line.ask(UNIT, &holding(4, 1)).await, Err(Trouble::Timeout));
    let learnt_s = quarantine_s(&metrics) - before_s;
    assert!(learnt_s >= 0.500, "as long as the answer that came 500 ms late, {learnt_s} s");
    assert_eq!(faults(&metrics, Fault::Silence), 3);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_babbles_is_given_up_each_time_and_asked_nothing() {
    let (mut line, mut slave_end, metrics) = stopped(serial(9_600));
    let babbling = tokio::spawn(async move {
        loop {
            slave_end.write_all(&[0x55]).await.expect("the line is open");
            sleep(Duration::from_millis(3)).await;
            if let Ok(read) = timeout(Duration::ZERO, slave_end.read(&mut [0; 8])).await {
                panic!("something was sent: {read:?}");
            }
        }
    });
    for _ in 0..3 {
        let began = tokio::time::Instant::now();
        assert_eq!(line.ask(UNIT, &holding(1, 1)).await, Err(Trouble::Babble));
        assert!(began.elapsed() <= TIMEOUT * 2 + Duration::from_millis(10), "{:?}", began.elapsed());
    }
    assert_eq!(faults(&metrics, Fault::Babble), 3);
    assert!(!babbling.is_finished(), "nothing was sent");
    let heard = metrics.modbus_discarded_bytes.with_label_values(&["cabinet"]).get();
    assert!(heard > 500, "{heard} bytes");
}

#[tokio::test(start_paused = true)]
async fn an_answer_sooner_than_the_wire_allows_is_refused() {
    let (mut line, mut slave_end, metrics) = stopped(serial(9_600));
    let answer = [UNIT, 3, 2, 0x12, 0x34];
    let checksum = crc::Crc::<u16>::new(&crc::CRC_16_MODBUS).checksum(&answer).to_le_bytes();
    // 8 + 7 characters of 1.042 ms, less a twentieth: 14.8 ms.
    for (after_ms, expect) in [(14, Err(Trouble::Malformed)), (16, Ok(Answer::Registers(vec![0x1234])))] {
        let slave = async {
            slave_end.read_exact(&mut [0; 8]).await.expect("a request");
            sleep(Duration::from_millis(after_ms)).await;
            slave_end.write_all(&[&answer[..], &checksum].concat()).await.expect("an answer");
        };
        let request = holding(1, 1);
        let (result, ()) = tokio::join!(line.ask(UNIT, &request), slave);
        assert_eq!(result, expect, "after {after_ms} ms");
    }
    assert_eq!(faults(&metrics, Fault::Early), 1);
}

#[tokio::test(start_paused = true)]
async fn frames_are_kept_apart_by_the_silence_of_the_standard() {
    for baud in [9_600, 115_200] {
        let (mut line, mut slave_end, _metrics) = stopped(serial(baud));
        let slave = async {
            let mut last_sent = None;
            for _ in 0..4 {
                slave_end.read_exact(&mut [0; 8]).await.expect("a request");
                let now = tokio::time::Instant::now();
                if let Some(last_sent) = last_sent {
                    let silence = now - last_sent;
                    assert!(silence >= serial(baud).silence(), "{baud}: {silence:?}");
                }
                sleep(Duration::from_millis(100)).await;
                let refusal = [UNIT, 0x83, 4];
                let checksum = crc::Crc::<u16>::new(&crc::CRC_16_MODBUS).checksum(&refusal).to_le_bytes();
                slave_end.write_all(&[&refusal[..], &checksum].concat()).await.expect("an answer");
                last_sent = Some(tokio::time::Instant::now());
            }
        };
        let master = async {
            for address in 0..4 {
                assert_eq!(line.ask(UNIT, &holding(address, 1)).await, Err(Trouble::Refused(4)));
            }
        };
        tokio::join!(slave, master);
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_without_a_byte_is_deaf_after_three_requests_and_one_byte_undoes_it() {
    let (mut line, slave_end, _metrics) = stopped(serial(9_600));
    let slave = Slave::default();
    slave.with(|s| s.next = [Deed::Silence, Deed::Silence, Deed::Truncated, Deed::Silence].into());
    tokio::spawn(slave.clone().serve(slave_end, serial(9_600)));
    for _ in 0..5 {
        assert!(!line.is_deaf());
        drop(line.ask(UNIT, &holding(1, 1)).await);
    }
    slave.with(|s| s.dead.insert(UNIT));
    for _ in 0..3 {
        assert!(!line.is_deaf());
        assert_eq!(line.ask(UNIT, &holding(1, 1)).await, Err(Trouble::Timeout));
    }
    assert!(line.is_deaf());
}

/// A slave on the far end of a cable, serving until it is pulled out.
async fn slave_on(folder: &Path, slave: &Slave, wire: SerialLine) -> Cable {
    let cable = Cable::plug_in(folder).await;
    let end = port::open(&cable.slave, wire).expect("a port");
    tokio::spawn(slave.clone().serve(end, wire));
    cable
}

#[tokio::test]
async fn an_adapter_that_is_plugged_out_is_a_link_that_is_down_until_it_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let (slave, wire) = (Slave::default(), serial(19_200));
    let cable = slave_on(folder.path(), &slave, wire).await;
    let link = Link::Rtu { path: cable.gateway.clone(), line: wire };
    let mut field = Field::on(link, vec![device(1, vec![word(5), word(6)])]);
    field.good("unit1", 2).await;
    drop(cable);
    assert_eq!(field.bad("unit1").await, Reason::LinkDown);
    field.communication("unit1", true).await;
    let _cable = slave_on(folder.path(), &slave, wire).await;
    field.communication("unit1", false).await;
    field.good("unit1", 2).await;
}

#[tokio::test]
async fn a_dead_unit_on_a_line_delays_only_itself_and_is_found_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let (slave, wire) = (Slave::default(), serial(19_200));
    slave.with(|s| s.dead.insert(2));
    let cable = slave_on(folder.path(), &slave, wire).await;
    let link = Link::Rtu { path: cable.gateway.clone(), line: wire };
    let mut field = Field::on(link, vec![device(1, vec![word(5)]), device(2, vec![word(5)])]);
    assert_eq!(field.bad("unit2").await, Reason::Timeout);
    field.communication("unit2", true).await;
    let asked = |unit| slave.with(|s| s.seen.iter().filter(|(u, _)| *u == unit).count());
    let before = [1, 2].map(asked);
    for _ in 0..20 {
        field.good("unit1", 1).await;
    }
    let [healthy, dead] = [asked(1) - before[0], asked(2) - before[1]];
    assert!(dead * 3 < healthy, "{dead} requests of a dead unit against {healthy}");
    slave.with(|s| s.dead.clear());
    field.communication("unit2", false).await;
    field.good("unit2", 1).await;
}

#[tokio::test]
async fn a_converter_that_goes_away_is_found_again() {
    let (slave, wire) = (Slave::default(), serial(19_200));
    let listener = TcpListener::bind("127.77.0.2:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let link = Link::RtuOverTcp { host: address.ip().to_string(), port: address.port(), line: wire };
    let mut field = Field::on(link, vec![device(1, vec![word(5), word(6)])]);
    let (stream, _) = listener.accept().await.expect("the gateway connects");
    let serving = tokio::spawn(slave.clone().serve(stream, wire));
    field.good("unit1", 2).await;
    drop(listener);
    serving.abort();
    assert_eq!(field.bad("unit1").await, Reason::LinkDown);
    let listener = TcpListener::bind(address).await.expect("its address is free");
    let (stream, _) = listener.accept().await.expect("the gateway connects again");
    tokio::spawn(slave.serve(stream, wire));
    field.good("unit1", 2).await;
}

#[tokio::test]
async fn a_port_that_another_program_has_open_is_busy() {
    let folder = tempfile::tempdir().expect("a folder");
    let cable = Cable::plug_in(folder.path()).await;
    let even = SerialLine { parity: Parity::Even, ..serial(9_600) };
    let first = port::open(&cable.gateway, even).expect("a port");
    let second = port::open(&cable.gateway, even).expect_err("it is taken").to_string();
    assert!(second.starts_with("another program has "), "{second}");
    drop(first);
    drop(port::open(&cable.gateway, even).expect("it is free again"));
}
