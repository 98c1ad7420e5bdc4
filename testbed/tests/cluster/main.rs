//! Scenarios on real clusters: five of them, started once, shared by all scenarios, one after the other.
//!
//! Run by `cargo verify`; plain `cargo test` lists them as ignored, because they need root and the test bed's tools.
//! A failed scenario dumps events, Pod states and the last log lines of every component. `VENDUE_KEEP=1`, which
//! `cargo verify --keep` sets, leaves the market running.

// A manifest that a scenario builds wrongly is a mistake in the scenario.
#![allow(clippy::expect_used)]

mod access;
mod admission;
mod auction;
mod demo;
mod env;
mod epochs;
mod faults;
mod jobs;
mod junk;
mod labels;
mod lifecycle;
mod machine;
mod metering;
mod observe;
mod release;
mod restart;
mod training;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;
use vendue_testbed::cleanup;
use vendue_testbed::deploy::{Deployment, Source};
use vendue_testbed::error::Error;
use vendue_testbed::paths::Paths;
use vendue_testbed::progress::Progress;
use vendue_testbed::spec::MarketSpec;

use crate::env::{Env, Scenario};

const MARKET: &str = "verify";
/// Size of home's disk, which one scenario fills.
const HOME_DISK_MIB: u32 = 256;
/// Longest that a single scenario may take.
const LIMIT: Duration = Duration::from_secs(420);

/// Longest that the start of the market may take, images and tools built from nothing included.
const START: Duration = Duration::from_secs(60 * 60);

/// The market, started when the first scenario needs it.
struct Shared {
    runtime: Runtime,
    env: OnceCell<Result<Env, String>>,
}

/// Starts a thing once: whoever asks after a failure is told the same at once.
async fn once<T>(
    cell: &OnceCell<Result<T, String>>,
    start: impl Future<Output = Result<T, Error>>,
) -> Result<&T, Failed> {
    let begin = async {
        match tokio::time::timeout(START, start).await {
            Ok(started) => started.map_err(|e| e.to_string()),
            Err(_) => Err(format!("not done after {} s", START.as_secs())),
        }
    };
    let started = cell.get_or_init(|| begin).await.as_ref();
    started.map_err(|error| Failed::from(format!("start the market: {error}")))
}

async fn start_market() -> Result<Env, Error> {
    let progress = Progress::stderr();
    let source = Source::Own(MarketSpec::demo().named(MARKET).with_disks(HOME_DISK_MIB, |c| c == "home"));
    let deployment = Deployment::up(&Paths::from_env()?, &source, keep(), &progress).await?;
    Ok(Env { deployment, progress })
}

/// Whether the market is to be left running.
fn keep() -> bool {
    std::env::var_os("VENDUE_KEEP").is_some()
}

impl Shared {
    async fn env(&self) -> Result<&Env, Failed> {
        once(&self.env, start_market()).await
    }

    fn run(&self, name: &str, scenario: impl AsyncFnOnce(&Env) -> Scenario) -> Result<(), Failed> {
        self.runtime.block_on(async {
            let env = self.env().await?;
            env.progress.say(format!("scenario {name}"));
            let result = match tokio::time::timeout(LIMIT, scenario(env)).await {
                Ok(result) => result,
                Err(_) => Err(format!("not done after {} s", LIMIT.as_secs()).into()),
            };
            if let Err(error) = result {
                let dir = env.deployment.setup.paths.cache().join("failed").join(name);
                // The failure is what counts; the dump is a help only.
                let _ = vendue_testbed::dump::market(&env.deployment.market, &dir).await;
                env.reset().await;
                return Err(Failed::from(error.to_string()));
            }
            Ok(())
        })
    }
}

