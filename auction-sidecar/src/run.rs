//! `vendue-auction run`: reads record and keys, wires the parts, runs until a signal.
//!
//! Invariant: the process ends only by a signal, because something that it cannot do without has failed at start, or because
//! its engine or its seat's log has failed, which a restart sets right; whatever else fails is tried again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{Config as ControllerConfig, Controller};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use vendue_auction_core::evidence::EvidenceKey;
use vendue_auction_core::log::LogRecord;
use vendue_auction_core::{
    Epochs, Home, KeyOrigin, MarketRecord, RecallError, RecordError, Seat, SeatCrypto, SignedMarketRecord,
};
use vendue_crds::{Award, ComputeJob, Provision};

use crate::args::RunArgs;
use crate::bridge::bids::BidWriter;
use crate::bridge::cluster::Cluster;
use crate::bridge::dispatch::{self, Sides};
use crate::bridge::home::{self, HomeContext};
use crate::bridge::host::{self, CourierClient, HostContext, ReceiptsClient, ReceiptsOptions};
use crate::bridge::stores::{Guarded, Seller, follow};
use crate::engine::{Engine, EngineCommand, EngineConfig, EngineError, EngineEvent, now_ms};
use crate::health::{self, HealthError, Readiness};
use crate::keys::{Keys, KeysError};
use crate::log::{Appender, Gate, LogDirError, LogOptions, ProofKeeper};
use crate::metrics::Metrics;
use crate::net::{self, Handle, Member, Members, NetConfig, StartError};
use crate::next_epoch::{NextEpoch, NextError};
use crate::receipts::{self, Shelf};
use crate::store::{Store, StoreError};
use crate::stream::{self, KubeBackend, StreamConfig};

/// How often the log says why the process is not ready.
const MISSING_TIME: Duration = Duration::from_secs(15);

