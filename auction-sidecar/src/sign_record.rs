//! `vendue-auction sign-record`: the issuer signs the record of the next epoch.
//!
//! Inputs: files, the time. Outputs: a signed record. Invariants: only a record that follows the one before is signed, by the same
//! issuer, with enough of the notice left; no second record of an epoch is signed where the first one is known; what is
//! written is whole and replaces nothing.

use std::path::{Path, PathBuf};

use vendue_auction_core::{MarketRecord, SignedMarketRecord};
use zeroize::Zeroizing;

use crate::args::SignRecordArgs;
use crate::keys::{IssuerFile, KeysError};
use crate::new_file::{self, NewFileError};
use crate::times;
use crate::verify_record::{self, VerifyRecordError, read};

/// The part of the notice that must be left when the record is signed: one in so many.
const USUAL_PART: u64 = 4;
/// Longest file that is looked at to find a record.
const MAX_FILE: u64 = 16 << 20;

/// Why a record is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignRecordError {
    /// A record is refused.
    #[error(transparent)]
    Record(#[from] VerifyRecordError),
    /// The issuer's key is refused.
    #[error("issuer's key {path}: {source}")]
    Issuer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeysError,
    },
    /// Too little time is left.
    #[error(
        "{path}: its first round {round} is at {at}, {left}; accepted: in {least} or more, so that all clusters have record and keys by \
        then. --time-left takes less; 0s takes whatever is left"
    )]
    TooSoon {
        /// The file.
        path: PathBuf,
        /// The first round.
        round: u64,
        /// When it is.
        at: String,
        /// How far off that is.
        left: String,
        /// How far off it must be.
        least: String,
    },
    /// The epoch has a record.
    #[error(
        "{path} is another record of epoch {epoch} than {known}; an epoch has one record, or clusters that are given different ones \
        refuse to start with each other's. If {known} was given to nobody, remove it"
    )]
    Second {
        /// The file.
        path: PathBuf,
        /// The epoch.
        epoch: u32,
        /// The record that it has.
        known: PathBuf,
    },
    /// The signed record cannot be written.
    #[error(transparent)]
    File(#[from] NewFileError),
}

/// Signs a record that follows the one before, which the same issuer signed, and writes it.
pub fn run(args: &SignRecordArgs, now_ms: u64) -> Result<SignedMarketRecord, SignRecordError> {
    let text = std::fs::read_to_string(&args.issuer).map_err(verify_record::fail("read", &args.issuer))?;
    let refused = |source| SignRecordError::Issuer { path: args.issuer.clone(), source };
    let issuer = IssuerFile::read(&Zeroizing::new(text)).map_err(refused)?;
    let (record, _) = read(&args.record)?;
    let (old, old_issuer) = read(&args.previous)?;
    if old_issuer.is_none() {
        return Err(VerifyRecordError::Unsigned(args.previous.clone()).into());
    }
    let signed_by = Some(issuer.public_key());
    verify_record::check(&args.record, (&record, signed_by), &args.previous, (&old, old_issuer))?;
    check_time(args, &record, now_ms)?;
    check_known(args, &record)?;
    let signed = SignedMarketRecord::sign(record, &issuer);
    new_file::write_new(&args.out, signed.to_json().as_bytes(), 0o644)?;
    Ok(signed)
}

/// Whether enough of the notice is left.
fn check_time(args: &SignRecordArgs, record: &MarketRecord, now_ms: u64) -> Result<(), SignRecordError> {
    let Some(made) = &record.generation else { return Ok(()) };
    let least = args.time_left.unwrap_or(made.notice_ms / USUAL_PART);
    let at_ms = record.params.t0(made.first_round);
    if least == 0 || at_ms >= now_ms.saturating_add(least) {
        return Ok(());
    }
    let (path, round, at) = (args.record.clone(), made.first_round, times::time(at_ms));
    let (left, least) = (times::how_far(at_ms, now_ms), times::duration(least));
    Err(SignRecordError::TooSoon { path, round, at, left, least })
}

/// Whether the epoch has another record already.
fn check_known(args: &SignRecordArgs, record: &MarketRecord) -> Result<(), SignRecordError> {
    let mut all = signed_beside(&args.out);
    for path in &args.known {
        all.push((path.clone(), read(path)?.0));
    }
    let is_other = |other: &MarketRecord| {
        (other.market, other.epoch) == (record.market, record.epoch) && other != record
    };
    match all.into_iter().find(|(_, other)| is_other(other)) {
        Some((known, _)) => {
            Err(SignRecordError::Second { path: args.record.clone(), epoch: record.epoch, known })
        }
        None => Ok(()),
    }
}

/// The signed market records in the folder of a file. What is none, or cannot be read, is passed over: the folder may hold
/// anything.
pub(crate) fn signed_beside(path: &Path) -> Vec<(PathBuf, MarketRecord)> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let paths = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_short = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_FILE);
    let jsons = paths.filter(|path| path.extension().is_some_and(|ext| ext == "json")).filter(is_short);
    let signed = jsons.filter_map(|path| match read(&path) {
        Ok((record, Some(_))) => Some((path, record)),
        _ => None,
    });
    signed.collect()
}

#[cfg(test)]
mod tests;
