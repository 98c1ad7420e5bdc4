//! `vendue-auction verify-record`: whether a market record is sound, and whether it follows the one of the epoch before; and
//! `vendue-auction sign-record`, with which the issuer signs one that does.
//!
//! Inputs: files. Outputs: text for people, a signed record. Invariants: everything is checked from the files alone; a record
//! without a signature is accepted only where the keys in it are those that a quorum of the record before certifies; only such a
//! record is signed, by the issuer of the record before.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vendue_auction_core::keygen::{EpochError, check_next};
use vendue_auction_core::{KeyOrigin, MarketRecord, RecordError, SignedMarketRecord};

use zeroize::Zeroizing;

use crate::args::{SignRecordArgs, VerifyRecordArgs};
use crate::keys::{IssuerFile, KeysError};
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
    /// The issuer's key is refused.
    #[error("issuer's key {path}: {source}")]
    Issuer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: KeysError,
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
}

/// The part of the notice that must be left when the record is signed: one in so many.
const USUAL_PART: u64 = 4;

/// A record, with its issuer's key where it is signed.
type Read = (MarketRecord, Option<[u8; 33]>);

/// Which of its two forms a file has.
#[derive(Deserialize)]
struct Shape {
    signature: Option<serde::de::IgnoredAny>,
    record: Option<serde::de::IgnoredAny>,
}

fn fail(operation: &'static str, path: &Path) -> impl Fn(std::io::Error) -> VerifyRecordError {
    let path = path.to_owned();
    move |source| VerifyRecordError::File { operation, path: path.clone(), source }
}

fn read(path: &Path) -> Result<Read, VerifyRecordError> {
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

/// Signs a record that follows the one before, which the same issuer signed, and writes it.
pub fn sign(args: &SignRecordArgs, now_ms: u64) -> Result<SignedMarketRecord, VerifyRecordError> {
    let text = Zeroizing::new(std::fs::read_to_string(&args.issuer).map_err(fail("read", &args.issuer))?);
    let refused = |source| VerifyRecordError::Issuer { path: args.issuer.clone(), source };
    let issuer = IssuerFile::read(&text).map_err(refused)?;
    let (record, _) = read(&args.record)?;
    let (old, old_issuer) = read(&args.previous)?;
    if old_issuer.is_none() {
        return Err(VerifyRecordError::Unsigned(args.previous.clone()));
    }
    check(&args.record, (&record, Some(issuer.public_key())), &args.previous, (&old, old_issuer))?;
    check_time(args, &record, now_ms)?;
    let signed = SignedMarketRecord::sign(record, &issuer);
    let file = OpenOptions::new().create_new(true).write(true).open(&args.out);
    let mut file = file.map_err(fail("create", &args.out))?;
    let written = file.write_all(signed.to_json().as_bytes()).and_then(|()| file.sync_all());
    written.map_err(fail("write", &args.out))?;
    Ok(signed)
}

fn check(
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

/// Whether enough of the notice is left.
fn check_time(args: &SignRecordArgs, record: &MarketRecord, now_ms: u64) -> Result<(), VerifyRecordError> {
    let Some(made) = &record.generation else { return Ok(()) };
    let least = args.time_left.unwrap_or(made.notice_ms / USUAL_PART);
    let at_ms = record.params.t0(made.first_round);
    if least == 0 || at_ms >= now_ms.saturating_add(least) {
        return Ok(());
    }
    let (path, round, at) = (args.record.clone(), made.first_round, times::time(at_ms));
    let (left, least) = (times::how_far(at_ms, now_ms), times::duration(least));
    Err(VerifyRecordError::TooSoon { path, round, at, left, least })
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
