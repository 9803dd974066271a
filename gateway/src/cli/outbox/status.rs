//! `gardu outbox status`: the counted outbox as a page for a technician.

use std::fmt::Write as _;

use super::Seen;
use crate::{
    cli::page::{Page, plain, table},
    config::Language,
    record::{Lane, LossReason},
    status::outbox::{LostOver, Outbox, OutboxLane},
    store::{Generation, Space},
};

/// Cells of the bar.
const BAR_CELLS: u64 = 20;
/// A forecast nearer than this is worth a warning: a person can still come.
const SOON_S: u64 = 24 * 3_600;

/// The page: lines of at most 100 characters unless a path is longer.
#[must_use]
pub fn render(outbox: &Outbox, seen: &Seen, language: Language) -> String {
    let page = Page { language };
    let mut out = format!("{} · {}\n", outbox.gateway, plain(&outbox.path.display().to_string()));
    out.push_str(&page.row("outbox-source", &seen.text(language)));
    let verdicts = page.verdicts(outbox, seen);
    for (i, verdict) in verdicts.iter().enumerate() {
        out.push_str(&page.row(if i == 0 { "outbox-verdict" } else { "" }, verdict));
    }
    out.push_str(&page.row("outbox-space", &page.space(outbox)));
    for (i, line) in page.losses(outbox).iter().enumerate() {
        out.push_str(&page.row(if i == 0 { "outbox-lost" } else { "" }, line));
    }
    for (lane, state) in &outbox.lanes {
        page.lane_part(&mut out, *lane, state);
    }
    page.aside(&mut out, outbox);
    out
}

impl Page {
    /// What it comes to, the worst first.
    fn verdicts(self, outbox: &Outbox, seen: &Seen) -> Vec<String> {
        let waiting: u64 = outbox.lanes.values().map(|lane| lane.state.records).sum();
        let count = [("count", waiting.into())];
        // Where others take the whole disk, nothing is left of the quota: that is said by itself.
        let full = outbox.quota_bytes.is_some_and(|quota| quota > 0 && outbox.disk_bytes >= quota);
        let soon = outbox.full_in_s.filter(|full_in_s| *full_in_s < SOON_S && !full);
        let mut verdicts = Vec::new();
        let say = |applies: bool, key: &str| applies.then(|| self.say(key, &[]));
        let unusable = |reason: &String| self.say("status-disk-unusable", &[("reason", plain(reason).into())]);
        verdicts.extend(outbox.unusable.as_ref().map(unusable));
        verdicts.extend(say(!outbox.unreadable.is_empty(), "outbox-verdict-unreadable"));
        verdicts.extend(say(!outbox.aside.is_empty(), "outbox-verdict-aside"));
        verdicts.extend(self.room(outbox));
        verdicts.extend(say(full, "outbox-verdict-full"));
        verdicts.extend(soon.map(|s| self.say("outbox-verdict-soon", &[("duration", self.duration(s).into())])));
        verdicts.push(match (waiting, seen) {
            (0, _) if outbox.unreadable.is_empty() => self.say("outbox-verdict-delivered", &[]),
            (_, Seen::Stopped) => self.say("outbox-verdict-stopped", &count),
            (_, Seen::Silent { .. }) => self.say("outbox-verdict-silent", &count),
            (_, Seen::Daemon { .. }) => self.say("outbox-verdict-waiting", &count),
        });
        verdicts
    }

    /// What a full disk means, since when, and what to do.
    fn room(self, outbox: &Outbox) -> Option<String> {
        let key = match outbox.space? {
            Space::Enough => return None,
            Space::Tight => "outbox-verdict-tight",
            Space::None => "outbox-verdict-no-room",
        };
        let since = outbox.full_since.as_deref();
        let since = since.map(|time| self.say("outbox-verdict-since", &[("time", plain(time).into())]));
        Some(self.say(key, &[("since", since.unwrap_or_default().into())]))
    }

