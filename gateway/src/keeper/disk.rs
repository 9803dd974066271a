//! What the outbox takes on the disk, and what the disk still has.

use std::{fs, io, path::Path};

use super::quota::Measured;
use crate::store::disk;

/// Measures everything below `path`. A few dozen calls on folders that the store has just touched: no real wait.
pub(super) fn measure(path: &Path) -> io::Result<Measured> {
    let mut measured = Measured { free: disk::free(path)?, ..Measured::default() };
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let bytes = disk::allocated(&entry.path())?;
        let of = |chain: &str| {
            name.to_str().and_then(|name| name.strip_prefix(chain)).is_some_and(|rest| rest.starts_with('-'))
        };
        let part = if of("alarm") {
            &mut measured.alarm
        } else if of("telemetry") {
            &mut measured.telemetry
        } else {
            &mut measured.other
        };
        *part += bytes;
    }
    Ok(measured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_counts_by_chain() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, bytes: usize| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, vec![1; bytes]).expect("written");
            fs::File::open(&path).and_then(|file| file.sync_all()).expect("on the disk: allocated");
        };
        let before = measure(folder.path()).expect("measures");
        assert_eq!(before.used(), 0);
        write("alarm-1/db", 300_000);
        write("telemetry-1/db", 500_000);
        write("telemetry-2/deep/er/x", 100_000);
        write("alarm.mark", 1_000);
        write("bad-1-alarm-1/db", 50_000);
        let measured = measure(folder.path()).expect("measures");
        let about = |found: u64, bytes: u64| assert!((bytes..bytes + 100_000).contains(&found), "{found}, not {bytes}");
        about(measured.alarm, 300_000);
        about(measured.telemetry, 600_000);
        about(measured.other, 51_000);
        assert!(measured.free > 0);
        assert!(measure(&folder.path().join("nothing")).is_err());
    }
}
