//! The folder of a chain: how it is made durable, and what is tried when it cannot be opened.
//!
//! Nothing is repaired in place. sled overwrites whatever it cannot follow, whole records behind a damage included, so
//! that only an untouched copy can be salvaged.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use tracing::error;

/// Lies in a chain that was repaired, until that had its consequences.
const REPAIRED: &str = "repaired";

/// Where a chain lies.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// Name of the folder, in messages and metrics.
    pub(super) chain: &'static str,
    /// The folder.
    pub(super) folder: PathBuf,
}

/// What is tried, in this order: the later, the more is given up.
#[derive(Debug, Clone, Copy)]
pub(super) enum Remedy {
    /// As it lies there.
    None,
    /// Without the settings file: it holds constants only and is made anew.
    WithoutSettings,
    /// A copy of the log alone; the original is set aside. The snapshot is made anew from the log, but if that has a
    /// gap, what comes behind is not found: the chain is [suspect](Place::suspect).
    LogAlone,
    /// Nothing of it; the original is set aside.
    Anew,
}

impl Remedy {
    pub(super) const ALL: [Self; 4] = [Self::None, Self::WithoutSettings, Self::LogAlone, Self::Anew];

    /// For a message.
    pub(super) const fn how(self) -> &'static str {
        match self {
            Self::None => "as it was",
            Self::WithoutSettings => "without its settings file",
            Self::LogAlone => "from its log alone",
            Self::Anew => "anew",
        }
    }
}

impl Place {
    /// Makes the folder and takes away what keeps a whole database from being opened: sled takes a half-written
    /// snapshot for the newest.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let half_written = |path: &&PathBuf| path.extension().is_some_and(|e| e == "generating");
        self.files("snap.")?.iter().filter(half_written).try_for_each(fs::remove_file)
    }

    /// Prepares the folder for another try; false if this remedy would change nothing.
    pub(super) fn apply(&self, remedy: Remedy) -> io::Result<bool> {
        match remedy {
            Remedy::None => Ok(true),
            Remedy::WithoutSettings => {
                let settings = self.folder.join("conf");
                let there = settings.symlink_metadata().is_ok();
                if there {
                    fs::rename(settings, self.folder.join("bad-conf"))?;
                }
                Ok(there)
            }
            Remedy::LogAlone if self.files("snap.")?.is_empty() => Ok(false),
            Remedy::LogAlone => {
                let copy = self.beside("repair");
                match self.copy_log(&copy) {
                    Ok(()) => {
                        self.set_aside()?;
                        fs::rename(copy, &self.folder)?;
                        Ok(true)
                    }
                    Err(error) => {
                        error!(chain = self.chain, "no copy of the log can be made: {error}");
                        let _ = fs::remove_dir_all(copy);
                        Ok(false)
                    }
                }
            }
            // The original of a copy is set aside already.
            Remedy::Anew if self.suspect() => fs::remove_dir_all(&self.folder).map(|()| true),
            Remedy::Anew => self.set_aside().map(|()| true),
        }
    }

    /// A copy of the log and the mark that it is one, on stable storage.
    fn copy_log(&self, copy: &Path) -> io::Result<()> {
        if copy.exists() {
            fs::remove_dir_all(copy)?;
        }
        fs::create_dir_all(copy)?;
        File::create(copy.join(REPAIRED))?.sync_all()?;
        fs::copy(self.folder.join("db"), copy.join("db"))?;
        File::open(copy.join("db"))?.sync_all()?;
        File::open(copy)?.sync_all()
    }

    fn set_aside(&self) -> io::Result<()> {
        let names = (1_u64..).map(|n| self.beside(&format!("bad-{n}")));
        let aside = names.into_iter().find(|path| path.symlink_metadata().is_err()).expect("some number is free");
        fs::rename(&self.folder, &aside)?;
        error!(chain = self.chain, set_aside = %aside.display(), "the damaged store is kept for salvage");
        Ok(())
    }

    fn beside(&self, what: &str) -> PathBuf {
        self.folder.with_file_name(format!("{what}-{}", self.chain))
    }

    /// Whether the chain was repaired from its log, and may lack the end of it without anyone knowing.
    pub(super) fn suspect(&self) -> bool {
        self.folder.join(REPAIRED).exists()
    }

    /// Forgets the suspicion, once its consequences are on stable storage.
    pub(super) fn trust(&self) -> io::Result<()> {
        if self.suspect() { fs::remove_file(self.folder.join(REPAIRED)) } else { Ok(()) }
    }

    /// Entries of the folder that begin so; none if it is not a folder.
    fn files(&self, begin: &str) -> io::Result<Vec<PathBuf>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let paths = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let begins = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(begin));
        Ok(paths.into_iter().filter(begins).collect())
    }

    /// Puts every file of the folder, the folder and all folders above it on stable storage: before that, what is
    /// synced in a new file can be lost with its name.
    pub(super) fn make_durable(&self) -> io::Result<()> {
        for file in self.files("")? {
            File::open(file)?.sync_all()?;
        }
        let folder = std::path::absolute(&self.folder)?;
        for (height, dir) in folder.ancestors().enumerate() {
            match File::open(dir).and_then(|dir| dir.sync_all()) {
                // Above the store's own two folders are those of others, which we may not be allowed to open.
                Err(_) if height > 1 => {}
                synced => synced?,
            }
        }
        Ok(())
    }
}
