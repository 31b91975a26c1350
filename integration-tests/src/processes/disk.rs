//! A disk for one node: an ext4 file system in a file. It can be full, freeze, lose power, and have
//! less space behind it than it promises.
//!
//! It needs the right to mount, so [`Disk::new`] may fail, and returns the reason. Loss of power is
//! the file system's own shutdown request, which drops all data that is not on the disk yet, as
//! losing power does; it is made through perl, since nothing safe in Rust makes ioctl requests of
//! that kind.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::means::run;

/// `EXT4_IOC_SHUTDOWN`, and its flag "do not write the journal first".
const SHUTDOWN: &str = r#"
    open(my $directory, "<", $ARGV[0]) or die "open: $!";
    my $flags = pack("L", 2);
    ioctl($directory, 0x8004587d, $flags) or die "ioctl: $!";
"#;
const FILLER: &str = "filler";

pub struct Disk {
    root: TempDir,
    is_mounted: bool,
    /// True if the image lies on a small file system of its own, see [`Disk::thin`].
    is_thin: bool,
}

impl Disk {
    /// An empty disk.
    ///
    /// # Errors
    /// The reason, if this machine does not allow it.
    pub fn new(mebibytes: u64) -> Result<Self, String> {
        Self::make(mebibytes, None)
    }

    /// An empty disk that can keep fewer bytes than it has room for. Beyond that limit a write
    /// succeeds and the sync fails; a later sync succeeds, and the bytes are gone.
    ///
    /// # Errors
    /// The reason, if this machine does not allow it.
    pub fn thin(mebibytes: u64, kept_mebibytes: u64) -> Result<Self, String> {
        Self::make(mebibytes, Some(kept_mebibytes))
    }

    fn make(mebibytes: u64, kept_mebibytes: Option<u64>) -> Result<Self, String> {
        run("perl", &["-e", "1"])?;
        run("fsfreeze", &["--version"])?;
        let root = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut disk = Self { root, is_mounted: false, is_thin: false };
        std::fs::create_dir(disk.behind()).map_err(|error| error.to_string())?;
        if let Some(kept) = kept_mebibytes {
            let size = format!("size={kept}m");
            run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &text(&disk.behind())])?;
            disk.is_thin = true;
        }
        let image = disk.image();
        let file = OpenOptions::new().write(true).create_new(true).open(&image);
        let sized = file.and_then(|file| file.set_len(mebibytes << 20));
        sized.map_err(|error| format!("{}: {error}", image.display()))?;
        let image = image.display().to_string();
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-b", "4096", &image])?;
        std::fs::create_dir(disk.mounted()).map_err(|error| error.to_string())?;
        disk.mount()?;
        Ok(disk)
    }

    /// Directory of the image.
    fn behind(&self) -> PathBuf {
        self.root.path().join("behind")
    }

    fn image(&self) -> PathBuf {
        self.behind().join("image")
    }

    fn mounted(&self) -> PathBuf {
        self.root.path().join("mounted")
    }

    /// Path for a node's data directory.
    pub fn data(&self) -> PathBuf {
        self.mounted().join("data")
    }

    fn mount(&mut self) -> Result<(), String> {
        let (image, at) = (self.image(), self.mounted());
        run("mount", &["-o", "loop", &text(&image), &text(&at)])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Drops everything that was not synced; from then on nothing can be written.
    ///
    /// # Errors
    /// It cannot be done on this machine.
    pub fn lose_power(&self) -> Result<(), String> {
        run("perl", &["-e", SHUTDOWN, &text(&self.mounted())])
    }

    /// Restores power. No process may have a file open.
    ///
    /// # Panics
    /// If the file system does not come back.
    pub fn regain_power(&mut self) {
        run("umount", &[&text(&self.mounted())]).expect("no process uses it");
        self.is_mounted = false;
        self.mount().expect("it was mounted before");
    }

    /// Freezes the disk: from now on, every writer waits.
    ///
    /// # Errors
    /// It cannot be done on this machine.
    pub fn freeze(&self) -> Result<Frozen<'_>, String> {
        run("fsfreeze", &["-f", &text(&self.mounted())])?;
        Ok(Frozen { disk: self })
    }

    /// Fills the disk until only this many bytes are left, in steps of a block.
    ///
    /// # Panics
    /// If fewer are free in the first place.
    pub fn fill_up_to(&self, left_bytes: u64) {
        let path = self.mounted().join(FILLER);
        let mut filler =
            OpenOptions::new().create(true).append(true).open(&path).expect("room for it");
        let block = vec![0xAA; 64 << 10];
        loop {
            match filler.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        let full = filler.metadata().expect("it is open").len();
        filler
            .set_len(full.checked_sub(left_bytes).expect("it was larger"))
            .expect("it can shrink");
        filler.sync_all().expect("what was written has its place");
    }

    /// Writes to a file until only this many bytes are left behind a thin disk.
    ///
    /// # Panics
    /// If a write or a sync fails before that.
    pub fn exhaust_up_to(&self, left_bytes: u64) {
        let path = self.mounted().join(FILLER);
        let mut filler = std::fs::File::create(&path).expect("there is room for it");
        let block = vec![0xAA; 64 << 10];
        loop {
            let behind = rustix::fs::statvfs(self.behind()).expect("it is mounted");
            if behind.f_bfree * behind.f_frsize <= left_bytes {
                return;
            }
            // A block takes space behind the disk only once it is synced.
            filler.write_all(&block).expect("there is room for it");
            filler.sync_all().expect("there is room for it");
        }
    }

    /// Gives a thin disk as much space behind it as it promises.
    ///
    /// # Panics
    /// If the disk is not thin.
    pub fn fill_in(&self) {
        run("mount", &["-o", "remount,size=100%", &text(&self.behind())]).expect("it is thin");
    }

    pub fn make_room(&self) {
        std::fs::remove_file(self.mounted().join(FILLER)).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            // Unmount lazily: in a failed test a node may still use the disk for a moment.
            let _ = run("umount", &["-l", &text(&self.mounted())]);
        }
        if self.is_thin {
            let _ = run("umount", &["-l", &text(&self.behind())]);
        }
    }
}

