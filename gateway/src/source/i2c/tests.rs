//! The thread over a bus of the test's own, with a sensor that is plugged in and out.

use std::sync::{Arc, Mutex};

use embedded_hal::i2c::{ErrorKind, ErrorType, NoAcknowledgeSource, Operation};

use tokio::sync::mpsc;

use super::*;
use crate::{
    config::{I2cChip, I2cInput, I2cPoint, Report as Reported},
    reading::{PointId, Reason, Segment, Value},
    supervise::{Pulse, Supervisor},
};

/// No step of a test takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is plugged in: nothing, or an SHT4x with these raw words.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<[u16; 2]>>>);

impl Socket {
    fn plug(&self, sensor: Option<[u16; 2]>) {
        *self.0.lock().unwrap() = sensor;
    }
}

impl ErrorType for Socket {
    type Error = ErrorKind;
}

impl I2c for Socket {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        let nobody = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown);
        let words = self.0.lock().unwrap().filter(|_| address == 0x44).ok_or(nobody)?;
        for operation in operations {
            match operation {
                Operation::Write([0xFD]) => {}
                Operation::Write(_) => return Err(nobody),
                Operation::Read(bytes) => {
                    let words = words.map(|word| {
                        let [high, low] = word.to_be_bytes();
                        [high, low, checksum(&[high, low])]
                    });
                    bytes.copy_from_slice(words.as_flattened());
                }
            }
        }
        Ok(())
    }
}

/// CRC-8 of the data sheet: polynomial 0x31, starting with 0xFF.
fn checksum(bytes: &[u8]) -> u8 {
    let shift = |crc: u8, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x31 };
    bytes.iter().fold(0xFF, |crc, byte| (0..8).fold(crc ^ byte, shift))
}

fn climate() -> I2cDevice {
    let point = |(name, input)| {
        let id = PointId::parse(&format!("climate/{name}")).unwrap();
        let (scale, offset, decimals) = (1.0, 0.0, Some(1));
        I2cPoint { id, input, scale, offset, decimals, unit: None, range: None, report: Reported::Off }
    };
    I2cDevice {
        name: Segment::parse("climate").unwrap(),
        bus: "/dev/i2c-1".into(),
        chip: I2cChip::Climate,
        poll: Duration::from_millis(1), // the driver asks once a second
        missed_polls: 2,
        transformer_a: 0,
        points: [("temperature", I2cInput::Temperature), ("humidity", I2cInput::Humidity)].map(point).into(),
    }
}

#[tokio::test]
async fn a_sensor_is_read_is_bad_while_it_is_out_and_is_found_again() {
    assert_eq!(checksum(&[0xBE, 0xEF]), 0x92, "as in the data sheet");
    let socket = Socket::default();
    socket.plug(Some([0xBEEF, 0x6666]));
    let clock = Clock::system();
    let (pipeline, mut readings) = mpsc::channel(1_024);
    let (pulse, mut supervisor) = (Pulse::new(clock.clone()), Supervisor::new());
    let outlet = Outlet { pipeline, beat: pulse.stage("i2c climate"), shutdown: supervisor.shutdown() };
    let bus = socket.clone();
    // The first attempt finds no bus.
    let mut attempts = 0;
    let open = move |_: &I2cDevice| {
        attempts += 1;
        if attempts == 1 { Err(Trouble::NotThere) } else { Ok(bus.clone()) }
    };
    let task = I2cTask::new(climate(), open, clock, Metrics::new(), outlet);
    let runtime = tokio::runtime::Handle::current();
    supervisor.thread("i2c climate", move || runtime.block_on(task.run()));

    let mut hear = async |point: &str, value: Option<Value>, reason: Option<Reason>| {
        let heard = async {
            loop {
                let Some(Input::Readings(readings)) = readings.recv().await else { panic!("it goes on") };
                let is_it =
                    |r: &crate::reading::Reading| r.point.as_str() == point && r.value == value && r.reason == reason;
                if readings.iter().any(is_it) {
                    return;
                }
            }
        };
        let heard = tokio::time::timeout(PATIENCE, heard).await;
        heard.unwrap_or_else(|_| panic!("{point} never became {value:?} {reason:?}"));
    };
    hear("climate/temperature", None, Some(Reason::LinkDown)).await;
    hear("climate/temperature", Some(Value::Float(85.5)), None).await;
    socket.plug(None);
    hear("climate/humidity", None, Some(Reason::Timeout)).await;
    hear("climate/communication", Some(Value::Bool(true)), None).await;
    socket.plug(Some([0x6666, 0x6666]));
    hear("climate/humidity", Some(Value::Float(44.0)), None).await;
    assert_eq!(pulse.stalled(), None);
    supervisor.run(async {}, PATIENCE, std::future::pending()).await.expect("it stops in peace");
}