macro_rules! scenarios {
    ($shared:expr, $($module:ident :: $name:ident),+ $(,)?) => {
        vec![$({
            let shared = Arc::clone(&$shared);
            let name = concat!(stringify!($module), "::", stringify!($name));
            Trial::test(name, move || shared.run(name, async |env: &Env| $module::$name(env).await)).with_ignored_flag(true)
        }),+]
    };
}

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // The scenarios share one market and break parts of it.
    args.test_threads = Some(1);
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let shared = Arc::new(Shared { runtime, env: OnceCell::new() });
    let trials = scenarios!(
        shared,
        admission::bad_jobs_are_refused,
        admission::immutable_fields_stay,
        admission::what_a_schema_cannot_say,
        admission::oversized_files_are_refused,
        auction::unknown_model_is_explained,
        auction::infeasible_job_is_explained,
        auction::ceiling_is_respected,
        auction::search_ends,
        auction::terms_of_the_order_hold,
        auction::silent_providers,
        junk::foreign_and_malformed_messages_change_nothing,
        demo::digits_from_apply_to_model,
        access::strangers_are_refused,
        access::tampering_is_found,
        access::agents_write_only_their_own_node,
        labels::agents_write_only_labels_of_feature_discovery,
        training::raising_script_fails,
        training::missing_interpreter_fails,
        training::deadline_ends_the_run,
        training::suspended_job_waits,
        training::killed_worker_resumes,
        lifecycle::delete_before_award,
        lifecycle::delete_during_provisioning,
        lifecycle::delete_while_running,
        faults::controller_dies_while_provisioning,
        faults::control_planes_die_during_the_run,
        faults::home_is_cut_off,
        faults::refusal_promotes_the_stand_by,
        faults::silence_promotes_the_stand_by,
        restart::a_job_that_bids_goes_on,
        restart::an_award_that_nobody_took_is_replaced,
        restart::deleted_while_the_auction_is_down,
        metering::usage_is_what_receipts_say,
        machine::full_disk_delays_outputs,
        machine::lost_gpu_is_not_sold,
        machine::seat_with_a_wrong_clock_is_left_out,
        release::upgrade_and_uninstall_with_a_running_award,
        observe::prometheus_fills_every_panel,
        // Last: from then on the market is in its next epoch, and the record that the others verify with is the first one.
        epochs::the_seats_make_new_keys_and_jobs_go_on_across_the_change,
    );
    let alone =
        Trial::test("a_start_that_failed_is_not_tried_by_every_scenario", a_failed_start_is_told_to_all);
    let trials = trials.into_iter().chain([alone]).collect();
    let conclusion = libtest_mimic::run(&args, trials);
    finish(shared);
    conclusion.exit_code()
}

/// Needs no cluster: plain `cargo test` runs it.
fn a_failed_start_is_told_to_all() -> Result<(), Failed> {
    let runtime = Runtime::new()?;
    let (cell, mut starts) = (OnceCell::<Result<(), String>>::new(), 0);
    for _ in 0..3 {
        let start = async {
            starts += 1;
            Err(Error::Invalid("no chart".into()))
        };
        let told = runtime.block_on(once(&cell, start)).err().and_then(|f| f.message().map(str::to_owned));
        if !told.as_ref().is_some_and(|text| text.contains("start the market: no chart")) {
            return Err(Failed::from(format!("a scenario is told {told:?}")));
        }
    }
    if starts == 1 { Ok(()) } else { Err(Failed::from(format!("{starts} starts"))) }
}

/// Stops the market, or leaves it running if that was asked for.
fn finish(shared: Arc<Shared>) {
    // The scenarios are over and have let go of it.
    let Some(Shared { runtime, env }) = Arc::into_inner(shared) else { return };
    let Some(Ok(mut env)) = env.into_inner() else { return };
    let done = runtime.block_on(async {
        if !keep() {
            return cleanup::own(&Paths::from_env()?, MARKET).await;
        }
        env.deployment.market.keep().await?;
        eprintln!("{}", vendue_testbed::demo::look_around(&env.deployment));
        Ok::<_, vendue_testbed::Error>(())
    });
    if let Err(error) = done {
        eprintln!("clean up: {error}; the next start tries again");
    }
}
