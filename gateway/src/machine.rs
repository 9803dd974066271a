//! Which machine this is: a store that is carried to another one begins a new epoch (DESIGN.md §5.3).
//!
//! No single source will do. `/etc/machine-id` (machine-id(5)) is copied with a cloned card; what the board itself says
//! stays with the board: the serial number of a device tree (Raspberry Pi), the `Serial` line of `/proc/cpuinfo` on older
//! kernels of such boards, UUID and serial number of a PC's firmware (DMI).
//!
//! Not every process may read all of them: the kernel shows the DMI numbers to root alone, so that the service
//! (`User=gardu`) never sees them and a hand-started root does; containers hide `/sys/firmware`, where the device tree
//! lies. The sandbox of our unit hides none of the others: `ProtectKernelTunables=` makes `/proc` and `/sys` read-only,
//! `ProtectProc=` hides processes. So a source that says nothing means nothing: parts are compared where both sides know
//! them, and what was known once is kept.
//!
//! Limits: two PCs with one cloned disk look the same to a service without root, until the command center's numbers tell
//! (`uplink/readback.rs`).

use std::{collections::BTreeMap, fs};

use serde::{Deserialize, Serialize};

/// What tells machines apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    MachineId,
    DeviceTreeSerial,
    CpuSerial,
    ProductUuid,
    BoardSerial,
}

/// Where each part is read; the first file that says something counts.
const SOURCES: [(Part, &str); 6] = [
    (Part::MachineId, "/etc/machine-id"),
    (Part::MachineId, "/var/lib/dbus/machine-id"),
    (Part::DeviceTreeSerial, "/proc/device-tree/serial-number"),
    (Part::CpuSerial, "/proc/cpuinfo"),
    (Part::ProductUuid, "/sys/class/dmi/id/product_uuid"),
    (Part::BoardSerial, "/sys/class/dmi/id/board_serial"),
];
/// Longer than any serial number or UUID; what is longer is cut, so that it always fits the store.
const PART_LEN_MAX: usize = 128;

/// What is known of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Machine(BTreeMap<Part, String>);

/// As stores keep it; the first ones kept the machine-id alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Parts(BTreeMap<Part, String>),
    MachineId(String),
}

impl From<Stored> for Machine {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Parts(parts) => Self(parts),
            Stored::MachineId(id) => id.as_str().into(),
        }
    }
}

impl From<&str> for Machine {
    /// A machine of which only the machine-id is known.
    fn from(id: &str) -> Self {
        Self::of([(Part::MachineId, id.to_owned())])
    }
}

impl Machine {
    /// The machine we run on.
    #[must_use]
    pub fn this() -> Self {
        Self::of(SOURCES.into_iter().filter_map(|(part, path)| Some((part, fs::read_to_string(path).ok()?))))
    }

    /// What the texts of sources say; an earlier one counts before a later one of the same part.
    fn of(texts: impl IntoIterator<Item = (Part, String)>) -> Self {
        let mut parts = BTreeMap::new();
        for (part, text) in texts {
            if let Some(said) = said(part, &text) {
                parts.entry(part).or_insert(said);
            }
        }
        Self(parts)
    }

    /// Whether it is certainly not this one: a part that both know differs.
    #[must_use]
    pub fn differs_from(&self, other: &Self) -> bool {
        self.0.iter().any(|(part, said)| other.0.get(part).is_some_and(|others| others != said))
    }

    /// What is known of the same machine from now and from before.
    #[must_use]
    pub fn and_before(mut self, before: Self) -> Self {
        for (part, said) in before.0 {
            self.0.entry(part).or_insert(said);
        }
        self
    }
}