    fn space(self, outbox: &Outbox) -> String {
        let used = self.size(outbox.disk_bytes);
        let Some(quota) = outbox.quota_bytes.filter(|quota| *quota > 0) else { return used };
        let share = |of: u64| u64::try_from(u128::from(outbox.disk_bytes) * u128::from(of) / u128::from(quota));
        let cells = share(BAR_CELLS).unwrap_or(BAR_CELLS).min(BAR_CELLS);
        let bar: String = (0..BAR_CELLS).map(|cell| if cell < cells { '#' } else { '.' }).collect();
        let args = [
            ("percent", share(100).unwrap_or(u64::MAX).into()),
            ("used", used.into()),
            ("quota", self.size(quota).into()),
        ];
        let forecast = outbox.full_in_s.map_or_else(String::new, |s| {
            format!("; {}", self.say("outbox-full-in", &[("duration", self.duration(s).into())]))
        });
        format!("[{bar}] {}{forecast}", self.say("outbox-used", &args))
    }

    fn losses(self, outbox: &Outbox) -> Vec<String> {
        let over = match outbox.lost_over {
            LostOver::Run => "outbox-lost-over-run",
            LostOver::Disk => "outbox-lost-over-disk",
        };
        let over = self.say(over, &[]);
        if outbox.lost.is_empty() {
            return vec![self.say("outbox-lost-none", &[("over", over.into())])];
        }
        let line = |lost: &crate::status::outbox::Lost| {
            let args = [
                ("lane", self.lane(lost.lane).into()),
                ("count", lost.count.into()),
                ("reason", self.say(loss_key(lost.reason), &[]).into()),
                ("over", over.as_str().into()),
            ];
            self.say("outbox-lost-some", &args)
        };
        outbox.lost.iter().map(line).collect()
    }

    fn lane_part(self, out: &mut String, lane: Lane, of: &OutboxLane) {
        let state = &of.state;
        let args = [
            ("lane", self.lane(lane).into()),
            ("records", state.records.into()),
            ("size", self.size(state.bytes).into()),
            ("age", state.oldest_age_s.map_or_else(|| "?".to_owned(), |age_s| self.duration(age_s)).into()),
        ];
        let key = if state.records == 0 { "outbox-lane-empty" } else { "outbox-lane-waiting" };
        let _ = write!(out, "\n{}\n", self.say(key, &args));
        let args =
            [("epoch", state.epoch.to_string().into()), ("next", state.next.into()), ("settled", state.settled.into())];
        let _ = writeln!(out, "  {}", self.say("outbox-numbers", &args));
        table(out, &of.generations.iter().map(|generation| self.generation(lane, generation)).collect::<Vec<_>>());
    }

    fn generation(self, lane: Lane, of: &Generation) -> Vec<String> {
        let chain = match lane {
            Lane::Alarm => "alarm",
            Lane::Telemetry => "telemetry",
        };
        let records = if of.end > of.first { format!("{}–{}", of.first, of.end - 1) } else { "–".to_owned() };
        vec![
            format!("{chain}-{}", of.number),
            self.say("outbox-generation-places", &[("places", records.into())]),
            self.say("outbox-generation-waiting", &[("count", of.waiting.into())]),
            self.size(of.disk_bytes),
            self.say(if of.sealed { "outbox-generation-sealed" } else { "outbox-generation-open" }, &[]),
        ]
    }

    /// What was set aside or cannot be read, and what to do.
    fn aside(self, out: &mut String, outbox: &Outbox) {
        if !outbox.unreadable.is_empty() {
            let _ = write!(out, "\n{}\n", self.say("outbox-unreadable", &[]));
            let rows = outbox.unreadable.iter().map(|of| vec![plain(&of.name), plain(&of.reason)]);
            table(out, &rows.collect::<Vec<_>>());
        }
        let Some(first) = outbox.aside.first().or(None) else { return };
        let _ = write!(out, "\n{}\n", self.say("outbox-aside", &[]));
        let rows = outbox.aside.iter().map(|of| vec![plain(&of.name), self.size(of.bytes)]);
        table(out, &rows.collect::<Vec<_>>());
        let path = outbox.path.join(&first.name).display().to_string();
        let _ = writeln!(out, "{}", self.say("outbox-aside-todo", &[("path", plain(&path).into())]));
    }
}

