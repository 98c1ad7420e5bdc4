//! `vendue-auction verify-record`: whether a market record is sound, and whether it follows the one of the epoch before.
//!
//! Inputs: files, the time. Outputs: text for people, how far off the first round is. Invariants: everything is checked from the
//! files alone; a record without a signature is accepted only where the keys in it are those that a quorum of the record
//! before certifies.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vendue_auction_core::keygen::{EpochError, check_next};
use vendue_auction_core::{KeyOrigin, MarketRecord, RecordError, SignedMarketRecord};

use crate::args::VerifyRecordArgs;
use crate::times;

/// Why a record is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyRecordError {
    /// A file.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A record is not sound.
    #[error("{path}: {source}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: RecordError,
    },
    /// A record is not signed, and there is nothing else to check it against.
    #[error("{0} is not signed by an issuer; give the record of the epoch before with --previous")]
    Unsigned(PathBuf),
    /// The record does not follow.
    #[error("{path} does not follow {previous}: {source}")]
    DoesNotFollow {
        /// The file.
        path: PathBuf,
        /// The one before.
        previous: PathBuf,
        /// Why.
        source: EpochError,
    },
    /// Somebody else signed it, or is about to.
    #[error("the issuer of {path} is {found}, that of {previous} is {expected}")]
    OtherIssuer {
        /// The file.
        path: PathBuf,
        /// The one before.
        previous: PathBuf,
        /// Its issuer.
        found: String,
        /// The issuer of the one before.
        expected: String,
    },
}

/// A record, with its issuer's key where it is signed.
pub(crate) type Read = (MarketRecord, Option<[u8; 33]>);

/// Which of its two forms a file has.
#[derive(Deserialize)]
struct Shape {
    signature: Option<serde::de::IgnoredAny>,
    record: Option<serde::de::IgnoredAny>,
}

pub(crate) fn fail(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> VerifyRecordError {
    let path = path.to_owned();
    move |source| VerifyRecordError::File { operation, path: path.clone(), source }
}

pub(crate) fn read(path: &Path) -> Result<Read, VerifyRecordError> {
    let text = std::fs::read_to_string(path).map_err(fail("read", path))?;
    let refused = |source| VerifyRecordError::Record { path: path.to_owned(), source };
    let parse = |e: serde_json::Error| refused(RecordError::Parse(e.to_string()));
    let shape: Shape = serde_json::from_str(&text).map_err(parse)?;
    if shape.signature.is_some() || shape.record.is_some() {
        let signed = SignedMarketRecord::from_json(&text).map_err(refused)?;
        return Ok((signed.record, Some(signed.issuer_key)));
    }
    let record: MarketRecord = serde_json::from_str(&text).map_err(parse)?;
    record.validate().map_err(refused)?;
    Ok((record, None))
}

/// Checks a record and says what it is, and how far off its first round is now.
pub fn run(args: &VerifyRecordArgs, now_ms: u64) -> Result<String, VerifyRecordError> {
    let (record, issuer) = read(&args.record)?;
    if args.previous.is_none() && issuer.is_none() {
        return Err(VerifyRecordError::Unsigned(args.record.clone()));
    }
    let mut text = describe(&record, issuer, now_ms);
    if let Some(previous) = &args.previous {
        let (old, old_issuer) = read(previous)?;
        check(&args.record, (&record, issuer), previous, (&old, old_issuer))?;
        let _ = writeln!(text, "follows epoch {} ({})", old.epoch, hex::encode(old.digest()));
    }
    Ok(text)
}

/// Whether a record follows the one before, by the same issuer where both are signed.
pub(crate) fn check(
    path: &Path,
    (record, issuer): (&MarketRecord, Option<[u8; 33]>),
    previous: &Path,
    (old, old_issuer): (&MarketRecord, Option<[u8; 33]>),
) -> Result<(), VerifyRecordError> {
    let (path, previous) = (path.to_owned(), previous.to_owned());
    if let Err(source) = check_next(old, record) {
        return Err(VerifyRecordError::DoesNotFollow { path, previous, source });
    }
    match (issuer, old_issuer) {
        (Some(found), Some(expected)) if found != expected => {
            let (found, expected) = (hex::encode(found), hex::encode(expected));
            Err(VerifyRecordError::OtherIssuer { path, previous, found, expected })
        }
        _ => Ok(()),
    }
}

/// The first round of an epoch, when that is, and how far off.
pub fn first_round(record: &MarketRecord, now_ms: u64) -> Option<String> {
    let round = record.generation.as_ref()?.first_round;
    let at_ms = record.params.t0(round);
    Some(format!("round {round} at {}, {}", times::time(at_ms), times::how_far(at_ms, now_ms)))
}

fn describe(record: &MarketRecord, issuer: Option<[u8; 33]>, now_ms: u64) -> String {
    let keys = match record.key_origin {
        KeyOrigin::InsecureDealer => "INSECURE: from one dealer, for development",
        KeyOrigin::Distributed => "generated by the seats together",
    };
    let lines = [
        format!("market  {} ({})", record.name, hex::encode(record.market)),
        format!("epoch   {}", record.epoch),
        format!("digest  {}", hex::encode(record.digest())),
        format!("issuer  {}", issuer.map_or_else(|| "none: not signed".to_owned(), hex::encode)),
        format!("seats   {} (f = {}, quorum = {})", record.n(), record.f(), record.q()),
        format!("homes   {}", record.homes.len()),
        format!("keys    {keys}"),
    ];
    let begins = first_round(record, now_ms).map(|first| format!("begins  with {first}"));
    lines.into_iter().chain(begins).fold(String::new(), |text, line| text + &line + "\n")
}
