//! What the outbox takes on the disk, and what the disk still has.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::quota::Measured;

/// Unit of `st_blocks` (stat(2)), whatever the file system's own block is.
const BLOCK: u64 = 512;
/// Files and folders looked at: a hundred generations have a few each. What lies beyond is somebody else's mess.
const ENTRIES_MAX: usize = 10_000;
/// Folders below each other: a generation, and what sled makes in it.
const DEPTH_MAX: usize = 3;

/// Measures everything below `path`. A few dozen calls on folders that the store has just touched: no real wait.
pub(super) fn measure(path: &Path) -> io::Result<Measured> {
    let space = rustix::fs::statvfs(path)?;
    let mut measured = Measured { free: space.f_bavail.saturating_mul(space.f_frsize), ..Measured::default() };
    let mut left = ENTRIES_MAX;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let bytes = allocated(&entry.path(), DEPTH_MAX, &mut left)?;
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

/// Bytes allocated for a file, or for a folder and all in it; links are not followed. What vanishes meanwhile is nothing.
fn allocated(path: &Path, depth: usize, left: &mut usize) -> io::Result<u64> {
    let Some(meta) = there(path.symlink_metadata())? else { return Ok(0) };
    let mut bytes = meta.blocks() * BLOCK;
    *left = left.saturating_sub(1);
    if !meta.is_dir() || depth == 0 {
        return Ok(bytes);
    }
    let Some(entries) = there(fs::read_dir(path))? else { return Ok(bytes) };
    for entry in entries {
        if *left == 0 {
            break;
        }
        bytes += allocated(&entry?.path(), depth - 1, left)?;
    }
    Ok(bytes)
}

fn there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_allocated_counts_by_chain_and_holes_do_not() {
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
        fs::File::create(folder.path().join("telemetry-1/hole"))
            .and_then(|file| file.set_len(1 << 30))
            .expect("a hole");
        let measured = measure(folder.path()).expect("measures");
        let about = |found: u64, bytes: u64| assert!((bytes..bytes + 100_000).contains(&found), "{found}, not {bytes}");
        about(measured.alarm, 300_000);
        about(measured.telemetry, 600_000);
        about(measured.other, 51_000);
        assert!(measured.free > 0);
        assert!(measure(&folder.path().join("nothing")).is_err());
    }
}
