//! The converter on the bus: transfers byte by byte, faults, and the way from a voltage to what is connected.

use std::vec;
use std::vec::Vec;

use embedded_hal::i2c::{ErrorKind, ErrorType, NoAcknowledgeSource, Operation};
use embedded_hal_mock::eh1::i2c::{Mock, Transaction};
use proptest::prelude::*;

use super::*;

const NACK: ErrorKind = ErrorKind::NoAcknowledge(NoAcknowledgeSource::Address);

/// The configuration register of a single shot, without the multiplexer: start, ±4.096 V, single shot, 860/s, no comparator.
const SHOT: u16 = 0x83E3;
const READY: u16 = 0x8000;

const fn mux(channel: Channel) -> u16 {
    match channel {
        Channel::Loop1 => 0x4000,
        Channel::Loop2 => 0x5000,
        Channel::Transformer => 0x6000,
        Channel::Supply => 0x7000,
    }
}

fn configured(config: u16) -> Transaction {
    let [high, low] = config.to_be_bytes();
    Transaction::write(0x48, vec![0x01, high, low])
}

fn looked(config: u16) -> Transaction {
    Transaction::write_read(0x48, vec![0x01], config.to_be_bytes().to_vec())
}

fn set_up() -> [Transaction; 2] {
    [configured(0x8383), configured(0x83E3)]
}

/// One sample: idle, started, still busy, ready, read.
fn sample(channel: Channel, counts: i16) -> [Transaction; 5] {
    [
        looked(READY | SHOT),
        configured(SHOT | mux(channel)),
        looked(!READY & (SHOT | mux(channel))),
        looked(READY | SHOT | mux(channel)),
        Transaction::write_read(0x48, vec![0x00], counts.to_be_bytes().to_vec()),
    ]
}

/// Steps every 1.3 ms, as soon as anything can have happened, up to `until_ms`.
fn check(transactions: &[Transaction], until_ms: u64) -> Vec<(u64, Channel, Result<Window, Trouble>)> {
    let mut bus = Mock::new(transactions);
    let mut converter = Converter::new(bus.clone());
    let mut reports = Vec::new();
    for us in (0..until_ms * 1_000).step_by(1_300) {
        if let Some((channel, report)) = converter.step(Instant::from_ticks(us)) {
            reports.push((us / 1_000, channel, report));
        }
    }
    bus.done();
    reports
}

/// Three steps a sample of 1.3 ms each: what a window of 200 ms holds, the dropped first and the closing last apart.
const SAMPLES: usize = 51;

fn window_of(channel: Channel, counts: i16) -> Vec<Transaction> {
    (0..SAMPLES + 2).flat_map(|_| sample(channel, counts)).collect()
}

#[test]
fn each_channel_has_its_window_in_turn() {
    let mut transactions = set_up().to_vec();
    for (counts, channel) in (1_i16..).zip(Channel::ALL) {
        transactions.extend(window_of(channel, counts * 1_000));
    }
    let reports = check(&transactions, 829);
    assert_eq!(reports.len(), 4);
    for ((counts, channel), (at_ms, reported, report)) in (1..).zip(Channel::ALL).zip(reports) {
        let window = report.unwrap();
        assert_eq!(reported, channel);
        assert_eq!((usize::from(window.samples()), window.mean_uv(), window.rms_uv()), (SAMPLES, counts * 125_000, 0));
        assert!(at_ms.abs_diff(u64::from(counts.unsigned_abs()) * 206) <= 8, "{at_ms}");
    }
}

#[test]
fn a_converter_that_is_not_there_costs_one_address_a_window() {
    let nobody: Vec<_> = (0..5).map(|_| configured(0x8383).with_error(NACK)).collect();
    let reports: Vec<_> = check(&nobody, 1_000).into_iter().map(|(_, channel, report)| (channel, report)).collect();
    let expected: Vec<_> =
        Channel::ALL.into_iter().chain([Channel::Loop1]).map(|channel| (channel, Err(Trouble::NoAnswer))).collect();
    assert_eq!(reports, expected);
}

#[test]
fn one_that_is_pulled_within_a_window_and_put_back_measures_the_next() {
    let mut transactions = set_up().to_vec();
    transactions.extend(sample(Channel::Loop1, 7_000));
    transactions.extend(sample(Channel::Loop1, 7_000));
    transactions.push(looked(0).with_error(NACK));
    transactions.extend(window_of(Channel::Loop2, 6_000));
    let reports = check(&transactions, 417);
    assert_eq!(reports[0].2, Err(Trouble::NoAnswer));
    assert_eq!((reports[1].1, reports[1].2.unwrap().mean_uv()), (Channel::Loop2, 750_000));
    assert_eq!(reports.len(), 2);
}

#[test]
fn a_failing_bus_is_told_from_a_missing_chip() {
    let reports = check(&[configured(0x8383).with_error(ErrorKind::Bus)], 100);
    assert_eq!(reports, [(0, Channel::Loop1, Err(Trouble::Bus))]);
}

