//! The change of epoch, as operators do it (docs/keys.md): the seats make new keys, the issuer signs the record, each
//! cluster is given both epochs and, after the change, the next one only. Jobs go on across all of it.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::try_join_all;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use vendue_auction_core::{MarketRecord, SignedMarketRecord};
use vendue_crds::conditions::{job as types, reasons};
use vendue_crds::{AuctionOutcome, Award};
use vendue_testbed::command::{command, run};
use vendue_testbed::deploy::{NAMESPACE, Profile, Site};

use crate::env::{Env, Failure, Process, Scenario, check, condition};
use crate::faults::{in_one_piece, pod_name, tell, until_told};
use crate::jobs::{Job, job};
use crate::machine::takes_part;
use crate::restart::outcome;

/// From the start of the generation to the first round with its keys: the least that there is.
const NOTICE: &str = "2m";
/// Until all seats listen.
const AHEAD: i64 = 5;
/// Longest that the making of the keys may take.
const GENERATION: Duration = Duration::from_secs(60);
/// How long before the change a seat is restarted: it looks on for longer than that (14 s).
const RESTART_MS: u64 = 4_000;
const NEXT_KEYS: &str = "vendue-keys-1";
/// The seat that is restarted, the only one that sells A100.
const RESTARTED: &str = "bravo";

/// A change of epoch, with the files that operators and issuer pass around.
struct Change<'e> {
    env: &'e Env,
    dir: tempfile::TempDir,
}

/// The seats make the keys of the next epoch while the market runs. Around its first round all Jobs are awarded and served:
/// one that runs across it, one that bids across it, one before and one right after; also by a seat that restarts just then.
/// Each award verifies with the record of its epoch only. The old keys are deleted, and the market goes on.
pub async fn the_seats_make_new_keys_and_jobs_go_on_across_the_change(env: &Env) -> Scenario {
    let change = Change { env, dir: tempfile::tempdir()? };
    change.generate().await?;
    let next = change.sign().await?;
    let first = next.generation.as_ref().map(|made| made.first_round).ok_or("the keys are a dealer's")?;
    change.give_both().await?;
    let ns = env.namespace("epochs").await?;
    let host_ns = old_epoch(env, &ns, first).await?;
    let change_ms = next.params.t0(first);
    check(UNIX_EPOCH + Duration::from_millis(change_ms) > SystemTime::now(), || {
        "the Jobs of the old epoch took longer than that: this scenario has shown nothing".into()
    })?;
    wait_until(change_ms.saturating_sub(RESTART_MS)).await;
    let seat = pod_name(env, RESTARTED, "vendue-auction").await?;
    env.site(RESTARTED).tools.kubectl(&["delete", "pod", "-n", NAMESPACE, &seat]).await?;
    wait_until(change_ms).await;
    new_epoch(&change, &ns, first, &host_ns).await?;
    wait_until(next.params.expiry(first.saturating_sub(1))).await;
    change.give_next_only().await?;
    one_epoch(&change, &ns).await?;
    let jobs = ["across", "patient", "before", "after", "last"];
    try_join_all(jobs.map(|name| env.delete_job(&ns, name, 60))).await?;
    env.nothing_left(60).await
}

/// A Job that only the seat that is restarted can serve.
fn at_restarted(name: &str, script: &str) -> Job {
    job(name, script).with("/train/workers/gpuModels", json!(["A100"]))
}

/// A Job that only another seat can serve.
fn elsewhere(name: &str) -> Job {
    job(name, "print('ran', flush=True)").with("/train/workers/gpuModels", json!(["L40S"]))
}

/// While the old epoch lasts: one Job is awarded, one runs, and one finds nobody as long as that one does. Returns where
/// it runs.
async fn old_epoch(env: &Env, ns: &str, first: u64) -> Result<String, Failure> {
    env.home().apply(ns, &at_restarted("across", &until_told()).manifest()).await?;
    env.condition_true(ns, "across", types::AWARDED, 30).await?;
    let all = at_restarted("patient", "print('ran', flush=True)")
        .with("/train/workers/gpus", json!(4))
        .with("/searchSeconds", json!(600));
    env.home().apply(ns, &all.manifest()).await?;
    env.home().apply(ns, &elsewhere("before").manifest()).await?;
    env.job_until(ns, "patient", "finds nobody", 20, |j| outcome(j) == Some(AuctionOutcome::NoFeasibleBid))
        .await?;
    env.condition_true(ns, "before", types::AWARDED, 30).await?;
    let round = round_of(env, ns, "before").await?;
    check(round < first, || format!("awarded in round {round}, after the change in round {first}"))?;
    env.condition_true(ns, "across", types::RUNNING, 60).await?;
    let awards = Api::<Award>::all(env.site(RESTARTED).client.clone()).list(&ListParams::default()).await?;
    let award = awards.items.into_iter().next().ok_or("the Job runs without an Award")?;
    Ok(award.metadata.namespace.unwrap_or_default())
}

