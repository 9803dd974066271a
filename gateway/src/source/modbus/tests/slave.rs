//! A slave on a serial line: it answers with the truth at the line's pace, or does one of the [`Deed`]s a line knows.

use std::{
    collections::{HashSet, VecDeque},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use crc::{CRC_16_MODBUS, Crc};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Instant, sleep, sleep_until},
};

use super::{DEADLINE, TIMEOUT, truth};
use crate::config::SerialLine;

const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);
/// What a device takes to think.
const TURNAROUND: Duration = Duration::from_millis(5);

/// What the slave does with one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Answer,
    Silence,
    Late,
    WrongUnit,
    WrongFunction,
    WrongChecksum,
    MoreRegisters,
    FewerRegisters,
    OddByteCount,
    Junk(usize),
    Trailing,
    Nul,
    Truncated,
    Dribble,
    Twice,
    /// The same answer again, in one lump, as soon as the next request comes; then the right one.
    TwiceLater,
    Echo,
    Exception,
    /// Noise on the line after the answer.
    Noise,
}

/// Every deed that is a fault, as a line knows them.
pub(crate) const FAULTS: [Deed; 20] = [
    Deed::Silence,
    Deed::Late,
    Deed::WrongUnit,
    Deed::WrongFunction,
    Deed::WrongChecksum,
    Deed::MoreRegisters,
    Deed::FewerRegisters,
    Deed::OddByteCount,
    Deed::Junk(1),
    Deed::Junk(3),
    Deed::Junk(24),
    Deed::Trailing,
    Deed::Nul,
    Deed::Truncated,
    Deed::Dribble,
    Deed::Twice,
    Deed::TwiceLater,
    Deed::Echo,
    Deed::Exception,
    Deed::Noise,
];

#[derive(Debug, Default)]
pub(crate) struct Script {
    /// What to do with the next requests.
    pub(crate) next: VecDeque<Deed>,
    /// Units that never answer.
    pub(crate) dead: HashSet<u8>,
    /// (unit, address) of every request.
    pub(crate) seen: Vec<(u8, u16)>,
    /// Deeds done, with all they send.
    pub(crate) done: usize,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Slave(Arc<Mutex<Script>>);

impl Slave {
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Script) -> T) -> T {
        change(&mut self.0.lock().expect("no panic in the script"))
    }

    /// Until the line is hung up.
    pub(crate) async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin, line: SerialLine) -> Option<()> {
        let mut owed: Option<Vec<u8>> = None;
        let mut heard = Vec::new();
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()?;
            heard.push(byte[0]);
            let Some(request) = heard.last_chunk::<8>().copied().filter(|frame| CHECKSUM.checksum(frame) == 0) else {
                continue;
            };
            heard.clear();
            let [unit, _, high, low, _, count, ..] = request;
            let address = u16::from_be_bytes([high, low]);
            let deed = self.with(|s| {
                s.seen.push((unit, address));
                let scripted = s.next.pop_front().unwrap_or(Deed::Answer);
                if s.dead.contains(&unit) { Deed::Silence } else { scripted }
            });
            if let Some(owed) = owed.take() {
                stream.write_all(&owed).await.ok()?;
            }
            if deed == Deed::Echo {
                stream.write_all(&request).await.ok()?;
            }
            // The request arrived here at once, but the wire takes its time.
            sleep(line.frame_time(8) + line.silence() + TURNAROUND).await;
            if deed == Deed::Late {
                sleep(TIMEOUT * 5 / 4).await;
            }
            let frame = frame(deed, &request, address, count);
            let gap = if deed == Deed::Dribble { Duration::from_millis(20) } else { line.character_time() };
            send(&mut stream, &frame, gap).await?;
            match deed {
                Deed::TwiceLater => owed = Some(frame),
                Deed::Noise => {
                    sleep(line.silence() * 4).await;
                    send(&mut stream, &[0xA5; 40], line.character_time()).await?;
                }
                _ => {}
            }
            self.with(|s| s.done += 1);
        }
    }
}

/// Bytes become due one by one; all that are due are written.
async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8], gap: Duration) -> Option<()> {
    let mut due = Instant::now();
    for byte in bytes {
        due += gap;
        sleep_until(due).await;
        stream.write_all(&[*byte]).await.ok()?;
    }
    Some(())
}

fn sealed(body: &[u8]) -> Vec<u8> {
    [body, &CHECKSUM.checksum(body).to_le_bytes()].concat()
}

fn frame(deed: Deed, request: &[u8; 8], address: u16, count: u8) -> Vec<u8> {
    let [unit, function, ..] = *request;
    let registers = |count: u8| -> Vec<u8> {
        (0..u16::from(count)).flat_map(|n| truth(unit, address.wrapping_add(n)).to_be_bytes()).collect()
    };
    let answer = |unit: u8, function: u8, data: &[u8]| {
        let length = u8::try_from(data.len()).expect("at most 250");
        sealed(&[&[unit, function, length], data].concat())
    };
    let right = answer(unit, function, &registers(count));
    let junk = |length: usize| std::iter::repeat_n(0x5A, length);
    match deed {
        Deed::Answer | Deed::Late | Deed::Dribble | Deed::TwiceLater | Deed::Echo | Deed::Noise => right,
        Deed::Silence => Vec::new(),
        Deed::WrongUnit => answer(unit ^ 3, function, &registers(count)),
        Deed::WrongFunction => answer(unit, function ^ 7, &registers(count)),
        Deed::WrongChecksum => {
            right.iter().enumerate().map(|(i, b)| if i + 1 == right.len() { !b } else { *b }).collect()
        }
        Deed::MoreRegisters => answer(unit, function, &registers(count + 1)),
        Deed::FewerRegisters => answer(unit, function, &registers(count - 1)),
        Deed::OddByteCount => answer(unit, function, &registers(count)[1..]),
        Deed::Junk(length) => junk(length).chain(right).collect(),
        Deed::Trailing => right.into_iter().chain(junk(6)).collect(),
        Deed::Nul => [&[0][..], &right].concat(),
        Deed::Truncated => right[..right.len() - 3].to_vec(),
        Deed::Twice => [&right[..], &right].concat(),
        Deed::Exception => sealed(&[unit, function | 0x80, 4]),
    }
}

/// Two pseudo-terminals joined back to back, at paths of their own.
#[derive(Debug)]
pub(crate) struct Cable {
    socat: Child,
    pub(crate) gateway: PathBuf,
    pub(crate) slave: PathBuf,
}

impl Cable {
    /// Plugs it in, in this folder.
    pub(crate) async fn plug_in(folder: &Path) -> Self {
        let [gateway, slave] = ["gateway", "slave"].map(|end| folder.join(end));
        let ends = [&gateway, &slave].map(|path| format!("pty,raw,echo=0,link={}", path.display()));
        let socat = Command::new("socat").args(ends).stdin(Stdio::null()).spawn();
        let socat = socat.expect("socat makes the serial lines of these tests: apt-get install socat");
        let cable = Self { socat, gateway, slave };
        let there = async {
            while !(cable.gateway.exists() && cable.slave.exists()) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, there).await.expect("socat makes both ends");
        cable
    }
}

impl Drop for Cable {
    /// Pulls it out; its paths go with it.
    fn drop(&mut self) {
        let pid = i32::try_from(self.socat.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        // It may have ended by itself.
        let _ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = self.socat.wait();
    }
}
