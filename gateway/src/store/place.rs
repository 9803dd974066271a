//! The folders of a chain's generations, and how they are made durable.
//!
//! Nothing is repaired in place. sled overwrites whatever it cannot follow, whole records behind a damage included.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use tracing::{error, warn};

use super::{disk, durable::DATA};

/// Damaged folders of a chain that are kept for people to look at; the oldest go first.
const ASIDE_MAX: usize = 2;
/// In front of a folder's name while it is written anew.
const COMPACTING: &str = "compacting-";

/// Where a chain lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Name of the chain, in names of folders, messages and metrics.
    pub(super) chain: &'static str,
    /// The folder of the outbox.
    pub(super) root: PathBuf,
}

impl Place {
    /// The folder of a generation.
    pub(super) fn folder(&self, number: u64) -> PathBuf {
        self.root.join(format!("{}-{number}", self.chain))
    }

    /// The data file of a generation.
    pub(super) fn data(&self, number: u64) -> PathBuf {
        self.folder(number).join(DATA)
    }

    /// The file of the high-water mark.
    pub(super) fn mark(&self) -> PathBuf {
        self.root.join(format!("{}.mark", self.chain))
    }

    /// The generations that lie there, the oldest first; an interrupted [`Place::replace`] is finished.
    pub(super) fn generations(&self) -> io::Result<Vec<u64>> {
        for number in self.numbers(&format!("{COMPACTING}{}", self.chain))? {
            let half = self.compacting(number);
            if self.folder(number).exists() {
                fs::remove_dir_all(half)?;
            } else {
                fs::rename(half, self.folder(number))?;
            }
        }
        self.numbers(self.chain)
    }