/// The disk is frozen while this lives.
pub struct Frozen<'a> {
    disk: &'a Disk,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["-u", &text(&self.disk.mounted())]).expect("it was frozen");
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::means::not_run;

    /// Checks the tool itself: if it does not do what it says, the tests that use it prove nothing.
    #[test]
    fn a_loss_of_power_takes_what_was_not_synced_and_nothing_else() {
        let mut disk = match Disk::new(32) {
            Ok(disk) => disk,
            Err(why) => return not_run("a disk that loses power", &why),
        };
        let file = |name: &str| {
            let path = disk.mounted().join(name);
            OpenOptions::new().create(true).truncate(false).write(true).open(path).unwrap()
        };
        let mut kept = file("kept");
        kept.write_all(b"synced").unwrap();
        kept.sync_all().unwrap();
        std::fs::File::open(disk.mounted()).unwrap().sync_all().unwrap();
        kept.write_all(b", not synced").unwrap();
        file("lost").write_all(b"not synced").unwrap();
        if let Err(why) = disk.lose_power() {
            return not_run("a disk that loses power", &why);
        }
        assert!(kept.sync_all().is_err(), "it is off");
        drop(kept);
        disk.regain_power();
        assert_eq!(std::fs::read(disk.mounted().join("kept")).unwrap(), b"synced");
        let lost = std::fs::read(disk.mounted().join("lost")).unwrap_or_default();
        assert_eq!(lost, b"");
    }

    #[test]
    fn a_thin_disk_fails_a_sync_and_keeps_what_was_synced_before() {
        let mut disk = match Disk::thin(64, 16) {
            Ok(disk) => disk,
            Err(why) => return not_run("a disk that keeps less than it promises", &why),
        };
        let path = disk.mounted().join("kept");
        let mut kept = std::fs::File::create(&path).unwrap();
        kept.write_all(b"synced").unwrap();
        kept.sync_all().unwrap();
        disk.exhaust_up_to(1 << 20);
        let mut lost = std::fs::File::create(disk.mounted().join("lost")).unwrap();
        lost.write_all(&vec![1; 4 << 20]).unwrap();
        let failed = (0..100).take_while(|_| lost.sync_data().is_err()).count();
        assert!(failed > 0, "there is nothing behind it");
        assert!(failed < 100, "the kernel tells of each loss once");
        drop((kept, lost));
        disk.fill_in();
        disk.regain_power();
        assert_eq!(std::fs::read(disk.mounted().join("kept")).unwrap(), b"synced");
        let lost = std::fs::read(disk.mounted().join("lost")).unwrap_or_default();
        assert!(lost != vec![1; 4 << 20], "the sync that succeeded brought nothing back");
    }
}
