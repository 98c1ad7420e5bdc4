//! Kernel limits that several clusters on one machine exceed, raised while markets exist and then put back.
//!
//! Invariant: the value found first is in the file before a limit is changed, so that it can be put back
//! after a killed run, too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::paths::Paths;

/// Limits with the value that is needed. A cluster takes about 20 inotify instances, and all of a user's
/// processes share one limit, by default 128.
const NEEDED: [(&str, u64); 1] = [("fs/inotify/max_user_instances", 2048)];

/// Raises what is too low, and writes down what it was.
pub fn raise(paths: &Paths) -> Result<()> {
    raise_in(Path::new("/proc/sys"), &record(paths))
}

/// Puts back what [`raise`] changed; for when no market is left.
pub fn restore(paths: &Paths) -> Result<()> {
    restore_in(Path::new("/proc/sys"), &record(paths))
}

fn record(paths: &Paths) -> PathBuf {
    paths.cache().join("kernel.json")
}

fn load(record: &Path) -> Result<BTreeMap<String, u64>> {
    if !record.exists() {
        return Ok(BTreeMap::new());
    }
    serde_json::from_str(&files::read(record)?)
        .map_err(|e| Error::Invalid(format!("{}: {e}", record.display())))
}

fn raise_in(root: &Path, record: &Path) -> Result<()> {
    let mut found = load(record)?;
    for (key, needed) in NEEDED {
        let path = root.join(key);
        let now: u64 = files::read(&path)?.trim().parse().unwrap_or(u64::MAX);
        if now < needed {
            found.entry(key.into()).or_insert(now);
            let text =
                serde_json::to_string(&found).map_err(|e| Error::Invalid(format!("write limits: {e}")))?;
            files::write_atomic(record, text)?;
            files::write(&path, needed.to_string())?;
        }
    }
    Ok(())
}

fn restore_in(root: &Path, record: &Path) -> Result<()> {
    for (key, value) in load(record)? {
        files::write(root.join(key), value.to_string())?;
    }
    match std::fs::remove_file(record) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { operation: "remove", path: record.into(), source: e })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_raised_once_and_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let (root, record) = (dir.path().join("sys"), dir.path().join("kernel.json"));
        let limit = root.join(NEEDED[0].0);
        files::write(&limit, "128\n").unwrap();
        raise_in(&root, &record).unwrap();
        raise_in(&root, &record).unwrap();
        assert_eq!(files::read(&limit).unwrap(), "2048");
        restore_in(&root, &record).unwrap();
        assert_eq!(files::read(&limit).unwrap(), "128");
        assert!(!record.exists());
        restore_in(&root, &record).unwrap();
    }

    #[test]
    fn a_limit_that_is_high_enough_stays() {
        let dir = tempfile::tempdir().unwrap();
        let limit = dir.path().join(NEEDED[0].0);
        files::write(&limit, "8192").unwrap();
        raise_in(dir.path(), &dir.path().join("kernel.json")).unwrap();
        assert_eq!(files::read(&limit).unwrap(), "8192");
    }
}
