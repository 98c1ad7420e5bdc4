//! A market: several clusters that can reach each other, started, kept, found again and stopped as one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use tokio::task::AbortHandle;

use crate::cleanup;
use crate::cluster::{self, Cluster, Ingredients};
use crate::config::Layout;
use crate::error::{Error, Result};
use crate::gpu::Simulator;
use crate::images::Image;
use crate::kubeconfig::{self, Entry};
use crate::lock::Lock;
use crate::node::Tie;
use crate::paths::Paths;
use crate::pki::Pki;
use crate::process::ProcessId;
use crate::progress::Progress;
use crate::setup::Setup;
use crate::spec::{MarketSpec, Place, SLOTS};
use crate::state::MarketState;
use crate::{files, kernel, network, store, volumes};

/// The market's state, shared by all handles and written through to the state file.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    state: Arc<Mutex<MarketState>>,
    run: PathBuf,
}

impl Shared {
    fn new(state: MarketState, run: PathBuf) -> Self {
        Self { state: Arc::new(Mutex::new(state)), run }
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&MarketState) -> T) -> Result<T> {
        Ok(look(&self.state.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut MarketState)) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state);
        state.save(&self.run)
    }
}

/// How to start a market.
#[derive(Clone, Debug)]
pub struct Options {
    /// Images that are in every cluster from the start, beside those of the set-up.
    pub images: Vec<Image>,
    /// Cargo target folder with the GPU simulator, such as `target/debug`; without it nodes have no GPUs.
    pub programs: Option<PathBuf>,
    /// Where progress goes.
    pub progress: Progress,
}

impl Default for Options {
    fn default() -> Self {
        Self { images: Vec::new(), programs: None, progress: Progress::silent() }
    }
}

/// A running market. Dropping it stops the nodes' processes; [`Market::stop`] also removes the rest, and
/// [`Market::keep`] leaves it running.
#[derive(Debug)]
pub struct Market {
    clusters: Vec<Cluster>,
    run: Option<PathBuf>,
    shared: Option<Shared>,
    ties: Vec<Tie>,
    recyclers: Vec<AbortHandle>,
}

impl Market {
    /// Starts all clusters of a market in parallel. Leftovers of an earlier market of that name are removed
    /// first; one that still runs is an error that says whose it is, and stays. When a cluster fails to start, nothing is
    /// left.
    pub async fn start(setup: &Setup, spec: &MarketSpec, options: &Options) -> Result<Self> {
        spec.validate()?;
        let progress = &options.progress;
        let run = setup.paths.run(&spec.name);
        // Before the wait for the lock: whoever starts a market of this name holds it for long.
        check_free(&setup.paths, &spec.name)?;
        let lock = Lock::of_markets(&setup.paths).await?;
        if let Some(state) = MarketState::load(&run)?.filter(|s| s.is_others() || s.is_live()) {
            return Err(state.in_use());
        }
        cleanup::remove(&setup.paths, &spec.name, &lock).await?;
        let images: Vec<Image> = setup.images.iter().chain(&options.images).cloned().collect();
        let template = store::template(&setup.paths, &setup.programs, &images, progress).await?;
        let simulator = options.programs.as_deref().map(Simulator::in_folder).transpose()?;
        let slot = free_slot(setup)?;
        let owner = ProcessId::own()?;
        let state =
            MarketState { spec: spec.clone(), slot, owner, kept: false, helper: None, clusters: vec![] };
        state.save(&run)?;
        kernel::raise(&setup.paths)?;
        let shared = Shared::new(state, run.clone());
        let with = Ingredients { template, simulator, shared: shared.clone() };
        let name = format!("start {} clusters", spec.clusters.len());
        let started = progress.step(&name, start_all(setup, spec, slot, &with, progress)).await;
        match started {
            Ok(started) => {
                let (clusters, ties): (Vec<_>, Vec<_>) = started.into_iter().unzip();
                write_merged_kubeconfig(&run, &clusters)?;
                let recyclers = clusters.iter().filter_map(recycler).collect();
                Ok(Self { clusters, run: Some(run), shared: Some(shared), ties, recyclers })
            }
            Err(error) => {
                let kept = setup.paths.cache().join("failed").join(&spec.name);
                save_logs(&run, &kept);
                // What went wrong first is what counts.
                if let Err(left) = cleanup::remove(&setup.paths, &spec.name, &lock).await {
                    progress.say(format!("clean up: {left}; the next start tries again"));
                }
                Err(match error {
                    Error::Timeout { operation, after, detail } => Error::Timeout {
                        operation,
                        after,
                        detail: format!("{detail}; logs are in {}", kept.display()),
                    },
                    other => other,
                })
            }
        }
    }