/// The part in the text of its source; none where it says nothing, as firmware without a number does.
fn said(part: Part, text: &str) -> Option<String> {
    let text = match part {
        Part::CpuSerial => {
            let mut fields = text.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(name, value)| (name.trim() == "Serial").then_some(value))?
        }
        Part::MachineId | Part::DeviceTreeSerial | Part::ProductUuid | Part::BoardSerial => text,
    };
    // Strings of a device tree end in NUL.
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_ascii_lowercase();
    let says = text.chars().any(|c| c.is_alphanumeric() && c != '0');
    // systemd writes the word before the first boot is through (machine-id(5)).
    (says && text != "uninitialized").then(|| text.chars().take(PART_LEN_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nBogoMIPS\t: 108.00\n\nRevision\t: c03115\nSerial\t\t: 10000000A1B2C3D4\n";

    fn machine(parts: &[(Part, &str)]) -> Machine {
        Machine::of(parts.iter().map(|(part, text)| (*part, (*text).to_owned())))
    }

    #[test]
    fn each_source_says_one_part_or_nothing() {
        for (part, text, expected) in [
            (Part::MachineId, "0123456789abcdef0123456789abcdef\n", Some("0123456789abcdef0123456789abcdef")),
            (Part::MachineId, "uninitialized\n", None),
            (Part::DeviceTreeSerial, "10000000a1b2c3d4\0", Some("10000000a1b2c3d4")),
            (Part::CpuSerial, CPUINFO, Some("10000000a1b2c3d4")),
            (Part::CpuSerial, "processor : 0\nmodel name : x\n", None),
            (Part::CpuSerial, "Serial : 0000000000000000\n", None),
            (Part::ProductUuid, "00000000-0000-0000-0000-000000000000\n", None),
            (Part::BoardSerial, " \n", None),
        ] {
            assert_eq!(said(part, text).as_deref(), expected, "{part:?} {text:?}");
        }
        assert_eq!(said(Part::BoardSerial, &"x".repeat(5_000)).map(|said| said.len()), Some(PART_LEN_MAX));
    }

    #[test]
    fn a_cloned_card_on_another_board_is_another_machine_and_a_hidden_source_is_not() {
        let (id, other_id) = ((Part::MachineId, "aa"), (Part::MachineId, "ab"));
        let (board, other_board) = ((Part::DeviceTreeSerial, "b1"), (Part::DeviceTreeSerial, "b2"));
        let uuid = (Part::ProductUuid, "c1");
        for (before, now, differs) in [
            (&[id, board][..], &[id, board][..], false),
            (&[id, board], &[id, other_board], true),
            (&[id, board], &[other_id, board], true),
            (&[id, board], &[id], false),
            (&[id], &[id, board, uuid], false),
            (&[id, uuid], &[id, board], false),
            (&[], &[id, board], false),
        ] {
            assert_eq!(machine(before).differs_from(&machine(now)), differs, "{before:?} {now:?}");
            assert_eq!(machine(now).differs_from(&machine(before)), differs, "{now:?} {before:?}");
        }
    }

    #[test]
    fn what_was_known_once_is_kept_while_its_source_is_hidden() {
        let (id, board) = ((Part::MachineId, "aa"), (Part::DeviceTreeSerial, "b1"));
        let kept = machine(&[id]).and_before(machine(&[id, board]));
        assert_eq!(kept, machine(&[id, board]));
        assert!(machine(&[id, (Part::DeviceTreeSerial, "b2")]).differs_from(&kept));
    }

    #[test]
    fn it_is_stored_by_part_and_the_first_form_is_still_read() {
        let known = machine(&[(Part::MachineId, "aa"), (Part::BoardSerial, "B-7")]);
        let stored = serde_json::to_string(&known).expect("JSON");
        assert_eq!(stored, r#"{"machine-id":"aa","board-serial":"b-7"}"#);
        assert_eq!(serde_json::from_str::<Machine>(&stored).expect("its own JSON"), known);
        assert_eq!(serde_json::from_str::<Machine>(r#""aa""#).expect("the first form"), "aa".into());
        assert_eq!(serde_json::from_str::<Machine>("{}").expect("nothing known"), Machine::default());
    }
}