/// The words for a reason.
pub(super) const fn loss_key(reason: LossReason) -> &'static str {
    match reason {
        LossReason::Refused => "outbox-loss-refused",
        LossReason::Quota => "outbox-loss-quota",
        LossReason::Age => "outbox-loss-age",
        LossReason::Thinned => "outbox-loss-thinned",
        LossReason::Damaged => "outbox-loss-damaged",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        record::Epoch,
        status::{
            LaneState,
            outbox::{Aside, Lost, Unreadable},
            tests::segment,
        },
        text,
    };

    fn lane(records: u64, generations: Vec<Generation>) -> OutboxLane {
        let epoch = Epoch::parse("0123456789abcdef").expect("epoch");
        let oldest_age_s = (records > 0).then_some(3 * 3_600 + 720);
        let state = LaneState { epoch, next: 4211, settled: 4090, records, bytes: 410 * records, oldest_age_s };
        OutboxLane { state, generations }
    }

    fn backlog() -> Outbox {
        let generation = |number, first, end, waiting, sealed| {
            let disk_bytes = if sealed { 17_825_792 } else { 1_258_292 };
            Generation { number, first, end, waiting, disk_bytes, sealed }
        };
        let alarms = lane(120, vec![generation(3, 4020, 4211, 120, false)]);
        let telemetry = lane(
            52_000,
            vec![generation(7, 90_001, 130_001, 40_000, true), generation(8, 130_001, 142_001, 12_000, false)],
        );
        Outbox {
            gateway: segment("taman-elektrik-01"),
            path: "/var/lib/gardu/outbox".into(),
            disk_bytes: 110_100_480,
            quota_bytes: Some(268_435_456),
            full_in_s: Some(9 * 3_600),
            space: Some(Space::Enough),
            full_since: None,
            unusable: None,
            lanes: BTreeMap::from([(Lane::Alarm, alarms), (Lane::Telemetry, telemetry)]),
            lost: vec![Lost { lane: Lane::Telemetry, reason: LossReason::Quota, count: 40_000 }],
            lost_over: LostOver::Run,
            aside: vec![Aside { name: "bad-1-alarm-2".into(), bytes: 16_777_216 }],
            unreadable: vec![],
        }
    }

    fn daemon() -> Seen {
        Seen::Daemon { address: "127.0.0.1:9184".parse().expect("address") }
    }

    #[test]
    fn a_technician_reads_a_backlog_in_indonesian() {
        let page = "\
taman-elektrik-01 · /var/lib/gardu/outbox
  Sumber          layanan yang sedang berjalan (127.0.0.1:9184)
  Kesimpulan      ADA YANG DISISIHKAN karena rusak: lihat di bawah
                  HAMPIR PENUH dalam 9 jam 0 menit: periksa hubungan ke pusat komando
                  52120 kiriman menunggu dan akan dikirim begitu pusat komando menerima
  Ruang           [########............] 41% terpakai: 105,0 MiB dari 256,0 MiB; penuh dalam 9 jam 0 menit
  Hilang          telemetri: 40000 (antrean penuh), sejak layanan dimulai

alarm: 120 menunggu (48,0 KiB), tertua 3 jam 12 menit
  epoch 0123456789abcdef, nomor berikutnya 4211, selesai sampai 4090
  alarm-3  tempat 4020–4210  120 menunggu  1,2 MiB  terbuka

telemetri: 52000 menunggu (20,3 MiB), tertua 3 jam 12 menit
  epoch 0123456789abcdef, nomor berikutnya 4211, selesai sampai 4090
  telemetry-7  tempat 90001–130000   40000 menunggu  17,0 MiB  tertutup
  telemetry-8  tempat 130001–142000  12000 menunggu  1,2 MiB   terbuka

Disisihkan karena rusak:
  bad-1-alarm-2  16,0 MiB
Selamatkan isinya dulu, lalu hapus foldernya:
  sudo gardu outbox salvage /var/lib/gardu/outbox/bad-1-alarm-2 -o selamat.jsonl
";
        assert_eq!(render(&backlog(), &daemon(), Language::Indonesian), page);
    }

    #[test]
    fn an_engineer_reads_the_same_in_english() {
        let page = "\
taman-elektrik-01 · /var/lib/gardu/outbox
  Source          the running daemon (127.0.0.1:9184)
  Verdict         DAMAGED PARTS WERE SET ASIDE: see below
                  NEARLY FULL, in 9 h 0 min: check the connection to the command center
                  52120 records wait and go out as soon as the command center takes them
  Space           [########............] 41% used: 105.0 MiB of 256.0 MiB; full in 9 h 0 min
  Lost            telemetry: 40000 (the outbox was full), since the daemon started

alarms: 120 waiting (48.0 KiB), the oldest for 3 h 12 min
  epoch 0123456789abcdef, next number 4211, settled up to 4090
  alarm-3  places 4020–4210  120 waiting  1.2 MiB  open

telemetry: 52000 waiting (20.3 MiB), the oldest for 3 h 12 min
  epoch 0123456789abcdef, next number 4211, settled up to 4090
  telemetry-7  places 90001–130000   40000 waiting  17.0 MiB  sealed
  telemetry-8  places 130001–142000  12000 waiting  1.2 MiB   open

Set aside because they are damaged:
  bad-1-alarm-2  16.0 MiB
Rescue what is in them, then remove the folder:
  sudo gardu outbox salvage /var/lib/gardu/outbox/bad-1-alarm-2 -o salvaged.jsonl
";
        assert_eq!(render(&backlog(), &daemon(), Language::English), page);
    }

    #[test]
    fn the_verdict_says_what_to_do() {
        let calm = || Outbox {
            lanes: BTreeMap::from([(Lane::Alarm, lane(0, vec![]))]),
            aside: vec![],
            lost: vec![],
            full_in_s: None,
            ..backlog()
        };
        let one = || Outbox { lanes: BTreeMap::from([(Lane::Alarm, lane(1, vec![]))]), ..calm() };
        let broken = vec![Unreadable { name: "alarm-2".into(), reason: "no\x1b[2J permission".into() }];
        let silent = Seen::Silent { holder: Some(4711), reason: "no answer in 5 s".into() };
        for (outbox, seen, said) in [
            (calm(), daemon(), "  Verdict         everything was delivered\n  Space"),
            (one(), daemon(), "  Verdict         1 record waits and goes out"),
            (one(), Seen::Stopped, "sudo systemctl start gardu"),
            (one(), silent, "process 4711 holds the outbox but does not answer"),
            (Outbox { disk_bytes: 268_435_456, ..calm() }, daemon(), "  Verdict         FULL: "),
            (Outbox { unreadable: broken, ..calm() }, Seen::Stopped, "\n  alarm-2  no [2J permission\n"),
            (
                Outbox { unusable: Some("/card: Read-only file system".into()), ..calm() },
                daemon(),
                "  Verdict         THE OUTBOX CANNOT BE USED, RECORDS ARE IN MEMORY ONLY: /card: Read-only file system\n",
            ),
            (
                Outbox { space: Some(Space::Tight), full_since: Some("2026-11-21T12:04:31.220Z".into()), ..calm() },
                daemon(),
                "  Verdict         THE DISK IS FULL since 2026-11-21T12:04:31.220Z: the outbox lives on the room",
            ),
            (
                Outbox { space: Some(Space::None), ..calm() },
                Seen::Stopped,
                "  Verdict         THE DISK IS FULL, NOTHING CAN BE RECORDED: remove what does not belong there",
            ),
            (
                Outbox { space: Some(Space::None), quota_bytes: Some(0), ..calm() },
                daemon(),
                "take a larger card\n                  everything was delivered\n",
            ),
            (Outbox { space: None, ..calm() }, Seen::Stopped, "  Verdict         everything was delivered\n  Space"),
            (Outbox { quota_bytes: None, ..calm() }, daemon(), "  Space           105.0 MiB\n"),
            (calm(), daemon(), "  Lost            nothing since the daemon started\n"),
            (Outbox { lost_over: LostOver::Disk, ..calm() }, daemon(), "nothing as far as what is on the disk tells"),
        ] {
            let page = render(&outbox, &seen, Language::English);
            assert!(page.contains(said), "{said}\n{page}");
        }
    }

    #[test]
    fn every_loss_has_words_in_both_languages() {
        assert!(LossReason::ALL.into_iter().all(|reason| text::exists(loss_key(reason))));
    }

    #[test]
    fn a_program_reads_the_same_numbers() {
        let outbox = backlog();
        let json = serde_json::to_string(&outbox).expect("json");
        assert_eq!(serde_json::from_str::<Outbox>(&json).expect("back"), outbox);
    }
}
