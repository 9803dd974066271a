//! A sensor node: its real firmware in QEMU, on a bus like any device, with contacts to press and chips that can go missing.
//!
//! What stands at its pins is the test bench of `firmware/src/bin/lm3s6965/bench.rs`, which has the protocol. Time in the
//! emulator stands while the machine is too busy to run it, so a press of 50 ms lasts 50 ms of the node's own clock.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use super::{PATIENCE, free_port, until};

/// What `firmware/build` leaves.
const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/firmware/gardu-node-lm3s6965.elf");

/// 64 ns an instruction: about what a Cortex-M3 at 12.5 MHz needs, so that times mean something.
const NS_AN_INSTRUCTION: u64 = 64;

/// A running node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Where its RS-485 port is; one client at a time.
    pub(crate) bus_port: u16,
    emulator: Child,
    orders: TcpStream,
    news: Arc<News>,
}

/// What the bench said, and who waits for it.
#[derive(Debug, Default)]
struct News {
    said: Mutex<Said>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Said {
    starts: u64,
    /// Series of presses that are done, a contact each.
    pressed: [u64; 8],
    reports: u64,
    report: Report,
    chips: Chips,
    ended: bool,
}

/// What the bench sees of the node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Report {
    /// Relay 1 and 2, lamp, direction, a bit each.
    pub(crate) outputs: u8,
    /// Bytes that it sent without driving the bus.
    pub(crate) undriven: u16,
    /// Bytes that it heard on the bus since it started.
    pub(crate) heard: u32,
    /// The longest from the end of a request to its answer, the bus' own silence of 3.5 characters included.
    pub(crate) slowest: Duration,
    /// Since it started, by its own clock; and how much of that it did not sleep.
    pub(crate) now: Duration,
    pub(crate) awake: Duration,
}

impl Report {
    /// Instructions from an earlier report to this one.
    pub(crate) fn instructions_since(&self, earlier: &Self) -> u64 {
        let awake_ns = (self.awake - earlier.awake).as_nanos();
        u64::try_from(awake_ns).expect("a short while") / NS_AN_INSTRUCTION
    }
}

/// The chips on its I2C bus.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chips {
    /// An SHT4x, in tenths.
    pub(crate) climate: Option<Air>,
    /// An ADS1115, in millivolts at its four inputs.
    pub(crate) converter: Option<[u16; 4]>,
    config: u16,
    pointer: u8,
}

/// What the climate sensor feels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Air {
    pub(crate) temperature_c: f64,
    pub(crate) humidity_percent: f64,
}

impl Chips {
    pub(crate) fn new(climate: Option<Air>, converter: Option<[u16; 4]>) -> Self {
        Self { climate, converter, ..Self::default() }
    }

    /// Which of them answer, as the bench wants it.
    fn present(&self) -> u8 {
        u8::from(self.climate.is_some()) | u8::from(self.converter.is_some()) << 1
    }

    /// One transaction; none is one that nobody acknowledges.
    fn answer(&mut self, address: u8, written: &[u8], wanted: usize) -> Option<Vec<u8>> {
        match address {
            0x44 => self.climate_answers(written, wanted),
            0x48 => self.converter_answers(written, wanted),
            _ => None,
        }
    }

    /// SHT4x data sheet §4.5: "measure with high precision" and then two words, each with its checksum.
    fn climate_answers(&self, written: &[u8], wanted: usize) -> Option<Vec<u8>> {
        let air = self.climate?;
        match written {
            [0xFD] => Some(Vec::new()),
            [] => {
                let raw = |share: f64| (share * 65535.0).round() as u16;
                let words = [raw((air.temperature_c + 45.0) / 175.0), raw((air.humidity_percent + 6.0) / 125.0)];
                let with_checksum = |word: u16| {
                    let [high, low] = word.to_be_bytes();
                    [high, low, sensirion_checksum(&[high, low])]
                };
                Some(words.into_iter().flat_map(with_checksum).take(wanted).collect())
            }
            _ => None,
        }
    }

    /// ADS1115 data sheet §9.6: a pointer, then a register; a conversion is always done.
    fn converter_answers(&mut self, written: &[u8], wanted: usize) -> Option<Vec<u8>> {
        let inputs = self.converter?;
        match *written {
            [pointer, high, low] => {
                self.pointer = pointer;
                if pointer == 1 {
                    self.config = u16::from_be_bytes([high, low]);
                }
            }
            [pointer] => self.pointer = pointer,
            _ => {}
        }
        let input = inputs[usize::from(self.config >> 12 & 0b11)];
        // 1 LSB is 125 µV.
        let register = if self.pointer == 1 { self.config | 1 << 15 } else { input * 8 };
        Some(register.to_be_bytes().into_iter().take(wanted).collect())
    }
}

/// SHT4x data sheet §4.4.
fn sensirion_checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 != 0 { crc << 1 ^ 0x31 } else { crc << 1 })
    })
}

