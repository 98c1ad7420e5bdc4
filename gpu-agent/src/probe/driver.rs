//! Whether the driver is still the one that this process has loaded.
//!
//! An upgrade replaces the library's file and loads another kernel module. What this process has mapped stays mapped, and in a
//! container what the runtime has mounted stays mounted: only a new process in a new container gets the new library.
//!
//! * Inputs: the version that the driver says at each reading, the kernel's list of what is mapped. Output: an error once it
//!   was replaced.
//! * Invariant: of a driver that was replaced nothing more is told.

use std::path::Path;
use std::time::{Duration, Instant};

use super::ProbeError;

/// What this process has mapped.
const MAPS: &str = "/proc/self/maps";

/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// What the kernel says of a file that was there when it was mapped.
const GONE: &str = " (deleted)";

/// The driver of the first reading.
#[derive(Debug, Default)]
pub(super) struct Driver {
    version: Option<String>,
    looked: Option<Instant>,
}

impl Driver {
    /// Takes a reading's version, and looks from time to time whether the library is still the one in its place.
    pub(super) fn check(&mut self, library: &Path, version: &str, now: Instant) -> Result<(), ProbeError> {
        let first = self.version.get_or_insert_with(|| version.to_owned());
        if first != version {
            return Err(ProbeError::Replaced(format!("it was version {first} and is {version}")));
        }
        if self.looked.is_some_and(|at| now.saturating_duration_since(at) < LOOK) {
            return Ok(());
        }
        self.looked = Some(now);
        // Without the kernel's word nothing is known against it.
        let maps = std::fs::read_to_string(MAPS).unwrap_or_default();
        match replaced(&maps, library) {
            Some(path) => Err(ProbeError::Replaced(format!("{path} is another file now"))),
            None => Ok(()),
        }
    }
}

/// The path of the library, if it is mapped and its file is gone from where it was.
fn replaced<'a>(maps: &'a str, library: &Path) -> Option<&'a str> {
    let name = library.file_name()?.to_str()?;
    // The loader follows links: libnvidia-ml.so.1 is mapped as libnvidia-ml.so.580.95.05.
    let stem = name.split_once(".so").map_or(name, |(stem, _)| stem);
    let is_library = |path: &&str| {
        let name = path.trim_end_matches(GONE).rsplit('/').next().unwrap_or_default();
        name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(".so"))
    };
    let mut paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).filter(is_library);
    // One that was tried before, and did not work, may still be there beside the one in use.
    if paths.clone().any(|path| !path.ends_with(GONE)) {
        return None;
    }
    paths.find_map(|path| path.strip_suffix(GONE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_another_driver() {
        let (mut driver, library, now) = (Driver::default(), Path::new("libnvidia-ml.so.1"), Instant::now());
        driver.check(library, "580.95.05", now).expect("the first");
        driver.check(library, "580.95.05", now).expect("the same");
        let error = driver.check(library, "590.10.01", now).expect_err("another").to_string();
        assert_eq!(
            error,
            "the driver was replaced under this process: it was version 580.95.05 and is 590.10.01"
        );
    }

    #[test]
    fn a_library_whose_file_is_gone_was_replaced() {
        let line = |path: &str| format!("7f10-7f20 r-xp 00000000 00:1f 42    {path}\n");
        let maps =
            |path: &str| line("/usr/lib/libc.so.6") + &line(path) + "7ffc-7ffd rw-p 00000000 00:00 0\n";
        let library = Path::new("libnvidia-ml.so.1");
        for (path, expected) in [
            ("/usr/lib/libnvidia-ml.so.580.95.05", None),
            ("/usr/lib/libnvidia-ml.so.580.95.05 (deleted)", Some("/usr/lib/libnvidia-ml.so.580.95.05")),
            ("/a b/libnvidia-ml.so.1 (deleted)", Some("/a b/libnvidia-ml.so.1")),
            ("/usr/lib/libnvidia-mlx.so.1 (deleted)", None),
            ("/usr/lib/libother.so.1 (deleted)", None),
        ] {
            assert_eq!(replaced(&maps(path), library), expected, "{path}");
        }
        // Tried once, replaced by one that works.
        let both = maps("/lib/libnvidia-ml.so.1 (deleted)") + &maps("/lib/libnvidia-ml.so.1");
        assert_eq!(replaced(&both, library), None);
    }
}
