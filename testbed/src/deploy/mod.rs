//! Vendue on running clusters: built, dealt, installed, provisioned; and the verbs that the demo and the cluster tests
//! share.
//!
//! Inputs: clusters (the test bed's own, or ones that the user has). Outputs: a [`Deployment`] on which a Job can be
//! applied. Invariant: everything goes through helm, kubectl and the API, as a provider and a user would do it.

mod charts;
mod deal;
mod existing;
mod follow;
mod onto;
mod preflight;
mod programs;
mod pull;
mod reach;
mod remove;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::try_join_all;
use kube::Client;
use kube::api::{Api, ListParams};

use vendue_crds::{Provision, conditions};

use crate::cluster::Cluster;
use crate::error::{Error, IoContext as _, Result};
use crate::gpu;
use crate::images;
use crate::market::{self, Market, Options};
use crate::paths::Paths;
use crate::progress::Progress;
use crate::setup::{self, Setup};
use crate::spec::{MarketSpec, STORAGE_CLASS};
use crate::wait::{self, Poll};

pub use charts::{NAMESPACE, Profile, Release, Tools, install};
pub use deal::{DELAY_MS, Deal, P2P_NODE_PORT, deal};
pub use existing::{Existing, HOME, ImageName, Member, Reach, SeatAddress};
pub use follow::{Follower, STEPS, describe};
pub use onto::remove_earlier;
pub use programs::{build, folder};
pub use report::Report;

const LOOK: Duration = Duration::from_millis(200);

/// One cluster with Vendue on it.
#[derive(Clone)]
pub struct Site {
    /// Name in the market.
    pub name: String,
    /// What it is.
    pub profile: Profile,
    /// helm and kubectl for it.
    pub tools: Tools,
    /// Client with the administrator's rights.
    pub client: Client,
    /// The cluster's own handle.
    pub cluster: Cluster,
}

impl Site {
    fn new(cluster: &Cluster, setup: &Setup) -> Self {
        Self {
            name: cluster.name().to_owned(),
            profile: if cluster.name() == "home" { Profile::Home } else { Profile::Provider },
            tools: Tools {
                helm: setup.programs.helm.clone(),
                kubectl: setup.programs.kubectl.clone(),
                kubeconfig: cluster.kubeconfig().to_path_buf(),
                context: cluster.context().unwrap_or_default().to_owned(),
            },
            client: cluster.client(),
            cluster: cluster.clone(),
        }
    }

    /// Applies manifests in a namespace, as a user does.
    pub async fn apply(&self, namespace: &str, manifest: &str) -> Result<String> {
        self.tools.kubectl_with_input(&["apply", "--namespace", namespace, "-f", "-"], manifest).await
    }
}

/// Clusters with Vendue on them.
pub struct Deployment {
    /// The set-up that the clusters were made from.
    pub setup: Setup,
    /// The clusters.
    pub market: Market,
    /// The clusters with their tools; `home` is the user's.
    pub sites: Vec<Site>,
    /// Keys and market record.
    pub deal: Deal,
    /// Folder with Vendue's programs.
    pub programs: PathBuf,
    /// How Vendue got onto clusters that the user has; `None` for the test bed's own.
    pub existing: Option<Existing>,
    /// Seconds from the start until the clusters were ready.
    pub clusters_ready: f64,
    /// Seconds from the start until the charts were ready.
    pub charts_ready: f64,
}

/// Where the clusters come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The test bed's own, started for this; one that was kept under the same name is used again.
    Own(MarketSpec),
    /// Clusters that the user has.
    Existing(Box<Existing>),
}

impl Deployment {
    /// Builds the programs, starts or finds the clusters, installs Vendue and waits until the providers offer GPUs. With
    /// `keep`, clusters of the test bed's on which it cannot be installed are left running.
    pub async fn up(paths: &Paths, source: &Source, keep: bool, progress: &Progress) -> Result<Self> {
        match source {
            Source::Own(spec) => Self::up_own(paths, spec, keep, progress).await,
            Source::Existing(existing) => onto::up(paths, existing, progress).await,
        }
    }

