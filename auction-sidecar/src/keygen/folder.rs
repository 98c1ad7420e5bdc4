//! The folder of one generation: its secrets, its log, and what comes out of it.
//!
//! ```text
//!   LOCK              held while a process works in the folder
//!   secrets.json      what everything that the seat deals follows from; removed when all seats have finished
//!   log/              what was said and heard
//!   next-record.json  the record of the next epoch, unsigned
//!   keys.json         the cluster's keys with the new share
//! ```
//! Invariants: a file under one of these names is whole and durable; none is ever replaced; those with secrets can be read by
//! their owner only; no other folder of this machine has secrets of the same generation and seat.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vendue_auction_core::MarketRecord;
use vendue_auction_core::keygen::{KeySecrets, Terms, check_next};
use vendue_auction_core::secret::{self, SecretBytes};
use vendue_market::Digest;
use vendue_market::encode::hex_array;
use vendue_sealed_bid::dkg::{DealKey, DealerSeed};
use zeroize::Zeroizing;

use super::GenerateError;
use super::marker::Marker;
use crate::new_file;

const SECRETS: &str = "secrets.json";
const RECORD: &str = "next-record.json";
const KEYS: &str = "keys.json";
const LOG: &str = "log";

/// The secrets of a generation as they are stored. No `Debug`; wiped when dropped.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretsFile {
    /// Id of the market in which the key is agreed on: it names record, purpose and start.
    #[serde(with = "hex_array")]
    generation: Digest,
    seat: u16,
    dealer_seed: SecretBytes,
    deal_key_seed: SecretBytes,
}

/// The folder, while this process has it.
pub(super) struct Folder {
    dir: PathBuf,
    marker: Marker,
    _lock: File,
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GenerateError {
    let path = path.to_owned();
    move |source| GenerateError::File { operation, path, source }
}

fn random() -> Result<SecretBytes, GenerateError> {
    let mut bytes = Zeroizing::new([0u8; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(GenerateError::Random)?;
    Ok(SecretBytes::new(bytes))
}

impl Folder {
    /// Makes the folder, or takes the one that is there, and keeps other processes out of it.
    pub(super) fn open(dir: &Path, marker: Marker) -> Result<Self, GenerateError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail("create folder", dir))?;
        let path = dir.join("LOCK");
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(fail("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {
                new_file::remove_unfinished(dir)?;
                Ok(Self { dir: dir.to_owned(), marker, _lock: lock })
            }
            Err(TryLockError::WouldBlock) => Err(GenerateError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(fail("lock", &path)(source)),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }
    pub(super) fn record_path(&self) -> PathBuf {
        self.dir.join(RECORD)
    }
    pub(super) fn keys_path(&self) -> PathBuf {
        self.dir.join(KEYS)
    }
    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// The secrets of this generation: those that are stored, or new ones, which are durable before they are given out.
    /// New ones are made only before the start, and never where a process has been.
    pub(super) fn secrets(
        &self,
        generation: &Digest,
        seat: u16,
        start_ms: u64,
        now_ms: u64,
    ) -> Result<KeySecrets, GenerateError> {
        if let Some(stored) = self.stored()? {
            if (&stored.generation, &stored.seat) != (generation, &seat) {
                return Err(GenerateError::OtherGeneration(self.dir.clone()));
            }
            return usable(&stored);
        }
        for path in [self.record_path(), self.keys_path()] {
            if exists(&path)? {
                return Err(GenerateError::Exists(path));
            }
        }
        if exists(&self.log_path())? {
            return Err(GenerateError::NoSecrets(self.dir.clone()));
        }
        if now_ms >= start_ms {
            return Err(GenerateError::Past { late_ms: now_ms - start_ms });
        }
        self.marker.claim(&self.dir)?;
        let (dealer_seed, deal_key_seed) = (random()?, random()?);
        let fresh = SecretsFile { generation: *generation, seat, dealer_seed, deal_key_seed };
        let json = secret::to_json(&fresh).map_err(GenerateError::Encode)?;
        self.write_new(SECRETS, json.as_bytes(), 0o600)?;
        usable(&fresh)
    }

    fn stored(&self) -> Result<Option<SecretsFile>, GenerateError> {
        let path = self.dir.join(SECRETS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail("read", &path)(error)),
        };
        secret::from_json(&text).map(Some).map_err(|reason| GenerateError::Secrets { path, reason })
    }

    /// Forgets the secrets: nobody needs them any more.
    pub(super) fn forget(&self) -> Result<(), GenerateError> {
        let path = self.dir.join(SECRETS);
        fs::remove_file(&path).map_err(fail("remove", &path))?;
        new_file::sync(&self.dir)?;
        self.marker.remove()
    }

    /// The next record, where it is stored; it must follow from this generation.
    pub(super) fn record(
        &self,
        old: &MarketRecord,
        terms: &Terms,
    ) -> Result<Option<MarketRecord>, GenerateError> {
        let path = self.record_path();
        if !exists(&path)? {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(fail("read", &path))?;
        let next: Option<MarketRecord> = serde_json::from_str(&text).ok();
        let fits = |next: &MarketRecord| {
            let made = next.generation.as_ref().map(|made| (made.start_ms, made.notice_ms));
            made == Some((terms.start_ms(), terms.notice_ms())) && check_next(old, next).is_ok()
        };
        next.filter(fits).map(Some).ok_or(GenerateError::Exists(path))
    }

    pub(super) fn has_keys(&self) -> Result<bool, GenerateError> {
        exists(&self.keys_path())
    }

    pub(super) fn write_record(&self, next: &MarketRecord) -> Result<(), GenerateError> {
        let json = serde_json::to_string_pretty(next).map_err(GenerateError::Encode)?;
        self.write_new(RECORD, json.as_bytes(), 0o644)
    }
    pub(super) fn write_keys(&self, json: &[u8]) -> Result<(), GenerateError> {
        self.write_new(KEYS, json, 0o600)
    }

    fn write_new(&self, name: &str, data: &[u8], mode: u32) -> Result<(), GenerateError> {
        let path = self.dir.join(name);
        match new_file::write_new(&path, data, mode) {
            Err(error) if error.is_there() => Err(GenerateError::Exists(path)),
            written => Ok(written?),
        }
    }
}

fn exists(path: &Path) -> Result<bool, GenerateError> {
    path.try_exists().map_err(fail("inspect", path))
}

fn usable(stored: &SecretsFile) -> Result<KeySecrets, GenerateError> {
    let deal = DealKey::generate(stored.deal_key_seed.bytes()).map_err(|e| GenerateError::Dkg(e.into()))?;
    Ok(KeySecrets { seed: DealerSeed::from_bytes(stored.dealer_seed.bytes()), deal, old: None })
}