impl Node {
    /// Powers one up and waits until it runs.
    pub(crate) fn start() -> Self {
        assert!(Path::new(IMAGE).exists(), "the node's firmware is missing: run firmware/build first ({IMAGE})");
        let (bus_port, bench_port) = (free_port(), free_port());
        let serial = |port| format!("tcp:127.0.0.1:{port},server=on,wait=off,nodelay=on");
        let emulator = Command::new("qemu-system-arm")
            .args(["-M", "lm3s6965evb", "-kernel", IMAGE, "-nodefaults", "-display", "none", "-monitor", "none"])
            .args(["-icount", "shift=6,sleep=on,align=on", "-action", "watchdog=reset"])
            .args(["-serial", &serial(bus_port), "-serial", &serial(bench_port)])
            .stdin(Stdio::null())
            .stdout(Stdio::null()) // it says there how late it is
            .stderr(Stdio::null())
            .spawn()
            .expect("the nodes of these tests run in QEMU: apt-get install qemu-system-arm");
        let mut orders = None;
        until("the emulator listens", || {
            orders = TcpStream::connect(("127.0.0.1", bench_port)).ok();
            orders.is_some()
        });
        let orders = orders.expect("until it is there");
        orders.set_nodelay(true).expect("a socket of ours");
        let news = Arc::new(News::default());
        let (listener, told) = (orders.try_clone().expect("a second handle"), news.clone());
        thread::spawn(move || told.listen(listener));
        let node = Self { bus_port, emulator, orders, news };
        node.report();
        node
    }

    /// Closes these contacts and opens the others, a bit each.
    pub(crate) fn close(&self, contacts: u8) {
        self.order(&[b'c', contacts]);
    }

    /// Begins to press contact 0 to 7.
    pub(crate) fn press(&self, contact: u8, times: u16, closed_ms: u16, open_ms: u16) {
        let numbers = [times, closed_ms, open_ms].map(u16::to_be_bytes).concat();
        self.order(&[&[b'p', contact][..], &numbers].concat());
    }

    /// Waits until so many series of presses at the contact are done since the test began.
    pub(crate) fn wait_until_pressed(&self, contact: u8, series: u64) {
        self.wait("a series of presses", |said| said.pressed[usize::from(contact)] >= series);
    }

    /// Swaps the chips on its I2C bus.
    pub(crate) fn fit(&self, chips: Chips) {
        self.said().chips = chips;
        self.order(&[b'i', chips.present()]);
    }

    /// How it is.
    pub(crate) fn report(&self) -> Report {
        let reports = self.said().reports;
        self.order(b"s");
        self.wait("a report", |said| said.reports > reports);
        self.said().report
    }

    /// Makes the firmware panic, and waits until it has started again.
    pub(crate) fn panic(&self) {
        self.until_it_starts_after(|| self.order(b"x"));
    }

    /// Makes the firmware hang, and waits until it has started again: only its watchdog can do that.
    pub(crate) fn hang(&self) {
        self.until_it_starts_after(|| self.order(b"h"));
    }

    /// Does something that resets it, and waits until it has started again.
    pub(crate) fn until_it_starts_after(&self, so: impl FnOnce()) {
        let starts = self.said().starts;
        so();
        self.wait("another start of the node", |said| said.starts > starts);
    }

    /// Starts that were seen: resets, unless the first was too early for us.
    pub(crate) fn starts(&self) -> u64 {
        self.said().starts
    }

    fn order(&self, bytes: &[u8]) {
        (&self.orders).write_all(bytes).expect("the emulator runs");
    }

    fn wait(&self, what: &str, so: impl Fn(&Said) -> bool) {
        let waited = self.news.changed.wait_timeout_while(self.said(), PATIENCE, |said| !so(said) && !said.ended);
        let (said, _) = waited.expect("no panic while it is held");
        assert!(so(&said), "waited in vain for {what}: {said:?}");
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.news.said()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.emulator.kill();
        let _ended = self.emulator.wait();
    }
}

impl News {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().expect("no panic while it is held")
    }

    /// Takes what the bench says, and plays the chips, until the emulator ends.
    fn listen(&self, mut bench: TcpStream) {
        while self.take(&mut bench).is_ok() {
            self.changed.notify_all();
        }
        self.said().ended = true;
        self.changed.notify_all();
    }

    fn take(&self, bench: &mut TcpStream) -> io::Result<()> {
        match next(bench)? {
            [b'B'] => self.said().starts += 1,
            [b'P'] => {
                let [contact] = next(bench)?;
                self.said().pressed[usize::from(contact)] += 1;
            }
            [b'S'] => {
                let ([outputs], undriven) = (next(bench)?, u16::from_be_bytes(next(bench)?));
                let heard = u32::from_be_bytes(next(bench)?);
                let slowest = Duration::from_micros(u32::from_be_bytes(next(bench)?).into());
                let [now, asleep] =
                    [next(bench)?, next(bench)?].map(|us| Duration::from_micros(u64::from_be_bytes(us)));
                let mut said = self.said();
                said.report = Report { outputs, undriven, heard, slowest, now, awake: now - asleep };
                said.reports += 1;
            }
            [b'I'] => {
                let [number, address, written, wanted] = next(bench)?;
                let mut bytes = vec![0; written.into()];
                bench.read_exact(&mut bytes)?;
                let answer = self.said().chips.answer(address, &bytes, wanted.into());
                let head = [b'r', number, answer.as_ref().map_or(255, |_| wanted)];
                bench.write_all(&[&head[..], &answer.unwrap_or_default()].concat())?;
            }
            // What a reset cut off.
            _ => {}
        }
        Ok(())
    }
}

fn next<const N: usize>(bench: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    bench.read_exact(&mut bytes)?;
    Ok(bytes)
}