/// Why the process cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The market record is refused.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The keys are refused.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The next epoch is refused.
    #[error(transparent)]
    Next(#[from] NextError),
    /// The profile needs keys that are not there.
    #[error("profile {profile:?} needs the keys of a {missing}")]
    Profile {
        /// The profile.
        profile: crate::args::Profile,
        /// What is missing.
        missing: &'static str,
    },
    /// An address in the record does not parse.
    #[error("{member} has a malformed {what} in the market record: {reason}")]
    Member {
        /// Who.
        member: String,
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Metrics.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The network.
    #[error(transparent)]
    Net(#[from] StartError),
    /// The API server's configuration.
    #[error("configuration of the API server: {0}")]
    KubeConfig(#[from] kube::config::InferConfigError),
    /// The client.
    #[error("client of the API server: {0}")]
    Client(Box<kube::Error>),
    /// The courier's client.
    #[error(transparent)]
    Courier(#[from] host::CourierError),
    /// The store.
    #[error("store of outputs: {0}")]
    Store(#[from] StoreError),
    /// The seat's log.
    #[error(transparent)]
    Log(#[from] LogDirError),
    /// The log is not this seat's.
    #[error("seat log {path}: {source}; start with an empty folder")]
    Recall {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: RecallError,
    },
    /// A thread cannot be started.
    #[error("start the thread of the seat log: {0}")]
    Thread(std::io::Error),
    /// The engine does not go on.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A task that must not end has ended.
    #[error("run the tasks of the process: {0}")]
    Task(&'static str),
    /// Health and metrics cannot be served.
    #[error(transparent)]
    Health(#[from] HealthError),
}

fn read(path: &PathBuf) -> Result<String, RunError> {
    std::fs::read_to_string(path).map_err(|source| RunError::Read { path: path.clone(), source })
}

/// The members of the market as the network needs them; seats come first.
pub(crate) fn members(record: &MarketRecord, own: libp2p::PeerId) -> Result<Members, RunError> {
    let seats = record
        .seats
        .iter()
        .map(|s| (net::MemberId::Seat(s.index), &s.provider, &s.peer_id, s.addresses.first()));
    let homes = (0u16..).zip(&record.homes).map(|(i, h)| (net::MemberId::Home(i), &h.name, &h.peer_id, None));
    let mut all = Vec::new();
    for (id, name, peer, address) in seats.chain(homes) {
        let malformed = |what, reason: String| RunError::Member { member: name.clone(), what, reason };
        all.push(Member {
            id,
            name: name.clone(),
            peer: peer.parse().map_err(|e| malformed("peer id", format!("{e}")))?,
            address: address
                .map(|a: &String| a.parse().map_err(|e| malformed("address", format!("{e}"))))
                .transpose()?,
        });
    }
    Ok(Members::new(all, own))
}

struct Parts {
    cluster: Cluster,
    record: Arc<MarketRecord>,
    net: Handle,
    engine: mpsc::Sender<EngineCommand>,
    ready: Readiness,
}

/// What the process is given in files.
struct Given {
    record: Arc<MarketRecord>,
    next: Option<NextEpoch>,
    keys: Keys,
}

impl Given {
    fn read(args: &RunArgs) -> Result<Self, RunError> {
        let signed = SignedMarketRecord::from_json(&read(&args.market_record)?)?;
        let next = NextEpoch::read(&args.next, &signed)?;
        let record = Arc::new(signed.record);
        let keys = Keys::from_json(&zeroize::Zeroizing::new(read(&args.keys)?), &record)?;
        Ok(Self { record, next, keys })
    }
}

/// Says where the market's keys come from, where that is not from the seats.
fn tell_origin(record: &MarketRecord, metrics: &Metrics) {
    let insecure = record.key_origin == KeyOrigin::InsecureDealer;
    metrics.market_insecure.set(i64::from(insecure));
    if insecure {
        let market = &record.name;
        tracing::warn!(market, "the keys of this market come from one dealer: for development only");
    }
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: RunArgs) -> Result<(), RunError> {
    let Given { record, mut next, keys } = Given::read(&args)?;
    let metrics = Arc::new(Metrics::new()?);
    tell_origin(&record, &metrics);
    let ready = Readiness::default();
    ready.set("engine", false);
    let net = net::start(NetConfig {
        members: members(&record, keys.transport.public().to_peer_id())?,
        keypair: keys.transport.clone(),
        own: keys.own().into_iter().map(net::MemberId::from).collect(),
        listen: args.p2p_listen.clone(),
        metrics: metrics.clone(),
    })?;
    let cluster = Cluster::new(client().await?, metrics.clone(), args.pod_name.clone());
    let user = keys.home.as_ref().map(|(_, home)| home.user.clone());
    let (seat, home, gate) = sides(&args, &record, next.as_mut(), keys, &metrics)?;
    let records = std::iter::once(record.clone()).chain(next.map(|next| next.record)).collect();
    let proofs = ProofKeeper::start(args.log.log_dir.clone(), records, metrics.clone())?;
    let (seat_index, home_index) = (seat.as_ref().map(|(i, _)| *i), home.as_ref().map(|(i, _)| *i));
    let (engine, commands) = mpsc::channel(1024);
    let (events_tx, events) = mpsc::channel(4096);
    let config = EngineConfig {
        record: record.clone(),
        seat,
        home,
        net: net.handle.clone(),
        metrics: metrics.clone(),
        ready: ready.clone(),
        gate,
        proofs,
    };
    let parts = Parts { cluster, record, net: net.handle.clone(), engine, ready: ready.clone() };
    let store =
        home_index.map(|_| Store::open(&args.store, args.store_max_mib << 20)).transpose()?.map(Arc::new);
    let sides = Sides {
        host: seat_index.map(|seat| start_host(&parts, &args, seat)).transpose()?,
        home: home_index.zip(user).zip(store).map(|(home, store)| start_home(&parts, &args, home, store)),
    };
    let mut tasks = tokio::task::JoinSet::new();
    let engine = Engine::new(config, events_tx).run(net.rounds, commands);
    tasks.spawn(async { RunError::Engine(engine.await) });
    tasks.spawn(route_events(sides.clone(), events));
    tasks.spawn(ends(dispatch::run(sides, net.requests, metrics.clone()), "requests of peers"));
    tokio::spawn(name_what_is_missing(ready.clone()));
    tracing::info!(seat = ?seat_index, home = ?home_index, "started");
    let served = health::serve(args.listen, health::router(metrics, ready));
    let result = until_the_end(served, &mut tasks).await;
    tasks.shutdown().await;
    net.task.abort();
    result
}

/// Waits for a signal, or for the first thing that fails.
async fn until_the_end(
    served: impl Future<Output = Result<(), HealthError>>,
    tasks: &mut tokio::task::JoinSet<RunError>,
) -> Result<(), RunError> {
    let result = tokio::select! {
        () = crate::signals::terminated() => {
            tracing::info!("signal received; the process ends");
            Ok(())
        }
        result = served => result.map_err(RunError::from),
        error = first_failure(tasks) => Err(error),
    };
    if let Err(error) = &result {
        tracing::error!(%error, "the process cannot go on; it ends to be restarted");
    }
    result
}

/// Ends with nothing to say: the engine that tells no more says why.
async fn route_events(sides: Sides, events: mpsc::Receiver<EngineEvent>) -> RunError {
    route(sides, events).await;
    std::future::pending().await
}

/// What the end of a task that must not end means.
async fn ends(task: impl Future<Output = ()>, what: &'static str) -> RunError {
    task.await;
    RunError::Task(what)
}

/// Why the first task has ended; the others end after it and because of it.
async fn first_failure(tasks: &mut tokio::task::JoinSet<RunError>) -> RunError {
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(_)) => RunError::Task("one of them panicked"),
        None => RunError::Task("there is none"),
    }
}

/// Says in the log why the process is not ready, for those who do not see the answers to probes.
async fn name_what_is_missing(ready: Readiness) {
    let mut tick = tokio::time::interval_at(Instant::now() + MISSING_TIME, MISSING_TIME);
    loop {
        tick.tick().await;
        let missing = ready.missing();
        if !missing.is_empty() {
            tracing::warn!(missing = missing.join(", "), "not ready");
        }
    }
}

async fn client() -> Result<Client, RunError> {
    let mut config = kube::Config::infer().await?;
    config.connect_timeout = Some(Duration::from_secs(5));
    // Longer than a watch lasts; what is silent for longer is broken.
    config.read_timeout = Some(Duration::from_secs(230));
    // The bridge has its own timeouts and repeats; a hidden retry would outlive both.
    config.default_retry = false;
    Client::try_from(config).map_err(|e| RunError::Client(Box::new(e)))
}

type Machines = (Option<(u16, Seat<SeatCrypto>)>, Option<(u16, Home)>, Gate);

fn sides(
    args: &RunArgs,
    record: &Arc<MarketRecord>,
    mut next: Option<&mut NextEpoch>,
    keys: Keys,
    metrics: &Arc<Metrics>,
) -> Result<Machines, RunError> {
    let missing = |missing| RunError::Profile { profile: args.profile, missing };
    let mut gate = Gate::default();
    let seat = match (args.profile.is_provider(), keys.seat) {
        (true, Some(keys)) => {
            let index = keys.seat;
            let crypto = SeatCrypto::new(record.clone(), keys);
            let mut epochs = Epochs::new(record.clone(), Arc::new(crypto));
            if let Some(next) = next.as_deref_mut() {
                next.give_seat(&mut epochs, index, now_ms())?;
            }
            let (seat, opened) = start_seat(args, record, index, epochs, metrics)?;
            gate = opened;
            Some((index, seat))
        }
        (true, None) => return Err(missing("seat")),
        (false, _) => None,
    };
    let home = match (args.profile.is_home(), keys.home) {
        (true, Some((index, keys))) => {
            let mut home = Home::new(record.clone(), index, keys);
            if let Some(next) = next {
                next.give_home(&mut home, now_ms())?;
            }
            Some((index, home))
        }
        (true, None) => return Err(missing("home")),
        (false, _) => None,
    };
    Ok((seat, home, gate))
}

/// The seat as its log has it; without a log it observes until it cannot contradict itself.
fn start_seat(
    args: &RunArgs,
    record: &Arc<MarketRecord>,
    index: u16,
    epochs: Epochs<Arc<SeatCrypto>>,
    metrics: &Arc<Metrics>,
) -> Result<(Seat<SeatCrypto>, Gate), RunError> {
    let Some(dir) = &args.log.log_dir else {
        tracing::warn!(
            "no --log-dir: after each start the seat observes until all rounds begun before have expired"
        );
        return Ok((start_from(epochs, index, &[], Path::new("none"))?, Gate::default()));
    };
    let options = LogOptions {
        generation: args.log.log_generation,
        retain: Duration::from_secs(args.log.log_retain_seconds),
        max_bytes: args.log.log_max_mib << 20,
        ..LogOptions::new(dir.clone())
    };
    let (log, found) = Appender::open(options, record, index, now_ms())?;
    let (records, torn, generation) = (found.records.len(), found.torn, log.generation());
    tracing::info!(dir = %dir.display(), records, torn_bytes = torn, generation, "seat log opened");
    let mut seat = start_from(epochs, index, &found.records, dir)?;
    seat.log_received(args.log.log_received);
    let gate = Gate::new(log, metrics.clone()).map_err(RunError::Thread)?;
    Ok((seat, gate))
}

/// The seat from its log; an empty one says nothing about what was said before.
fn start_from(
    epochs: Epochs<Arc<SeatCrypto>>,
    index: u16,
    log: &[LogRecord],
    dir: &Path,
) -> Result<Seat<SeatCrypto>, RunError> {
    let seat = Seat::restore_in(epochs, index, now_ms(), log);
    seat.map_err(|source| RunError::Recall { path: dir.into(), source })
}

/// Passes the engine's events to the sides. Neither makes the other wait.
async fn route(sides: Sides, mut events: mpsc::Receiver<EngineEvent>) {
    while let Some(event) = events.recv().await {
        match (event, &sides.host, &sides.home) {
            (EngineEvent::Seat(event), Some(host), _) => host::on_event(host, event),
            (EngineEvent::Home(event), _, Some(home)) => home::on_event(home, *event),
            _ => {}
        }
    }
}

/// Failures of single objects are told by their error policy; what is left are broken watches.
async fn log_failure<T, E, Q>(result: Result<T, kube::runtime::controller::Error<E, Q>>)
where
    E: std::error::Error + 'static,
    Q: std::error::Error + 'static,
{
    match result {
        Err(kube::runtime::controller::Error::QueueError(error)) => {
            tracing::warn!(%error, "watch broken; it starts again");
        }
        Err(error) => tracing::debug!(%error, "reconcile"),
        Ok(_) => {}
    }
}

fn watch_config() -> watcher::Config {
    // Less than what load balancers cut.
    watcher::Config::default().timeout(200)
}

fn concurrency() -> ControllerConfig {
    ControllerConfig::default().concurrency(16)
}

/// One item whenever somebody connects or goes.
fn changes(
    connected: watch::Receiver<std::collections::BTreeSet<net::MemberId>>,
) -> impl Stream<Item = ()> + Send {
    futures::stream::unfold(connected, |mut connected| async move {
        connected.changed().await.ok().map(|()| ((), connected))
    })
}

fn start_host(parts: &Parts, args: &RunArgs, seat: u16) -> Result<Arc<HostContext>, RunError> {
    let client = parts.cluster.client.clone();
    let award_api = Api::<DeserializeGuard<Award>>::all(client.clone());
    let controller = Controller::new(award_api.clone(), watch_config());
    let (awards, award_writer) = Guarded::empty();
    let (provisions, writer) = Guarded::empty();
    let seller =
        Arc::new(Seller::new(provisions.clone(), awards.clone(), parts.engine.clone(), &parts.record));
    let bids =
        BidWriter::start(parts.cluster.clone(), args.namespace.clone(), parts.record.clone(), seller.clone());
    let receipts = ReceiptsOptions::given(&args.receipts).map(ReceiptsClient::new);
    let context = Arc::new(HostContext::new(
        parts.cluster.clone(),
        parts.record.clone(),
        seat,
        parts.net.clone(),
        parts.engine.clone(),
        awards.clone(),
        (CourierClient::new(parts.cluster.clone())?, receipts),
        bids,
        seller.clone(),
    ));
    let on_change = seller.clone();
    let provision_api = Api::<DeserializeGuard<Provision>>::all(client);
    tokio::spawn(follow(provision_api, writer, move || on_change.offer()));
    let on_change = seller.clone();
    tokio::spawn(follow(award_api, award_writer, move || on_change.offer()));
    let run = controller
        .with_config(concurrency())
        .reconcile_all_on(changes(parts.net.connected()))
        .run(host::reconcile, host::error_policy, context.clone())
        .for_each(log_failure);
    tokio::spawn(run);
    tokio::spawn(host::sweep(context.clone()));
    let (ready, cluster) = (parts.ready.clone(), parts.cluster.clone());
    ready.set("awards", false);
    ready.set("provisions", false);
    tokio::spawn(async move {
        // Offers before the Awards are known could sell what is held.
        ready.set("awards", awards.ready().await);
        ready.set("provisions", provisions.ready().await);
        seller.open();
        seller.run(cluster).await;
    });
    Ok(context)
}

fn start_home(
    parts: &Parts,
    args: &RunArgs,
    home: (u16, Arc<EvidenceKey>),
    store: Arc<Store>,
) -> Arc<HomeContext> {
    let client = parts.cluster.client.clone();
    let award_api = Api::<DeserializeGuard<Award>>::all(client.clone());
    let controller = Controller::new(award_api.clone(), watch_config());
    let (awards, award_writer) = Guarded::empty();
    tokio::spawn(follow(award_api, award_writer, || {}));
    let context = Arc::new(HomeContext::new(
        parts.cluster.clone(),
        parts.record.clone(),
        home,
        parts.net.clone(),
        parts.engine.clone(),
        awards.clone(),
        store.clone(),
    ));
    let run = controller
        .with_config(concurrency())
        .reconcile_all_on(changes(parts.net.connected()))
        .run(home::reconcile_award, home::award_error_policy, context.clone())
        .for_each(log_failure);
    tokio::spawn(run);
    let ready = parts.ready.clone();
    ready.set("awards_at_home", false);
    let jobs_context = context.clone();
    tokio::spawn(async move {
        // A Job with an Award must not be put to the market again.
        ready.set("awards_at_home", awards.ready().await);
        Controller::new(Api::<DeserializeGuard<ComputeJob>>::all(client), watch_config())
            .with_config(concurrency())
            .run(home::reconcile_job, home::job_error_policy, jobs_context)
            .for_each(log_failure)
            .await;
    });
    tokio::spawn(sweep(store.clone(), parts.cluster.metrics.clone(), args.store_retention_seconds));
    let receipts = receipts::open(args);
    if let Some(shelf) = receipts.clone() {
        tokio::spawn(home::Puller::new(context.clone(), shelf, now_ms).run());
    }
    if let Some(listen) = args.stream_listen {
        let config = StreamConfig { listen, tls: args.stream_tls.clone() };
        tokio::spawn(serve_stream(
            parts.cluster.clone(),
            parts.net.clone(),
            (store, receipts),
            config,
            parts.ready.clone(),
        ));
    }
    context
}

/// Serves the aggregated API; tried again while the cluster or the certificates are not there.
async fn serve_stream(
    cluster: Cluster,
    net: Handle,
    (store, receipts): (Arc<Store>, Option<Arc<Shelf>>),
    config: StreamConfig,
    ready: Readiness,
) {
    ready.set("stream", false);
    let (client, metrics) = (cluster.client.clone(), cluster.metrics.clone());
    let backend = KubeBackend { cluster, net };
    let shared = Arc::new(stream::Shared { backend, store, receipts, metrics });
    let router = stream::router(shared);
    loop {
        let started = || ready.set("stream", true);
        if let Err(error) = stream::serve(client.clone(), config.clone(), router.clone(), started).await {
            tracing::error!(%error, "aggregated API not served");
        }
        ready.set("stream", false);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

async fn sweep(store: Arc<Store>, metrics: Arc<Metrics>, retention_seconds: u64) {
    let mut tick = tokio::time::interval(Duration::from_secs(600));
    loop {
        tick.tick().await;
        let store = store.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let forgotten = store.sweep(retention_seconds, SystemTime::now())?;
            Ok::<_, StoreError>((forgotten, store.used()))
        });
        match swept.await {
            Ok(Ok((forgotten, used))) => {
                metrics.store_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
                if forgotten > 0 {
                    tracing::info!(forgotten, "outputs past their retention are deleted");
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "store not swept"),
            Err(error) => tracing::error!(%error, "store not swept"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_that_failed_is_the_error_that_the_process_ends_with() {
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(ends(std::future::pending(), "requests of peers"));
        tasks.spawn(async { EngineError::Log("sync /log/1: no space left on device".into()).into() });
        let error = first_failure(&mut tasks).await;
        assert!(matches!(&error, RunError::Engine(EngineError::Log(_))));
        let text = error.to_string();
        assert!(text.contains("write the seat's log: sync /log/1: no space left on device"), "{text}");
        tasks.shutdown().await;
        tasks.spawn(ends(async {}, "requests of peers"));
        assert!(first_failure(&mut tasks).await.to_string().contains("requests of peers"));
    }
}
