//! Whole real Kubernetes clusters on one machine, for demos and tests.
//!
//! ```no_run
//! # async fn example() -> vendue_testbed::Result<()> {
//! use vendue_testbed::{Market, MarketSpec, Options, Paths, Progress, setup};
//! let paths = Paths::from_env()?;
//! let setup = setup::prepare(&paths, &Progress::stderr()).await?;
//! let market = Market::start(&setup, &MarketSpec::demo(), &Options::default()).await?;
//! println!("{}", market.cluster("home")?.kubeconfig().display());
//! market.stop(&setup).await
//! # }
//! ```
//! Between `kubectl apply` and a Pod's process nothing is a fake: etcd, API server, controller manager,
//! scheduler, kubelet, kube-proxy, containerd and CoreDNS are the released ones, one set per cluster. Only
//! the GPUs are simulated.

pub mod base;
pub mod cleanup;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod config;
pub mod demo;
pub mod deploy;
pub mod disk;
pub mod doctor;
pub mod dump;
pub mod error;
pub mod faults;
pub mod files;
pub mod gpu;
pub mod images;
pub mod kernel;
pub mod kubeconfig;
pub mod lock;
pub mod market;
pub mod network;
pub mod node;
pub mod objects;
pub mod paths;
pub mod pki;
pub mod process;
pub mod progress;
pub mod python;
pub mod scrape;
pub mod setup;
pub mod signals;
pub mod spec;
pub mod state;
pub mod store;
pub mod tools;
pub mod volumes;
pub mod wait;

pub use cluster::Cluster;
pub use error::{Error, Result};
pub use faults::Fault;
pub use market::{Market, Options};
pub use paths::Paths;
pub use progress::Progress;
pub use setup::Setup;
pub use spec::{ClusterSpec, MarketSpec};
