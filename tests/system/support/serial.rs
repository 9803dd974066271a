//! A serial line: two pseudo-terminals joined back to back, the units of a [`Plc`] on the far one.

use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use crc::{CRC_16_MODBUS, Crc};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    plc::{Plc, Wiring},
    until,
};

/// Bits a second of every line here, in characters of 10 bits.
pub(crate) const BAUD: u32 = 19_200;

const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// A cable that is plugged in; its two ends go when it is dropped.
#[derive(Debug)]
pub(crate) struct Cable(Child);

impl Cable {
    /// Where the gateway finds its end.
    pub(crate) fn gateway_end(folder: &Path) -> PathBuf {
        folder.join("usb-RS485")
    }

    /// Plugs it in, with the units of the PLC at the far end.
    pub(crate) fn plug_in(folder: &Path, plc: &Plc) -> Self {
        let (near, far) = (Self::gateway_end(folder), folder.join("far"));
        let ends = [&near, &far].map(|path| format!("pty,raw,echo=0,link={}", path.display()));
        let socat = Command::new("socat").args(ends).stdin(Stdio::null()).spawn();
        let cable = Self(socat.expect("socat makes the serial lines of these tests: apt-get install socat"));
        until("both ends of the serial line", || near.exists() && far.exists());
        let end = File::options().read(true).write(true).open(far).expect("the far end");
        let wiring = plc.wiring();
        thread::spawn(move || serve(end, &wiring));
        cable
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        // It may have ended by itself.
        let _ended = kill_process(pid, Signal::TERM);
        let _ended = self.0.wait();
    }
}

/// Answers until the cable is out; each answer in one lump, no sooner than the wire would have carried it.
fn serve(mut end: File, wiring: &Arc<Wiring>) -> Option<()> {
    let mut heard = Vec::new();
    loop {
        let mut byte = [0];
        end.read_exact(&mut byte).ok()?;
        heard.push(byte[0]);
        let Some(request) = heard.last_chunk::<8>().copied().filter(|frame| CHECKSUM.checksum(frame) == 0) else {
            continue;
        };
        heard.clear();
        let [unit, function, a, b, c, d, ..] = request;
        let [first, count] = [[a, b], [c, d]].map(u16::from_be_bytes);
        let Some(words) = wiring.read(unit, function, first, count) else { continue };
        let data: Vec<u8> = match function {
            1 | 2 => {
                words.chunks(8).map(|bits| bits.iter().rev().fold(0, |b, bit| b << 1 | u8::from(*bit != 0))).collect()
            }
            _ => words.iter().flat_map(|word| word.to_be_bytes()).collect(),
        };
        let mut answer = vec![unit, function, u8::try_from(data.len()).expect("at most 250")];
        answer.extend(data);
        answer.extend(CHECKSUM.checksum(&answer).to_le_bytes());
        let bits = u32::try_from((request.len() + answer.len()) * 10).expect("a short frame");
        thread::sleep(Duration::from_secs(1) * bits / BAUD);
        end.write_all(&answer).ok()?;
    }
}