    async fn up_own(paths: &Paths, spec: &MarketSpec, keep: bool, progress: &Progress) -> Result<Self> {
        // Before minutes of building.
        market::check_free(paths, &spec.name)?;
        let setup = setup::prepare(paths, progress).await?;
        let programs = build(paths, progress).await?;
        let image = images::vendue_image(paths, &programs, false, progress).await?;
        let market = match Market::take_over(&setup, &spec.name).await? {
            Some(market) => {
                progress.say(format!("market {} is running and is used again", spec.name));
                progress.step("import Vendue's image", market.import(&image)).await?;
                market
            }
            None => {
                let options = Options {
                    images: vec![image],
                    programs: Some(programs.clone()),
                    progress: progress.clone(),
                };
                Market::start(&setup, spec, &options).await?
            }
        };
        let clusters_ready = progress.elapsed().as_secs_f64();
        let installed = Self::install_all(&setup, &market, &programs, progress).await;
        let (sites, deal) = match installed {
            Ok(done) => done,
            Err(error) => {
                let dump = paths.cache().join("failed/install");
                // The failure is what counts; the dump is a help only.
                let _ = crate::dump::market(&market, &dump).await;
                if let Err(left) = give_up(market, &setup, keep, progress).await {
                    progress.say(format!("clean up: {left}; the next start tries again"));
                }
                return Err(error);
            }
        };
        let charts_ready = progress.elapsed().as_secs_f64();
        Ok(Self { setup, market, sites, deal, programs, existing: None, clusters_ready, charts_ready })
    }

    async fn install_all(
        setup: &Setup,
        market: &Market,
        programs: &Path,
        progress: &Progress,
    ) -> Result<(Vec<Site>, Deal)> {
        let sites: Vec<Site> = market.clusters().iter().map(|c| Site::new(c, setup)).collect();
        let folder = market.folder().ok_or_else(|| Error::Invalid("the market has no folder".into()))?;
        let deal = deal_keys(programs, &sites, &folder.join("deal")).await?;
        let charts = setup.paths.checkout().join("charts");
        progress
            .step(
                "install the charts",
                try_join_all(sites.iter().map(|site| install_one(site, &charts, &deal))),
            )
            .await?;
        let examples = setup.paths.checkout().join("manifests/examples/provisions");
        progress
            .step(
                "offer GPUs",
                try_join_all(
                    sites.iter().filter(|s| s.profile == Profile::Provider).map(|s| offer(s, &examples)),
                ),
            )
            .await?;
        Ok((sites, deal))
    }

    /// The user's cluster.
    pub fn home(&self) -> &Site {
        self.site("home")
    }

    /// A cluster by name; a wrong name is a mistake of the caller's and ends up at the first cluster's errors.
    pub fn site(&self, name: &str) -> &Site {
        self.sites.iter().find(|s| s.name == name).unwrap_or(&self.sites[0])
    }

    /// The providers' clusters.
    pub fn providers(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|s| s.profile == Profile::Provider)
    }

    /// Text of a file in `manifests/examples`.
    pub fn example(&self, name: &str) -> Result<String> {
        let path = self.setup.paths.checkout().join("manifests/examples").join(name);
        std::fs::read_to_string(&path).io("read", &path)
    }

    /// Cuts a cluster off from the others.
    pub async fn cut(&self, name: &str) -> Result<()> {
        self.site(name).cluster.cut().await
    }

    /// Lets a cluster reach the others again.
    pub async fn heal(&self, name: &str) -> Result<()> {
        self.site(name).cluster.heal().await
    }

    /// The example Job, in the user's words where the clusters are the user's.
    pub fn job_manifest(&self) -> Result<String> {
        let example = self.example("train-digits.yaml")?;
        Ok(match &self.existing {
            Some(existing) => existing.adapt_job(&example),
            None => example,
        })
    }

    /// How long the example Job may take: a user's cluster pulls its image first.
    pub fn job_limit(&self) -> Duration {
        Duration::from_secs(if self.existing.is_some() { 900 } else { 300 })
    }

    /// Does the work, unless one of the user's clusters turns out to be unable to pull an image.
    pub async fn unless_unpullable<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match self.existing {
            Some(_) => pull::unless_unpullable(&self.sites, work).await,
            None => work.await,
        }
    }

    /// Stops the clusters; takes Vendue off those of the user.
    pub async fn stop(self) -> Result<()> {
        match &self.existing {
            Some(existing) => onto::remove(&self.setup.paths, existing, &self.sites).await,
            None => self.market.stop(&self.setup).await,
        }
    }
}

