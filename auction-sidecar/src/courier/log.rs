//! The driver's log: Ray writes one file per attempt and session; together, in order, they are the job's log.
//!
//! Invariant: a byte keeps its offset while attempts follow one another, because the file of an attempt that has ended
//! does not grow.

use std::path::Path;

use super::beneath::{self, BeneathError};

const PREFIX: &str = "job-driver-";

/// Files of the log, first attempt first: by attempt, then by the session in which it ran.
fn parts(ray_logs: &Path) -> Result<Vec<String>, BeneathError> {
    let sessions = match beneath::list(ray_logs, "") {
        Err(BeneathError::NotFound(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let mut found = Vec::new();
    for (session, _) in sessions.into_iter().filter(|(name, folder)| *folder && name.starts_with("session_"))
    {
        let logs = format!("{session}/logs");
        let names = match beneath::list(ray_logs, &logs) {
            Err(BeneathError::NotFound(_) | BeneathError::NotPlain(_)) => continue,
            other => other?,
        };
        for (name, folder) in names {
            let attempt = name.strip_prefix(PREFIX).and_then(|n| n.strip_suffix(".log")).map(attempt);
            if let (Some(attempt), false) = (attempt, folder) {
                found.push((attempt, session.clone(), format!("{logs}/{name}")));
            }
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, _, path)| path).collect())
}

/// The number at the end of a submission id; 0 when there is none.
fn attempt(submission: &str) -> u64 {
    submission.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// At most `max` bytes of the whole log from `offset`, and its size.
pub(super) fn read(ray_logs: &Path, offset: u64, max: usize) -> Result<(Vec<u8>, u64), BeneathError> {
    let mut data = Vec::new();
    let mut size = 0u64;
    for path in parts(ray_logs)? {
        let file = match beneath::open(ray_logs, &path) {
            Err(BeneathError::NotFound(_) | BeneathError::NotPlain(_)) => continue,
            other => other?,
        };
        let (len, _) = beneath::stamp(&file, &path)?;
        let at = offset.saturating_add(data.len() as u64);
        if at < size.saturating_add(len) && at >= size && data.len() < max {
            // No more than was counted, or the next part would start at a wrong offset.
            let want = usize::try_from(len - (at - size)).unwrap_or(max).min(max - data.len());
            data.extend(beneath::read_at(file, &path, at - size, want)?);
        }
        size = size.saturating_add(len);
    }
    Ok((data, size))
}
