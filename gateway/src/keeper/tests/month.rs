//! A month without a link: what does not wait at its end was declared, number by number, and every alarm waits.

use super::*;

const TELEMETRY_EVERY_S: u64 = 10;
const TELEMETRY_A_DAY: u64 = 24 * 3_600 / TELEMETRY_EVERY_S;
const ALARMS_A_DAY: u64 = 100;
/// Records between two looks of the keeper: less than a thousandth of the quota.
const TURN_EVERY: u64 = 30;

/// `GARDU_DAYS` asks for more; the quota grows with them, 16 MiB for a month. Of a few days it is relatively larger: the
/// folders and files of the database would else outweigh the records.
fn days() -> u64 {
    std::env::var("GARDU_DAYS").map_or(1, |days| days.parse().expect("a number"))
}

#[tokio::test]
#[expect(clippy::print_stdout, reason = "the table is for people")]
async fn a_month_offline_loses_what_was_declared_and_nothing_else() {
    let days = days();
    let max_size = (16 << 20) * days.max(4) / 30;
    let mut rig = Rig::of(max_size, max_size / 16, 24 * HOUR * 60);
    let mut alarms = 0;
    for n in 1..=days * TELEMETRY_A_DAY {
        rig.telemetry(1, n * TELEMETRY_EVERY_S).await;
        if n * ALARMS_A_DAY / TELEMETRY_A_DAY > alarms {
            alarms += 1;
            let now = rig.clock.now();
            let comes_and_goes = [true, false].map(|on| Reading::good(point("panel/high"), Value::Bool(on), now));
            rig.message(comes_and_goes.into()).await;
        }
        if n % TURN_EVERY == 0 {
            rig.turn().await;
        }
    }
    rig.flush().await;
    rig.turn().await;
    assert_eq!(rig.audit().await, Ok(()));

    let waiting = rig.waiting(Lane::Telemetry).await;
    let summary = |stored: &&Stored| matches!(&stored.record.body, Body::Telemetry(batch) if batch.replaces.is_some());
    let summaries = waiting.iter().filter(summary).count() as u64;
    let declared = rig.declared(Lane::Telemetry).await;
    let of = |reason: LossReason| declared.values().filter(|of| **of == reason).count() as u64;
    let (thinned, evicted) = (of(LossReason::Thinned), of(LossReason::Quota));
    assert_eq!(thinned + evicted, declared.len() as u64, "for no other reason");
    // Every record of a reading, one for the flush, and every summary has a number.
    let made = days * TELEMETRY_A_DAY + 1;
    let numbers = rig.keeper.task.store.head(Lane::Telemetry).borrow().status.next - 1;
    let summaries_made = numbers - made;
    let readings_waiting = waiting.len() as u64 - summaries;
    let readings_lost = made - readings_waiting;
    assert_eq!(declared.len() as u64, readings_lost + summaries_made - summaries, "to the number");
    assert!(readings_lost > 0 && summaries > 0, "the quota was never reached");

    let mut told = [0; 2];
    for stored in rig.waiting(Lane::Alarm).await {
        if let Body::Alarm(transition) = &stored.record.body
            && transition.alarm.as_str().starts_with("panel/high/")
        {
            told[usize::from(transition.active)] += 1;
        }
    }
    assert_eq!((alarms, told), (days * ALARMS_A_DAY, [alarms; 2]));
    assert_eq!(rig.declared(Lane::Alarm).await, BTreeMap::new());
    let (measured, shares) = rig.measured();
    assert!(measured.used() <= shares.quota, "{measured:?} {shares:?}");
    println!(
        "days | readings | waiting | thinned | evicted | summaries waiting | alarms | KiB used | KiB quota\n\
         {days} | {made} | {readings_waiting} | {thinned} | {evicted} | {summaries} | {alarms} | {} | {}",
        measured.used() / KIB,
        max_size / KIB,
    );
    rig.close().await;
}
