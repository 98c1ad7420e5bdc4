//! Development keys and the market record of a test market.
//!
//! Inputs: names and addresses. Outputs: the folder that `vendue-auction deal` wrote. Invariant: an existing deal with
//! the same members is kept, so that a kept market goes on with its keys.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::command::{command, run};
use crate::error::{IoContext as _, Result};

/// UDP node port of every seat.
pub const P2P_NODE_PORT: u16 = 30470;
/// Bound on the one-way delay in the demo's market; a whole machine of clusters on two cores needs no more.
pub const DELAY_MS: u32 = 125;

/// Time from one round to the next: wide enough that shares may leave although the gate of the next round opens.
const PERIOD_MS: u32 = 8 * DELAY_MS;
/// Time for the hand-over. A third of it is what a winner has to take hold of its devices before the next in line is
/// asked; five control planes on two cores need seconds where separate clusters need a fraction of one.
const HANDOVER_MS: u32 = 9_000;

/// Where the deal lies.
#[derive(Clone, Debug)]
pub struct Deal {
    dir: PathBuf,
}

impl Deal {
    /// The public market record, the trust root.
    pub fn record(&self) -> PathBuf {
        self.dir.join("market.json")
    }

    /// The key that the record is signed with.
    pub fn issuer(&self) -> PathBuf {
        self.dir.join("issuer.json")
    }

    /// The keys of one cluster as a file of their own.
    pub fn key_file(&self, cluster: &str) -> PathBuf {
        self.dir.join("keys").join(format!("{cluster}.json"))
    }

    /// The manifest with the keys of one cluster.
    pub fn keys(&self, cluster: &str) -> PathBuf {
        self.dir.join("secrets").join(format!("{cluster}.yaml"))
    }
}

/// Deals keys for seats (name, multiaddr), of which some have a region (name, region), and homes into `dir`.
pub async fn deal(
    program: &Path,
    market: &str,
    seats: &[(String, String)],
    regions: &[(String, String)],
    homes: &[String],
    dir: &Path,
) -> Result<Deal> {
    let deal = Deal { dir: dir.to_path_buf() };
    if deal.record().exists() {
        return Ok(deal);
    }
    std::fs::create_dir_all(dir).io("create", dir)?;
    let mut run_deal = command(program, ["deal", "--market", market, "--delay-ms", &DELAY_MS.to_string()]);
    run_deal.args(["--period-ms", &PERIOD_MS.to_string(), "--handover-ms", &HANDOVER_MS.to_string()]);
    for (name, address) in seats {
        run_deal.arg("--seat").arg(format!("{name}={address}"));
    }
    for (name, region) in regions {
        run_deal.arg("--region").arg(format!("{name}={region}"));
    }
    for home in homes {
        run_deal.arg("--home").arg(home);
    }
    run_deal.arg("--out").arg(dir);
    run("deal keys", Duration::from_secs(60), run_deal).await?;
    Ok(deal)
}
