//! `vendue-auction generate-keys`: the seats of a market make the seal key of its next epoch together, over the network, so
//! that nobody ever has it.
//!
//! ```text
//!   net --messages--> driver (KeyGeneration of core) --records--> log, durable --> what is said
//!    ^--- words (who has which certificate, who has finished) ---'   '--> next-record.json, keys.json
//! ```
//! Inputs: the market record, the cluster's keys, a start that all operators agreed on. Outputs: the cluster's keys with the
//! new share, and the record of the next epoch, the same at every seat. Invariants: secrets are stored before anything is
//! said, and what is said is durable before it is sent, so that a process that was stopped goes on from its folder; existing
//! keys and records are never replaced; on the network the seats have other identities than in the running market.

mod driver;
mod error;
mod folder;
mod links;
mod marker;
mod progress;
mod words;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use vendue_auction_core::keygen::{KeyGeneration, Terms};
use vendue_auction_core::secret;
use vendue_auction_core::{MarketRecord, SeatCrypto, SeatKeys, SignedMarketRecord};
use vendue_sealed_bid::dkg::Purpose;
use zeroize::Zeroizing;

use crate::args::GenerateKeysArgs;
use crate::engine::now_ms;
use crate::keys::{Keys, KeysError, KeysFile};
use crate::log::{Appender, LogOptions, ProofKeeper};
use crate::metrics::Metrics;
use crate::net::{self, MemberId, NetConfig};
use crate::sign_record::signed_beside;
use crate::times;
use driver::{Driver, Parts};
pub use error::GenerateError;
use folder::Folder;
use marker::Marker;
pub use progress::Progress;

/// What a generation has come to.
#[derive(Debug)]
pub struct Generated {
    /// The record of the next epoch.
    pub next: MarketRecord,
    /// Where it is.
    pub record: PathBuf,
    /// Where the keys are.
    pub keys: PathBuf,
}

/// Makes the keys, until they are stored or a signal comes.
pub async fn run(args: &GenerateKeysArgs) -> Result<Generated, GenerateError> {
    let (progress, _) = watch::channel(Progress::default());
    generate(args, &progress, crate::signals::terminated()).await
}

/// What the seat has and what it is about.
struct Inputs {
    old: Arc<MarketRecord>,
    /// The cluster's keys, as they are stored.
    file: KeysFile,
    /// Those of its seat.
    keys: SeatKeys,
    terms: Terms,
}

impl Inputs {
    fn read(args: &GenerateKeysArgs) -> Result<Self, GenerateError> {
        let old = Arc::new(SignedMarketRecord::from_json(&read(&args.market_record)?)?.record);
        let text = Zeroizing::new(read(&args.keys)?);
        let refused = |source| GenerateError::Keys { path: args.keys.clone(), source };
        let keys = Keys::from_json(&text, &old).map_err(refused)?;
        let keys = keys.seat.ok_or_else(|| GenerateError::NoSeat(args.keys.clone()))?;
        let file = secret::from_json(&text).map_err(|reason| refused(KeysError::Parse(reason)))?;
        let terms = Terms::new(&old, Purpose::Key, args.start, args.notice)?;
        Ok(Self { old, file, keys, terms })
    }
}

/// Makes the keys, until they are stored or `stop` comes.
pub async fn generate(
    args: &GenerateKeysArgs,
    progress: &watch::Sender<Progress>,
    stop: impl Future<Output = ()>,
) -> Result<Generated, GenerateError> {
    let Inputs { old, file, keys, terms } = Inputs::read(args)?;
    let seat = keys.seat;
    tell(&old, &terms);
    warn_of_later(args, &old);
    let members = links::members(&old, &terms, seat, &args.seats)?;
    let keypair = links::keypair(&terms, &keys)?;
    let folder = Folder::open(&args.out, marker(args, &terms, seat))?;
    let (generation, log) = restore(&folder, &old, &terms, keys)?;
    let metrics = Arc::new(Metrics::new()?);
    let proofs = ProofKeeper::start(Some(folder.log_path()), vec![terms.record().clone()], metrics.clone())?;
    let (own, listen) = (vec![MemberId::Seat(seat)], args.p2p_listen.clone());
    let net = net::start(NetConfig { keypair, members, own, listen, metrics })?;
    let (record, stored) = (folder.record_path(), folder.keys_path());
    let parts = Parts {
        old,
        terms,
        seat,
        generation,
        log,
        proofs,
        net: net.handle,
        folder,
        keys: file,
        stay: Duration::from_secs(args.stay_seconds),
    };
    let result = match Driver::new(parts, progress) {
        Ok(driver) => driver.run(net.rounds, net.requests, stop).await,
        Err(error) => Err(error),
    };
    net.task.abort();
    // The port is to be free when this returns.
    let _ = net.task.await;
    Ok(Generated { next: result?, record, keys: stored })
}

/// What keeps a second folder out of this generation.
fn marker(args: &GenerateKeysArgs, terms: &Terms, seat: u16) -> Marker {
    let beside_the_keys = || args.keys.parent().unwrap_or(Path::new("")).to_owned();
    let dir = args.marker_dir.clone().unwrap_or_else(beside_the_keys);
    Marker::new(&dir, terms.record().market, seat)
}

fn read(path: &Path) -> Result<String, GenerateError> {
    let fail = |source| GenerateError::File { operation: "read", path: path.to_owned(), source };
    std::fs::read_to_string(path).map_err(fail)
}

/// Says what the operators have agreed on.
fn tell(old: &MarketRecord, terms: &Terms) {
    let (now, first_round) = (now_ms(), terms.first_round());
    let (start, begins) = (terms.start_ms(), old.params.t0(first_round));
    tracing::info!(
        start = %times::time(start), starts = %times::how_far(start, now), attempts = terms.attempts(), first_round,
        begins = %times::time(begins), "keys are to be made"
    );
}

/// Records of later epochs than the one that is taken for the present one.
fn later(args: &GenerateKeysArgs, old: &MarketRecord) -> Vec<(PathBuf, u32)> {
    let mut all = signed_beside(&args.market_record);
    all.extend(signed_beside(&args.out));
    all.retain(|(_, record)| record.market == old.market && record.epoch > old.epoch);
    all.into_iter().map(|(path, record)| (path, record.epoch)).collect()
}

/// Keys that are made once more from an old record fit it in everything, but their epoch has a record already.
fn warn_of_later(args: &GenerateKeysArgs, old: &MarketRecord) {
    for (path, later) in later(args, old) {
        let (record, epoch) = (args.market_record.display(), old.epoch);
        tracing::warn!(%record, epoch, found = %path.display(), later, "there is a later record than the one given");
    }
}

/// The seat's part in the generation, as its folder has it.
fn restore(
    folder: &Folder,
    old: &Arc<MarketRecord>,
    terms: &Terms,
    keys: SeatKeys,
) -> Result<(KeyGeneration<SeatCrypto>, Appender), GenerateError> {
    let (seat, record) = (keys.seat, terms.record());
    let secrets = folder.secrets(&record.market, seat, terms.start_ms(), now_ms())?;
    let (log, found) = Appender::open(LogOptions::new(folder.log_path()), record, seat, now_ms())?;
    let (records, torn_bytes) = (found.records.len(), found.torn);
    tracing::info!(seat, records, torn_bytes, epoch = record.epoch, "key generation opened");
    let crypto = Arc::new(SeatCrypto::new(old.clone(), keys));
    let generation = KeyGeneration::restore(terms.clone(), seat, crypto, secrets, now_ms(), &found.records)?;
    Ok((generation, log))
}

#[cfg(test)]
mod tests;