#[test]
fn a_conversion_that_never_gets_ready_is_given_up() {
    let mut transactions = set_up().to_vec();
    transactions.extend([looked(READY), configured(SHOT | mux(Channel::Loop1))]);
    transactions.extend((0..LOOKS).map(|_| looked(0)));
    let reports = check(&transactions, 100);
    assert_eq!(reports, [(13, Channel::Loop1, Err(Trouble::TimedOut))]);
}

/// A converter that is always ready, whatever it was asked, with a signal.
struct Ready<S>(S);

impl<S> ErrorType for Ready<S> {
    type Error = ErrorKind;
}

impl<S: FnMut() -> Result<u16, ErrorKind>> I2c for Ready<S> {
    fn transaction(&mut self, _address: u8, operations: &mut [Operation<'_>]) -> Result<(), ErrorKind> {
        if let [Operation::Write(register), Operation::Read(bytes)] = operations {
            let word = if register[0] == 1 { READY } else { (self.0)()? };
            bytes.copy_from_slice(&word.to_be_bytes());
        }
        Ok(())
    }
}

fn first_window(signal: impl FnMut() -> Result<u16, ErrorKind>, step_ms: u64) -> Result<Window, Trouble> {
    let mut converter = Converter::new(Ready(signal));
    let times = (0..).map(|n| Instant::from_ticks(n * step_ms * 1_000));
    let (_, report) = times.take(1_000).find_map(|now| converter.step(now)).expect("1000 steps are a window");
    report
}

#[test]
fn a_window_of_too_few_samples_is_none() {
    assert!(first_window(|| Ok(100), 2).is_ok());
    assert_eq!(first_window(|| Ok(100), 10), Err(Trouble::TimedOut));
}

#[test]
fn what_was_converted_before_the_window_does_not_count() {
    let mut signal = [0].into_iter().chain(core::iter::repeat(16_000));
    let window = first_window(move || Ok(signal.next().expect("it is endless")), 1).unwrap();
    assert_eq!(window.mean_uv(), 2_000_000);
}

#[test]
fn saturated_samples_read_as_the_end_of_the_range() {
    let window = first_window(|| Ok(i16::MAX as u16), 1).unwrap();
    assert_eq!(loop_current_ua(&window), 40_958);
    assert_eq!(Loop::of(loop_current_ua(&window)), Loop::High);
    assert_eq!(supply_mv(&window), 45_054);
    assert_eq!(line_current_ma(&window, 600), 0);

    let mut ends = [i16::MIN as u16, i16::MAX as u16].into_iter().cycle();
    let window = first_window(move || Ok(ends.next().expect("it is endless")), 1).unwrap();
    assert!((2_457_000..=2_458_000).contains(&line_current_ma(&window, 600)), "{}", line_current_ma(&window, 600));
    assert!(line_current_ma(&window, u16::MAX) < u32::MAX);
}

fn direct(counts: i16) -> Window {
    let mut window = Window::new();
    (0..60).for_each(|_| window.push(counts));
    window
}

#[test]
fn a_voltage_becomes_what_is_connected() {
    // 4 mA over 100 Ω are 0.4 V, 20 mA 2 V; 24 V behind 1:11 are 2.1818 V
    assert_eq!(loop_current_ua(&direct(3_200)), 4_000);
    assert_eq!(loop_current_ua(&direct(16_000)), 20_000);
    assert_eq!(supply_mv(&direct(17_454)), 23_999);
    // noise around ground
    assert_eq!((loop_current_ua(&direct(-3)), supply_mv(&direct(-3))), (0, 0));
    // 0.5 V around a bias of 1.65 V, 100 A at 1 V
    let mut bias = Window::new();
    [13_200 - 4_000, 13_200 + 4_000].into_iter().cycle().take(60).for_each(|counts| bias.push(counts));
    assert_eq!(line_current_ma(&bias, 100), 50_000);
}

#[test]
fn a_loop_says_when_it_is_cut_or_shorted() {
    let verdicts = [0, 3_599, 3_600, 4_000, 20_000, 21_000, 21_001, 40_958].map(Loop::of);
    use Loop::{Good, High, Low};
    assert_eq!(verdicts, [Low, Low, Good, Good, Good, Good, High, High]);
}

proptest! {
    #[test]
    fn no_words_panic(
        words in prop::collection::vec(prop::option::weighted(0.98, any::<u16>()), 0..400),
        steps_us in prop::collection::vec(0_u64..4_000, 0..400),
        start in any::<u64>(),
    ) {
        let mut words = words.into_iter();
        let mut converter = Converter::new(Ready(move || words.next().flatten().ok_or(NACK)));
        let mut now = start;
        for us in steps_us {
            now = now.wrapping_add(us);
            if let Some((_, Ok(window))) = converter.step(Instant::from_ticks(now)) {
                prop_assert!(window.samples() >= SAMPLES_MIN);
                prop_assert!(supply_mv(&window) <= 45_056 && loop_current_ua(&window) <= 40_960);
            }
        }
    }
}
