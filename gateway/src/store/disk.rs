//! What files take on a disk, and what the disk still has.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Unit of `st_blocks` (stat(2)), whatever the file system's own block is.
const BLOCK: u64 = 512;
/// Files and folders looked at below one path: a generation has a few. What lies beyond is somebody else's mess.
const ENTRIES_MAX: usize = 10_000;
/// Folders below each other: a generation, and what sled makes in it.
const DEPTH_MAX: usize = 3;

/// Bytes that the file system of a path still has for us.
pub fn free(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Bytes allocated for a file, or for a folder and all in it; links are not followed. What is not there takes nothing.
pub fn allocated(path: &Path) -> io::Result<u64> {
    let mut left = ENTRIES_MAX;
    below(path, DEPTH_MAX, &mut left)
}

fn below(path: &Path, depth: usize, left: &mut usize) -> io::Result<u64> {
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
        bytes += below(&entry?.path(), depth - 1, left)?;
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
    fn what_is_allocated_counts_and_holes_do_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("deep/er/file");
        fs::create_dir_all(file.parent().expect("a folder")).expect("made");
        let before = allocated(folder.path()).expect("measures");
        fs::write(&file, vec![1; 300_000]).expect("written");
        let hole = fs::File::create(folder.path().join("hole")).expect("made");
        hole.set_len(1 << 30).and_then(|()| hole.sync_all()).expect("a hole");
        fs::File::open(&file).and_then(|file| file.sync_all()).expect("on the disk: allocated");
        let bytes = allocated(folder.path()).expect("measures") - before;
        assert!((300_000..400_000).contains(&bytes), "{bytes}");
        assert_eq!(allocated(&folder.path().join("nothing")).expect("it may have just gone"), 0);
        assert!(free(folder.path()).expect("measures") > 0);
        assert!(free(&folder.path().join("nothing")).is_err());
    }
}