/// From the first round of the next epoch on: who is left of the seats serves a Job at once; the one that runs ends, and the
/// one that waited for it gets its place, in the next epoch, from the seat that was restarted.
async fn new_epoch(change: &Change<'_>, ns: &str, first: u64, host_ns: &str) -> Scenario {
    let env = change.env;
    env.home().apply(ns, &elsewhere("after").manifest()).await?;
    tell(env, RESTARTED, host_ns).await?;
    in_one_piece(env, ns, "across", 10).await?;
    takes_part(env, RESTARTED).await?;
    served(env, ns, "before", "charlie").await?;
    change.verifies(ns, "before", Epoch::Old).await?;
    served(env, ns, "after", "charlie").await?;
    served(env, ns, "patient", RESTARTED).await?;
    for name in ["after", "patient"] {
        change.verifies(ns, name, Epoch::Next).await?;
        let round = round_of(env, ns, name).await?;
        check(round >= first, || format!("{name}: awarded in round {round}, before the change in {first}"))?;
    }
    let shares = env.metric(RESTARTED, Process::Auction, "shares_sent_total").await?;
    check(shares > 0.0, || format!("{RESTARTED} opened no round since it was restarted"))
}

/// The next epoch alone: users verify with the record that their cluster has.
async fn one_epoch(change: &Change<'_>, ns: &str) -> Scenario {
    let env = change.env;
    env.home().apply(ns, &at_restarted("last", "print('ran', flush=True)").manifest()).await?;
    served(env, ns, "last", RESTARTED).await?;
    change.verifies(ns, "last", Epoch::Next).await?;
    let own = env.vendue(&["-n", ns, "verify", "job/last"]).await?;
    check(own.code == 0, || format!("the award does not verify with the cluster's record: {own:?}"))
}

/// Waits until a Job has succeeded where it was to run.
async fn served(env: &Env, ns: &str, name: &str, provider: &str) -> Scenario {
    let job = env.finished(ns, name, 120).await?;
    let finished = condition(&job, types::FINISHED)?;
    check(finished.reason == reasons::SUCCEEDED, || {
        format!("{name}: {}: {}", finished.reason, finished.message)
    })?;
    let award = job.status.and_then(|s| s.award).unwrap_or_default();
    check(award.provider == provider, || format!("{} served {name}, not {provider}", award.provider))
}

/// The round in which a Job was awarded.
async fn round_of(env: &Env, ns: &str, name: &str) -> Result<u64, Failure> {
    let award = env.jobs(ns).get(name).await?.status.and_then(|s| s.award).unwrap_or_default();
    Ok(u64::try_from(award.round)?)
}

/// Waits for a time in milliseconds since 1970: rounds, and with them the change, begin by the clock and by no event.
async fn wait_until(at_ms: u64) {
    let at = UNIX_EPOCH + Duration::from_millis(at_ms);
    // A time that is over is not waited for.
    tokio::time::sleep(at.duration_since(SystemTime::now()).unwrap_or_default()).await;
}