    /// Takes over a market that an earlier run kept, `None` if none of that name runs. One that another process has in
    /// its hands is an error.
    pub async fn take_over(setup: &Setup, name: &str) -> Result<Option<Self>> {
        let run = setup.paths.run(name);
        check_free(&setup.paths, name)?;
        let _lock = Lock::of_markets(&setup.paths).await?;
        check_free(&setup.paths, name)?;
        let Some(mut state) = MarketState::load(&run)?.filter(MarketState::is_live) else { return Ok(None) };
        state.owner = ProcessId::own()?;
        state.save(&run)?;
        Self::attach(setup, name).await
    }

    /// Looks into a market that runs, whoever has it in his hands; `None` if none of that name runs.
    pub async fn attach(setup: &Setup, name: &str) -> Result<Option<Self>> {
        let run = setup.paths.run(name);
        let Some(state) = MarketState::load(&run)?.filter(MarketState::is_live) else { return Ok(None) };
        let places: Vec<Place> = state.clusters.iter().map(|c| c.place.clone()).collect();
        let shared = Shared::new(state, run.clone());
        let attach = |place: Place| Cluster::attach(layout(setup, &run, place), shared.clone());
        let clusters = try_join_all(places.into_iter().map(attach)).await?;
        Ok(Some(Self { clusters, run: Some(run), shared: Some(shared), ties: vec![], recyclers: vec![] }))
    }

    /// Uses clusters that the user already has, each as (name, context); they are neither started nor stopped nor
    /// broken.
    pub async fn existing(kubeconfig: &Path, members: &[(&str, &str)]) -> Result<Self> {
        kubeconfig::check_contexts(kubeconfig, members.iter().map(|(_, context)| *context))?;
        let connect = |(name, context): &(&str, &str)| {
            let (name, context) = (name.to_string(), context.to_string());
            async move { Cluster::existing(kubeconfig, &name, &context).await }
        };
        let clusters = try_join_all(members.iter().map(connect)).await?;
        Ok(Self { clusters, run: None, shared: None, ties: vec![], recyclers: vec![] })
    }

    /// All clusters, in the order of the spec.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// A cluster by name.
    pub fn cluster(&self, name: &str) -> Result<&Cluster> {
        self.clusters.iter().find(|c| c.name() == name).ok_or_else(|| {
            let names: Vec<_> = self.clusters.iter().map(Cluster::name).collect();
            Error::Invalid(format!("no cluster {name}: there are {}", names.join(", ")))
        })
    }

    /// Name of the market; empty for clusters of the user's.
    pub fn name(&self) -> String {
        self.shared.as_ref().and_then(|s| s.read(|m| m.spec.name.clone()).ok()).unwrap_or_default()
    }

    /// Whether the clusters are the test bed's own.
    pub fn is_own(&self) -> bool {
        self.run.is_some()
    }

    /// Folder of the market.
    pub fn folder(&self) -> Option<&Path> {
        self.run.as_deref()
    }

    /// Kubeconfig with one context per cluster.
    pub fn kubeconfig(&self) -> Option<PathBuf> {
        self.run.as_ref().map(|run| run.join("kubeconfig"))
    }

    /// Imports an image into all running clusters.
    pub async fn import(&self, image: &Image) -> Result<()> {
        try_join_all(self.clusters.iter().map(|c| c.import(image))).await.map(|_| ())
    }

    /// Lets the market outlive this process.
    pub async fn keep(&mut self) -> Result<()> {
        for tie in &mut self.ties {
            tie.loosen().await?;
        }
        if let Some(shared) = &self.shared {
            shared.update(|state| state.kept = true)?;
            // A market that was kept before has its helper already.
            if shared.read(|state| !state.helper.is_some_and(ProcessId::is_alive))? {
                let helper = look_after_volumes(&shared.read(|state| state.spec.name.clone())?)?;
                shared.update(|state| state.helper = helper)?;
            }
            self.abort_recyclers();
        }
        Ok(())
    }

    /// Stops everything and removes what the market left; clusters that are not ours stay as they are.
    pub async fn stop(mut self, setup: &Setup) -> Result<()> {
        self.abort_recyclers();
        let Some(name) = self.shared.as_ref().map(|s| s.read(|m| m.spec.name.clone())).transpose()? else {
            return Ok(());
        };
        cleanup::market(&setup.paths, &name).await
    }

