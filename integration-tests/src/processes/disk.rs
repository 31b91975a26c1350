//! A disk for one node: an ext4 file system in a file, which can be full, freeze, lose power, and have less
//! behind it than it promises.
//!
//! It needs the right to mount, so [`Disk::new`] may fail, and says why. Power is lost by the file
//! system's own shutdown request, which drops what is not on the disk yet, as losing power does; it is
//! made through perl, since nothing safe in Rust makes requests of that kind.

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
    /// The image lies on a file system of its own.
    is_thin: bool,
}

impl Disk {
    /// An empty disk.
    ///
    /// # Errors
    /// This machine does not let us; why.
    pub fn new(mebibytes: u64) -> Result<Self, String> {
        Self::make(mebibytes, None)
    }

    /// An empty disk that can keep only some of the bytes it has room for. Beyond them a write succeeds and
    /// the sync fails; a later sync succeeds, and the bytes are gone.
    ///
    /// # Errors
    /// This machine does not let us; why.
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

    /// Where the image lies.
    fn behind(&self) -> PathBuf {
        self.root.path().join("behind")
    }

    fn image(&self) -> PathBuf {
        self.behind().join("image")
    }

    fn mounted(&self) -> PathBuf {
        self.root.path().join("mounted")
    }

    /// Where a node may have its directory.
    pub fn data(&self) -> PathBuf {
        self.mounted().join("data")
    }

    fn mount(&mut self) -> Result<(), String> {
        let (image, at) = (self.image(), self.mounted());
        run("mount", &["-o", "loop", &text(&image), &text(&at)])?;
        self.is_mounted = true;
        Ok(())
    }

    /// Drops what was not synced; nothing can be written any more.
    ///
    /// # Errors
    /// It cannot be done on this machine.
    pub fn lose_power(&self) -> Result<(), String> {
        run("perl", &["-e", SHUTDOWN, &text(&self.mounted())])
    }

    /// Power is back. No process may have a file open.
    ///
    /// # Panics
    /// If the file system does not come back.
    pub fn regain_power(&mut self) {
        run("umount", &[&text(&self.mounted())]).expect("no process uses it");
        self.is_mounted = false;
        self.mount().expect("it was mounted before");
    }

    /// From now on, every writer waits.
    ///
    /// # Errors
    /// It cannot be done on this machine.
    pub fn freeze(&self) -> Result<Frozen<'_>, String> {
        run("fsfreeze", &["-f", &text(&self.mounted())])?;
        Ok(Frozen { disk: self })
    }

    /// Leaves only so many bytes, in steps of a block.
    ///
    /// # Panics
    /// If that many are not there in the first place.
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

    /// Writes files until what is behind a thin disk has so many bytes left.
    ///
    /// # Panics
    /// If it never had as many.
    pub fn exhaust_up_to(&self, left_bytes: u64) {
        let path = self.mounted().join(FILLER);
        let mut filler = std::fs::File::create(&path).expect("there is room for it");
        let block = vec![0xAA; 64 << 10];
        loop {
            let behind = rustix::fs::statvfs(self.behind()).expect("it is mounted");
            if behind.f_bfree * behind.f_frsize <= left_bytes {
                return;
            }
            // A piece is behind the disk only once it is synced.
            filler.write_all(&block).expect("there is room for it");
            filler.sync_all().expect("there is room for it");
        }
    }

    /// A thin disk has as much behind it as it promises.
    ///
    /// # Panics
    /// If it is no thin one.
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
            // Lazily: in a failed test a node may still be there for a moment.
            let _ = run("umount", &["-l", &text(&self.mounted())]);
        }
        if self.is_thin {
            let _ = run("umount", &["-l", &text(&self.behind())]);
        }
    }
}

/// While it lives, the disk is frozen.
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

    /// If the tool does not do what it says, the tests that use it prove nothing.
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
