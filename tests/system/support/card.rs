//! A memory card whose power can be cut: ext4 on a loop file, and the kernel's own way to stop it dead.
//!
//! What the file system was not made to write by then is gone, as with a real cut; what it had passed to its device is
//! kept, so a card that lies about its flushes is not shown here. Mounts are private to the process ([`on_cards`]) and end
//! with it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    inside::{Inside, tool},
    pause, until,
};

/// Enough for any outbox of these tests and their file system's journal; the file is sparse.
const SIZE_BYTES: u64 = 96 << 20;
/// Another test may take the free loop device between the look and the grasp.
const TRIES: usize = 10;

/// Runs a test's story where it may mount cards; `GARDU_NO_LOOP=1` says that this is not to be had.
pub(crate) fn on_cards(test: &str, story: impl FnOnce()) {
    let needs = "root, and loop devices that may be mounted";
    // A network of its own: so many ports are in use and come back that another test would get in the way.
    Inside { unshare: &["--mount", "--net"], needs, without: "GARDU_NO_LOOP" }.run(test, || {
        tool("ip", &["link", "set", "lo", "up"]).expect("the loopback (Debian: iproute2)");
        story();
    });
}

/// A card in its slot; it is taken out with this value.
#[derive(Debug)]
pub(crate) struct Card {
    dir: TempDir,
}

/// What lies under a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// ext4 on a loop file.
    Ext4,
    /// tmpfs: no power cut, no second mount.
    Tmpfs,
}

impl Card {
    /// A new card, formatted and mounted.
    pub(crate) fn insert() -> Self {
        let card = Self { dir: tempfile::tempdir().expect("a folder for the card") };
        fs::create_dir(card.path()).expect("where it is mounted");
        card.format(SIZE_BYTES);
        card
    }

    fn format(&self, bytes: u64) {
        let image = fs::File::create(self.image()).expect("the card's file");
        image.set_len(bytes).expect("a sparse file");
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", &text(&self.image())]).expect("mkfs.ext4 (Debian: e2fsprogs)");
        self.mount();
    }

    /// A disk of so many MiB.
    pub(crate) fn small(disk: Disk, mib: u64) -> Self {
        let card = Self { dir: tempfile::tempdir().expect("a folder for the card") };
        fs::create_dir(card.path()).expect("where it is mounted");
        match disk {
            Disk::Ext4 => card.format(mib << 20),
            Disk::Tmpfs => {
                let size = format!("-osize={mib}M");
                tool("mount", &["-t", "tmpfs", &size, "gardu-test", &text(&card.path())]).expect("tmpfs is everywhere");
            }
        }
        card
    }

    /// Lets a file of somebody else take all that is free now, to the last block, and nothing that is given back meanwhile.
    pub(crate) fn fill(&self) {
        let mut foreign = fs::File::options().create(true).append(true).open(self.foreign()).expect("a foreign file");
        let mut left = usize::try_from(self.free()).expect("a small card");
        let mut block = vec![0x5a; 1 << 20];
        while left.min(block.len()) > 0 {
            match foreign.write(&block[..left.min(block.len())]) {
                Ok(written) => left -= written,
                Err(_) => block.truncate(block.len() / 2),
            }
        }
        // ext4 puts off what it can, and would find no room then.
        let _full = foreign.sync_all();
    }

    /// Lets a file of somebody else take all but so many bytes, durably.
    pub(crate) fn leave(&self, bytes: u64) {
        take_room(&self.foreign(), self.free().saturating_sub(bytes));
    }

    /// Lets a file of somebody else lie among the outbox's own, durably: it counts as part of the outbox.
    pub(crate) fn crowd_outbox(&self, bytes: u64) {
        take_room(&self.intruder(), bytes);
    }

    /// Gives so much of that back.
    pub(crate) fn give_back(&self, bytes: u64) {
        let foreign = fs::File::options().write(true).open(self.foreign()).expect("it was filled");
        let length = foreign.metadata().expect("it is there").len();
        foreign.set_len(length.saturating_sub(bytes)).expect("ours to cut");
        foreign.sync_all().expect("cutting takes no room");
    }

    /// Takes the foreign files away.
    pub(crate) fn clean(&self) {
        for file in [self.foreign(), self.intruder()].iter().filter(|file| file.exists()) {
            fs::remove_file(file).expect("ours to remove");
        }
    }

    /// Bytes that anybody may still write.
    pub(crate) fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).expect("it is mounted");
        disk.f_bavail * disk.f_frsize
    }

    /// Lets nobody write any more, or lets them again.
    pub(crate) fn remount(&self, option: &str) {
        let option = format!("-oremount,{option}");
        tool("mount", &[&option, &text(&self.path())]).expect("it is mounted");
    }

    fn foreign(&self) -> PathBuf {
        self.path().join("foreign")
    }

    fn intruder(&self) -> PathBuf {
        self.outbox().join("foreign")
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("card")
    }

    /// The folder of an outbox on it. No folder above it is there before the gateway makes it.
    pub(crate) fn outbox(&self) -> PathBuf {
        self.path().join("lib/gardu/outbox")
    }

    /// Cuts its power: from now on every write and every sync of it fails, and what it was not made to write is gone.
    ///
    /// Nobody may be in the middle of a sync: that one may report success for what is dropped.
    pub(crate) fn cut_power(&self) {
        // FS_IOC_SHUTDOWN, flag 2: not even the journal is flushed. Rust has no safe ioctl; perl-base is on every Debian.
        let script = r#"
            open(my $card, "<", $ARGV[0]) or die "open: $!";
            my $flags = pack("L", 2);
            ioctl($card, 0x8004587d, $flags) or die "ioctl: $!";
        "#;
        tool("perl", &["-e", script, &text(&self.path())]).expect("ext4 can be shut down");
    }

    /// Takes it out and puts it back, as the machine does when the power returns: nothing of it is in memory any more.
    pub(crate) fn reinsert(&self) {
        self.unmount();
        self.mount();
    }

    fn mount(&self) {
        let (image, path) = (text(&self.image()), text(&self.path()));
        let mut tries = (0..TRIES).map(|_| {
            let tried = tool("mount", &["-t", "ext4", "-o", "loop,noatime", &image, &path]);
            if tried.is_err() {
                pause();
            }
            tried
        });
        let mounted = tries.try_fold(String::new(), |_, tried| match tried {
            Ok(()) => Err(()),
            Err(fault) => Ok(fault),
        });
        if let Ok(fault) = mounted {
            panic!("a card cannot be mounted; GARDU_NO_LOOP=1 goes without: {fault}");
        }
    }

    /// Unmounts it whole: as long as anyone holds it, the next mount would find what is in memory.
    fn unmount(&self) {
        until("nobody uses the card", || tool("umount", &[&text(&self.path())]).is_ok());
        until("the card's device is let go", || !self.attached());
    }

    /// Whether a loop device still has its file: they let go with the last user of the file system.
    fn attached(&self) -> bool {
        let image = text(&self.image());
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut backed = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        backed.any(|file| file.trim_end().starts_with(&image))
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // It may not have been mounted. `--lazy` only matters if a test failed with the gateway still alive.
        let _absent = tool("umount", &["--lazy", &text(&self.path())]);
    }
}

fn take_room(file: &Path, bytes: u64) {
    let file = fs::File::create(file).expect("a foreign file");
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).expect("there is room");
    file.sync_all().expect("there is room");
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
