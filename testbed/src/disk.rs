//! Disks of a known size, full on request.
//!
//! Inputs: a cluster whose spec gives its disk a size. Outputs: its pre-made volumes on a memory disk of that size, and a
//! file that takes what is left of it. Invariant: a disk without a size of its own is never filled: it is the machine's.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::command::{command, run};
use crate::error::{Error, IoContext as _, Result};
use crate::files;

const BALLAST: &str = "ballast";
const LIMIT: Duration = Duration::from_secs(20);

/// Mounts a memory disk of `mib` MiB at a folder.
pub(crate) async fn mount(folder: &Path, mib: u32) -> Result<()> {
    files::create_dir(folder)?;
    let mut mount = command("mount", ["-t", "tmpfs", "-o"]);
    mount.arg(format!("size={mib}m,mode=755")).args(["vendue-disk"]).arg(folder);
    run("mount a memory disk", LIMIT, mount).await.map(drop)
}

/// Unmounts the memory disks below a folder; none is fine.
pub(crate) fn unmount_below(folder: &Path) -> Result<()> {
    for mounted in mounts_below(folder, &files::read("/proc/self/mounts")?) {
        nix::mount::umount2(&mounted, nix::mount::MntFlags::MNT_DETACH)
            .map_err(std::io::Error::from)
            .io("unmount", &mounted)?;
    }
    Ok(())
}

/// Mount points of the test bed's disks below a folder, from the text of `/proc/self/mounts`.
fn mounts_below(folder: &Path, mounts: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let mut fields = line.split(' ');
        let ours = fields.next() == Some("vendue-disk");
        fields.next().filter(|_| ours).map(|path| PathBuf::from(path.replace("\\040", " ")))
    };
    mounts.lines().filter_map(point).filter(|path| path.starts_with(folder)).collect()
}

impl Cluster {
    /// Fills the cluster's disk: nothing can be written to its volumes any more.
    pub fn fill_disk(&self) -> Result<()> {
        fill(&self.disk()?.join(BALLAST))
    }

    /// Undoes [`Cluster::fill_disk`].
    pub fn empty_disk(&self) -> Result<()> {
        let ballast = self.disk()?.join(BALLAST);
        match std::fs::remove_file(&ballast) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).io("remove", &ballast),
            _ => Ok(()),
        }
    }

    /// Folder of the volumes, if they are on a disk of their own.
    fn disk(&self) -> Result<PathBuf> {
        let own = self.own()?;
        let place = &own.layout.place;
        let sized = own.shared.read(|market| {
            market.spec.clusters.iter().any(|c| c.name == place.cluster && c.disk_mib.is_some())
        })?;
        if sized {
            return Ok(own.layout.volumes());
        }
        Err(Error::Invalid(format!(
            "the volumes of {} are on the machine's own disk, which is not filled: start the market with `testbed up \
             --disk-mib 256`",
            self.name()
        )))
    }
}

/// Writes until there is no room, in ever smaller pieces.
fn fill(ballast: &Path) -> Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(ballast).io("open", ballast)?;
    for size in [1 << 20, 1 << 12] {
        let piece = vec![0u8; size];
        loop {
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).io("write", ballast),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mounts_below_the_folder() {
        let mounts = "vendue-disk /cache/run/a/home/volumes tmpfs rw 0 0\nvendue-disk /cache/run/ab/x tmpfs rw 0 0\n\
                      tmpfs /cache/run/a/home/other tmpfs rw 0 0\nvendue-disk /cache/run/a/b\\040c tmpfs rw 0 0\n";
        let found = mounts_below(Path::new("/cache/run/a"), mounts);
        assert_eq!(found, [PathBuf::from("/cache/run/a/home/volumes"), PathBuf::from("/cache/run/a/b c")]);
    }

    #[tokio::test]
    #[ignore = "needs root; run by cargo verify"]
    async fn a_full_disk_takes_nothing_until_it_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        mount(&disk, 1).await.unwrap();
        fill(&disk.join(BALLAST)).unwrap();
        let error = std::fs::write(disk.join("x"), [1u8; 8192]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        std::fs::remove_file(disk.join(BALLAST)).unwrap();
        std::fs::write(disk.join("x"), [1u8; 8192]).unwrap();
        unmount_below(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
    }
}