/// Stops clusters on which Vendue could not be installed, or leaves them to be looked at.
async fn give_up(mut market: Market, setup: &Setup, keep: bool, progress: &Progress) -> Result<()> {
    if !keep {
        return market.stop(setup).await;
    }
    market.keep().await?;
    let kubeconfig = market.kubeconfig().unwrap_or_default();
    progress.say(format!(
        "the clusters are left running as they are; look around with\n  export KUBECONFIG={}\n  {} --context home get \
         pods -A\nstop them with\n  cargo testbed down --market {}",
        kubeconfig.display(),
        setup.programs.kubectl.display(),
        market.name()
    ));
    Ok(())
}

/// Regions of the providers, as the market record names them.
const REGIONS: [(&str, &str); 4] =
    [("alpha", "north"), ("bravo", "north"), ("charlie", "south"), ("delta", "south")];

async fn deal_keys(programs: &Path, sites: &[Site], dir: &Path) -> Result<Deal> {
    let mut seats = Vec::new();
    let mut homes = Vec::new();
    for site in sites {
        match (site.profile, site.cluster.address()) {
            (Profile::Home, _) => homes.push(site.name.clone()),
            (Profile::Provider, Some(address)) => {
                seats.push((site.name.clone(), reach::multiaddr(&address, P2P_NODE_PORT)));
            }
            (Profile::Provider, None) => {
                return Err(Error::Invalid(format!("{} has no address", site.name)));
            }
        }
    }
    let region = |name: &str| REGIONS.iter().find(|(seat, _)| *seat == name).map(|(_, region)| *region);
    let regions: Vec<(String, String)> =
        seats.iter().filter_map(|(name, _)| Some((name.clone(), region(name)?.to_owned()))).collect();
    deal(&programs.join("vendue-auction"), "demo", &seats, &regions, &homes, dir).await
}

async fn install_one(site: &Site, charts: &Path, deal: &Deal) -> Result<()> {
    let nvml = PathBuf::from(gpu::NODE_FOLDER);
    let release = Release {
        charts,
        record: &deal.record(),
        keys: &deal.keys(&site.name),
        profile: site.profile,
        nvml: (site.profile == Profile::Provider).then_some(nvml.as_path()),
        storage_class: STORAGE_CLASS,
        more: serde_json::Value::Null,
    };
    install(&site.tools, &release).await
}

async fn offer(site: &Site, examples: &Path) -> Result<()> {
    let path = examples.join(format!("{}.yaml", site.name));
    let manifest = std::fs::read_to_string(&path).io("read", &path)?;
    offer_text(site, &manifest).await
}

/// Applies a Provision and waits until the seat bids with it.
async fn offer_text(site: &Site, manifest: &str) -> Result<()> {
    site.tools.kubectl_with_input(&["apply", "-f", "-"], manifest).await?;
    let api: Api<Provision> = Api::namespaced(site.client.clone(), NAMESPACE);
    wait::until(&format!("{} offers its GPUs", site.name), Duration::from_secs(90), LOOK, || async {
        let list = api.list(&ListParams::default()).await.map_err(|e| Error::kube("list provisions", e))?;
        let pending: Vec<String> = list.items.iter().filter_map(not_offered).collect();
        Ok(if !list.items.is_empty() && pending.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending(pending.join("; "))
        })
    })
    .await
}

/// Why a Provision is not offered at this moment.
fn not_offered(provision: &Provision) -> Option<String> {
    let name = provision.metadata.name.clone().unwrap_or_default();
    let status = provision.status.clone().unwrap_or_default();
    let wanted = [conditions::provision::READY, conditions::provision::ADVERTISED];
    let missing: Vec<String> = wanted
        .iter()
        .filter(|type_| !conditions::is_true(&status.conditions, type_))
        .map(|type_| match conditions::find(&status.conditions, type_) {
            Some(c) => format!("{type_} is {}: {}: {}", c.status, c.reason, c.message),
            None => format!("{type_} is not reported"),
        })
        .collect();
    (!missing.is_empty()).then(|| format!("{name}: {}", missing.join(", ")))
}
