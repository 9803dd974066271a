//! What a person names for salvage: a file, a folder with all below it, the image of a card, or the card itself.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
};

use super::{ToolError, salvage::Media};

/// Files by number, opened for reading only, one at a time.
#[derive(Debug)]
pub(super) struct Files {
    files: Vec<(PathBuf, u64)>,
    open: Option<(usize, File)>,
    /// What of a folder could not be opened, and why.
    pub(super) unopened: Vec<(PathBuf, String)>,
}

impl Files {
    /// Everything there is at a path. Links are not followed: they lead to what is looked at anyway, or out of it.
    pub(super) fn at(path: &Path) -> Result<Self, ToolError> {
        let refused = |e: io::Error| ToolError::reading(path, &e);
        let mut files = Self { files: Vec::new(), open: None, unopened: Vec::new() };
        if !fs::metadata(path).map_err(refused)?.is_dir() {
            files.files.push((path.into(), size(path).map_err(refused)?));
            return Ok(files);
        }
        let mut folders = vec![path.to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            for entry in files.note(&folder, entries).unwrap_or_default() {
                let path = entry.path();
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(path),
                    Ok(kind) if kind.is_file() => {
                        let size = size(&path);
                        if let Some(size) = files.note(&path, size) {
                            files.files.push((path, size));
                        }
                    }
                    _ => {}
                }
            }
        }
        files.files.sort();
        if files.files.is_empty()
            && let Some((path, reason)) = files.unopened.first()
        {
            return Err(ToolError::CannotRead { path: path.clone(), reason: reason.clone() });
        }
        Ok(files)
    }

    /// The name of one.
    pub(super) fn name(&self, number: usize) -> &Path {
        &self.files[number].0
    }

    fn note<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        result.map_err(|e| self.unopened.push((path.into(), e.to_string()))).ok()
    }
}

impl Media for Files {
    fn count(&self) -> usize {
        self.files.len()
    }

    fn len(&mut self, number: usize) -> u64 {
        self.files[number].1
    }

    fn read_at(&mut self, number: usize, at: u64, into: &mut [u8]) -> io::Result<usize> {
        let file = match self.open.take() {
            Some((open, file)) if open == number => file,
            _ => File::open(&self.files[number].0)?,
        };
        let read = file.read_at(into, at);
        self.open = Some((number, file));
        read
    }
}

/// Size of a file, or of a device, whose metadata says nothing of it.
fn size(path: &Path) -> io::Result<u64> {
    let kind = fs::metadata(path)?.file_type();
    if !(kind.is_file() || kind.is_block_device()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a file, a folder nor a block device"));
    }
    File::open(path)?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_with_all_below_it_and_links_are_not_followed() {
        let dir = tempfile::tempdir().expect("folder");
        let below = dir.path().join("bad-1-alarm-2");
        fs::create_dir(&below).expect("folder");
        fs::write(below.join("db"), b"12345").expect("file");
        fs::write(dir.path().join("lock"), b"").expect("file");
        std::os::unix::fs::symlink("/", dir.path().join("out")).expect("link");
        let mut files = Files::at(dir.path()).expect("readable");
        assert_eq!((files.count(), files.len(0), files.len(1)), (2, 5, 0));
        assert!(files.name(0).ends_with("bad-1-alarm-2/db"));
        let mut bytes = [0; 9];
        assert_eq!(files.read_at(0, 3, &mut bytes).expect("read"), 2);
        assert_eq!(&bytes[..2], b"45");
        for (path, exit) in [(dir.path().join("absent"), 66), (PathBuf::from("/dev/null"), 74)] {
            assert_eq!(Files::at(&path).expect_err("not to be read").exit_code(), exit, "{}", path.display());
        }
    }
}