    /// Makes released volumes anew until the market ends; for a process that looks after a kept market.
    pub async fn recycle_volumes(&self) {
        let own = self.clusters.iter().filter_map(|c| Some((c.client(), c.own().ok()?.layout.clone())));
        let recycling = join_all(own.map(|(client, layout)| volumes::recycle(client, layout)));
        let ended = async {
            while self.clusters.iter().any(Cluster::is_running) {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            _ = recycling => {}
            () = ended => {}
        }
    }

    fn abort_recyclers(&mut self) {
        for task in self.recyclers.drain(..) {
            task.abort();
        }
    }
}

impl Drop for Market {
    fn drop(&mut self) {
        self.abort_recyclers();
    }
}

/// Refuses a market of this name that another process uses at this moment.
pub(crate) fn check_free(paths: &Paths, name: &str) -> Result<()> {
    match MarketState::load(&paths.run(name))? {
        Some(state) if !state.is_own() && state.owner.is_alive() => Err(state.in_use()),
        _ => Ok(()),
    }
}

fn recycler(cluster: &Cluster) -> Option<AbortHandle> {
    let layout = cluster.own().ok()?.layout.clone();
    Some(tokio::spawn(volumes::recycle(cluster.client(), layout)).abort_handle())
}

fn layout(setup: &Setup, run: &Path, place: Place) -> Layout {
    let folder = run.join(&place.cluster);
    Layout { pki: Pki::at(&folder.join("pki")), folder, place, bin: setup.programs.clone() }
}

async fn start_all(
    setup: &Setup,
    spec: &MarketSpec,
    slot: u8,
    with: &Ingredients,
    progress: &Progress,
) -> Result<Vec<(Cluster, Tie)>> {
    let run = setup.paths.run(&spec.name);
    network::create_wan(&spec.name).await?;
    let one = async |index: usize| {
        let wanted = &spec.clusters[index];
        let index = u8::try_from(index + 1).map_err(|_| Error::Invalid("too many clusters".into()))?;
        let place = Place { market: spec.name.clone(), cluster: wanted.name.clone(), slot, index };
        let started = cluster::start(layout(setup, &run, place), wanted, with).await?;
        progress.say(format!("  {} is ready", wanted.name));
        Ok(started)
    };
    try_join_all((0..spec.clusters.len()).map(one)).await
}

/// The lowest slot that no other market's folder claims.
fn free_slot(setup: &Setup) -> Result<u8> {
    let mut taken = Vec::new();
    for entry in std::fs::read_dir(setup.paths.runs()).into_iter().flatten().flatten() {
        if let Ok(Some(state)) = MarketState::load(&entry.path()) {
            taken.push(state.slot);
        }
    }
    (0..SLOTS).find(|slot| !taken.contains(slot)).ok_or_else(|| {
        Error::Machine(format!(
            "{SLOTS} markets exist already: remove those you do not need with `testbed clean`"
        ))
    })
}

fn write_merged_kubeconfig(run: &Path, clusters: &[Cluster]) -> Result<()> {
    let layouts: Vec<_> = clusters.iter().filter_map(|c| Some(c.own().ok()?.layout.clone())).collect();
    let servers: Vec<String> = layouts.iter().map(|l| l.place.api_url()).collect();
    let entries: Vec<_> = layouts
        .iter()
        .zip(&servers)
        .map(|(l, server)| Entry { name: &l.place.cluster, server, pki: &l.pki, client: "admin" })
        .collect();
    kubeconfig::write(&run.join("kubeconfig"), &entries).map(|_| ())
}

/// Keeps the logs of a market that did not start.
fn save_logs(run: &Path, target: &Path) {
    let _ = files::remove_dir(target);
    for entry in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let logs = entry.path().join("logs");
        for log in std::fs::read_dir(&logs).into_iter().flatten().flatten() {
            let folder = target.join(entry.file_name());
            // The failure itself is reported; its logs are a help only.
            let _ = files::create_dir(&folder).and_then(|()| {
                crate::error::IoContext::io(
                    std::fs::copy(log.path(), folder.join(log.file_name())),
                    "copy",
                    log.path(),
                )
            });
        }
    }
}

/// Starts a process that makes the released volumes of a kept market anew; it ends with the market. A
/// program without the `testbed` program beside it goes without: its market's volumes are used once.
fn look_after_volumes(market: &str) -> Result<Option<ProcessId>> {
    let Ok(own) = std::env::current_exe() else { return Ok(None) };
    let mut folders = own.ancestors().skip(1).take(2);
    let Some(program) = folders.find_map(|folder| Some(folder.join("testbed")).filter(|file| file.is_file()))
    else {
        return Ok(None);
    };
    let mut command = tokio::process::Command::new(program);
    command.args(["volumes", "--market", market]).process_group(0);
    let null = std::process::Stdio::null;
    command.stdin(null()).stdout(null()).stderr(null());
    let child = command.spawn().map_err(|e| Error::Command {
        operation: "look after volumes".into(),
        program: "testbed".into(),
        detail: e.to_string(),
    })?;
    Ok(child.id().and_then(|id| ProcessId::of(id.cast_signed())))
}