    fn numbers(&self, before: &str) -> io::Result<Vec<u64>> {
        let number = |name: &str| name.strip_prefix(before)?.strip_prefix('-')?.parse().ok();
        let names = fs::read_dir(&self.root)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number(name.to_str()?)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Takes away what keeps a whole database from being opened: sled takes a half-written snapshot for the newest.
    pub(super) fn remove_half_written_snapshots(&self, number: u64) -> io::Result<()> {
        let half_written = |path: &&PathBuf| path.extension().is_some_and(|e| e == "generating");
        files(&self.folder(number))?.iter().filter(half_written).try_for_each(fs::remove_file)
    }

    /// Takes a generation away, whatever lies in its place.
    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        let folder = self.folder(number);
        match folder.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(folder),
            Ok(_) => fs::remove_file(folder),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps a damaged generation for people; its place is free then.
    pub(super) fn set_aside(&self, number: u64) -> io::Result<()> {
        let mut kept = self.set_aside_already()?;
        let next = kept.last().map_or(1, |(n, _)| n + 1);
        let aside = self.root.join(format!("bad-{next}-{}-{number}", self.chain));
        match fs::rename(self.folder(number), &aside) {
            Ok(()) => error!(chain = self.chain, set_aside = %aside.display(), "a damaged generation is kept"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        while kept.len() >= ASIDE_MAX {
            let (_, oldest) = kept.remove(0);
            warn!(chain = self.chain, removed = %oldest.display(), "of the damaged generations the oldest goes");
            if oldest.is_dir() { fs::remove_dir_all(oldest)? } else { fs::remove_file(oldest)? }
        }
        Ok(())
    }

    fn set_aside_already(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let mut parts = name.to_str().unwrap_or_default().split('-');
            if let (Some("bad"), Some(n), Some(chain)) = (parts.next(), parts.next(), parts.next())
                && chain == self.chain
                && let Ok(n) = n.parse()
            {
                kept.push((n, entry.path()));
            }
        }
        kept.sort();
        Ok(kept)
    }

    /// Puts every file of a generation, its folder and all folders above it on stable storage: before that, what is
    /// synced in a new file can be lost with its name.
    pub(super) fn make_durable(&self, number: u64) -> io::Result<()> {
        make_durable(&self.folder(number))
    }

    /// Puts the outbox's own folder on stable storage: what was made or removed in it.
    pub(super) fn sync_root(&self) -> io::Result<()> {
        File::open(&self.root)?.sync_all()
    }

    /// Writes the data file of a sealed generation anew with these lines, durably; readers see the old or the new one.
    pub(super) fn replace(&self, number: u64, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let (half, folder) = (self.compacting(number), self.folder(number));
        if half.exists() {
            fs::remove_dir_all(&half)?;
        }
        fs::create_dir(&half)?;
        let written = File::create(half.join(DATA)).and_then(|file| {
            let mut file = io::BufWriter::new(file);
            write(&mut file)?;
            file.into_inner()?.sync_all()?;
            File::open(&half)?.sync_all()?;
            self.sync_root()
        });
        if let Err(error) = written {
            let _ = fs::remove_dir_all(&half);
            return Err(error);
        }
        self.remove(number)?;
        fs::rename(half, folder)?;
        self.sync_root()
    }

    fn compacting(&self, number: u64) -> PathBuf {
        self.root.join(format!("{COMPACTING}{}-{number}", self.chain))
    }

    /// Bytes a generation takes on the disk.
    pub(super) fn disk_bytes(&self, number: u64) -> u64 {
        disk::allocated(&self.folder(number)).unwrap_or(0)
    }
}

/// The entries of a folder.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn make_durable(folder: &Path) -> io::Result<()> {
    for file in files(folder)? {
        File::open(file)?.sync_all()?;
    }
    let folder = std::path::absolute(folder)?;
    for (height, dir) in folder.ancestors().enumerate() {
        match File::open(dir).and_then(|dir| dir.sync_all()) {
            // Above the store's own two folders are those of others, which we may not be allowed to open.
            Err(_) if height > 1 => {}
            synced => synced?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path) -> Place {
        Place { chain: "alarm", root: root.into() }
    }

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            files(root).expect("folder").iter().map(|p| p.file_name().expect("a name").display().to_string()).collect();
        names.sort();
        names
    }

    #[test]
    fn generations_are_ordered_by_number_and_strangers_do_not_count() {
        let dir = tempfile::tempdir().expect("folder");
        for name in ["alarm-10", "alarm-9", "alarm-x", "alarms-3", "telemetry-1", "bad-1-alarm-2"] {
            fs::create_dir(dir.path().join(name)).expect("folder");
        }
        assert_eq!(place(dir.path()).generations().expect("reads"), [9, 10]);
    }

    #[test]
    fn few_damaged_generations_are_kept_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("folder");
        let place = place(dir.path());
        for number in 1..=4 {
            fs::create_dir(place.folder(number)).expect("folder");
            place.set_aside(number).expect("renames");
        }
        place.set_aside(9).expect("what is gone already is no error");
        assert_eq!(names(dir.path()), ["bad-3-alarm-3", "bad-4-alarm-4"]);
    }

    #[test]
    fn a_generation_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("folder");
        let place = place(dir.path());
        let read = |number| fs::read_to_string(place.data(number)).expect("reads");
        fs::create_dir(place.folder(1)).expect("folder");
        fs::write(place.data(1), "old").expect("writes");
        place.replace(1, |_| Err(io::Error::other("the card is full"))).expect_err("fails");
        assert_eq!((read(1).as_str(), names(dir.path()).len()), ("old", 1));
        place.replace(1, |file| file.write_all(b"new")).expect("replaces");
        assert_eq!((read(1).as_str(), names(dir.path()).len()), ("new", 1));

        // The power went before the rename, and behind the removal.
        fs::create_dir(place.compacting(1)).expect("folder");
        fs::write(place.compacting(1).join(DATA), "half").expect("writes");
        assert_eq!((place.generations().expect("reads"), read(1).as_str()), (vec![1], "new"));
        fs::rename(place.folder(1), place.compacting(1)).expect("renames");
        assert_eq!((place.generations().expect("reads"), read(1).as_str()), (vec![1], "new"));
    }
}