/// Free UDP ports of this machine, as addresses.
fn addresses(count: usize) -> Result<Vec<String>, Failure> {
    let sockets: Vec<UdpSocket> =
        (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let address = |s: &UdpSocket| Ok(format!("/ip4/127.0.0.1/udp/{}/quic-v1", s.local_addr()?.port()));
    sockets.iter().map(address).collect()
}

#[derive(Clone, Copy, Debug)]
enum Epoch {
    Old,
    Next,
}

impl Change<'_> {
    /// The record of the epoch in use.
    fn old(&self) -> PathBuf {
        self.env.deployment.deal.record()
    }

    /// The signed record of the next epoch.
    fn next(&self) -> PathBuf {
        self.dir.path().join("market-1.json")
    }

    /// Where the operator of a seat writes to.
    fn out(&self, seat: &str) -> PathBuf {
        self.dir.path().join(seat).join("next-epoch")
    }

    /// Runs `vendue-auction COMMAND`, which must end well.
    async fn auction(&self, what: &str, args: &[&str]) -> Result<String, Failure> {
        let program = self.env.deployment.programs.join("vendue-auction");
        Ok(run(what, GENERATION, command(program, args)).await?)
    }

    /// Every operator of a seat makes the keys with the others, and checks the record that results.
    async fn generate(&self) -> Scenario {
        let seats: Vec<&str> = self.env.deployment.providers().map(|site| site.name.as_str()).collect();
        let all: Vec<(&str, String)> = seats.iter().copied().zip(addresses(seats.len())?).collect();
        let start = Timestamp::from_second(Timestamp::now().as_second() + AHEAD)?.to_string();
        try_join_all(seats.iter().map(|seat| self.make_keys(seat, &all, &start))).await?;
        let mut made = Vec::new();
        for seat in seats {
            let path = self.out(seat).join("next-record.json");
            let args = ["verify-record", &text(&path), "--previous", &text(&self.old())];
            let said = self.auction("check the next record", &args).await?;
            check(said.contains("follows epoch 0"), || format!("the record of {seat}: {said}"))?;
            let record: MarketRecord = serde_json::from_str(&std::fs::read_to_string(path)?)?;
            let first = record.generation.as_ref().map(|made| made.first_round);
            let keys: Vec<_> = record.seats.iter().map(|seat| seat.seal_share_key).collect();
            made.push((record.epoch, first, record.seal_key, keys));
        }
        check(made.windows(2).all(|two| two[0] == two[1]), || "the seats made different keys".into())
    }

    /// One operator's part: with a copy of the cluster's keys, and the others at the ports that were agreed on.
    async fn make_keys(&self, seat: &str, all: &[(&str, String)], start: &str) -> Scenario {
        let keys = self.dir.path().join(seat).join("keys.json");
        std::fs::create_dir(self.dir.path().join(seat))?;
        std::fs::copy(self.env.deployment.deal.key_file(seat), &keys)?;
        let (record, keys, out) = (text(&self.old()), text(&keys), text(&self.out(seat)));
        let mut args = vec!["generate-keys", "--start", start, "--notice", NOTICE, "--out", &out];
        args.extend(["--market-record", &record, "--keys", &keys]);
        let seats: Vec<String> = all.iter().map(|(name, at)| format!("{name}={at}")).collect();
        for ((name, address), named) in all.iter().zip(&seats) {
            args.extend(if *name == seat { ["--p2p-listen", address] } else { ["--seat", named] });
        }
        self.auction(&format!("make the keys of {seat}"), &args).await.map(drop)
    }

    /// The issuer takes the record from a seat and signs it.
    async fn sign(&self) -> Result<MarketRecord, Failure> {
        let (record, out) = (text(&self.out(RESTARTED).join("next-record.json")), text(&self.next()));
        let (old, issuer) = (text(&self.old()), text(&self.env.deployment.deal.issuer()));
        let args = ["sign-record", &record, "--previous", &old, "--issuer", &issuer, "--out", &out];
        self.auction("sign the next record", &args).await?;
        Ok(SignedMarketRecord::from_json(&std::fs::read_to_string(self.next())?)?.record)
    }

    /// Gives every cluster the next epoch beside the old one.
    async fn give_both(&self) -> Scenario {
        let record = format!("market.nextRecord={}", text(&self.next()));
        let keys = format!("auction.nextKeysSecret={NEXT_KEYS}");
        for site in self.env.deployment.providers() {
            let file = format!("--from-file=keys.json={}", text(&self.out(&site.name).join("keys.json")));
            let name = ["secret", NEXT_KEYS, "-n", NAMESPACE];
            // What a run on a market that was kept has left.
            site.tools.kubectl(&[&["delete", "--ignore-not-found"], &name[..]].concat()).await?;
            site.tools.kubectl(&["create", "secret", "generic", NEXT_KEYS, "-n", NAMESPACE, &file]).await?;
        }
        self.upgrade(&["--set-file", &record], &["--set", &keys]).await
    }

    /// Gives every cluster the next epoch only, and deletes the old keys of the seats.
    async fn give_next_only(&self) -> Scenario {
        let record = format!("market.record={}", text(&self.next()));
        let keys = format!("auction.keysSecret={NEXT_KEYS},auction.nextKeysSecret=");
        self.upgrade(&["--set-file", &record, "--set", "market.nextRecord="], &["--set", &keys]).await?;
        for site in self.env.deployment.providers() {
            site.tools.kubectl(&["delete", "secret", "vendue-keys", "-n", NAMESPACE]).await?;
        }
        Ok(())
    }

    /// Upgrades every cluster, those with a seat with more values, and waits until all seats take part in rounds.
    async fn upgrade(&self, all: &[&str], seats: &[&str]) -> Scenario {
        let deployment = &self.env.deployment;
        let chart = text(&deployment.setup.paths.checkout().join("charts/vendue"));
        let common = ["upgrade", "vendue", &chart, "--namespace", NAMESPACE, "--reuse-values", "--wait"];
        let one = async |site: &Site| {
            let more = if site.profile == Profile::Provider { seats } else { &[] };
            site.tools.helm(&[&common[..], &["--timeout", "120s"], all, more].concat()).await
        };
        try_join_all(deployment.sites.iter().map(one)).await?;
        for site in deployment.providers() {
            takes_part(self.env, &site.name).await?;
        }
        Ok(())
    }

    /// A Job's award verifies with the record of its epoch, and with the other one it is said which epoch that is.
    async fn verifies(&self, ns: &str, name: &str, epoch: Epoch) -> Scenario {
        let (old, next) = (text(&self.old()), text(&self.next()));
        let (right, other, told) = match epoch {
            Epoch::Old => (old, next, "certificate is of epoch 0, the record of epoch 1"),
            Epoch::Next => (next, old, "certificate is of epoch 1, the record of epoch 0"),
        };
        let job = format!("job/{name}");
        let good = self.env.vendue(&["-n", ns, "verify", &job, "--market", &right]).await?;
        check(good.code == 0, || format!("{name} does not verify with the record of its epoch: {good:?}"))?;
        let bad = self.env.vendue(&["-n", ns, "verify", &job, "--market", &other]).await?;
        check(bad.code == 1 && bad.stderr.contains(&format!("not verified: certificate: {told}")), || {
            format!("{name}, with the record of the other epoch: {bad:?}")
        })
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
