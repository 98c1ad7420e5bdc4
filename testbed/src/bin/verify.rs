//! `cargo verify`: every test. First those that need no cluster, then those that compare with Python's tools, then the
//! scenarios on real clusters.
//!
//! Inputs: the checkout. Outputs: the closing lines of the test runners, and their exit status. Invariant: a step that
//! cannot be run is a failure, never skipped.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use vendue_testbed::paths::Paths;
use vendue_testbed::{Progress, python};

/// Runs all tests, cluster tests included.
#[derive(Parser)]
#[command(name = "verify", version)]
struct Args {
    /// Only scenarios and tests whose name contains this; given on to the test runner.
    filter: Option<String>,
    /// Leave out the tests that need no cluster.
    #[arg(long)]
    clusters_only: bool,
    /// Leave out the scenarios on clusters, for a quick look; the result says so.
    #[arg(long, conflicts_with = "clusters_only")]
    no_clusters: bool,
    /// Leave the market of the scenarios running, to look at it.
    #[arg(long)]
    keep: bool,
}

/// A variable that a test runner gets.
type Variable = (&'static str, OsString);

fn cargo(
    checkout: &Path,
    args: &[&str],
    filter: Option<&str>,
    runner: &[&str],
    variable: Option<Variable>,
) -> bool {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(checkout).envs(variable);
    command.args(["test", "--no-fail-fast"]).args(args).args(filter).arg("--").args(runner);
    eprintln!("$ cargo test {}", args.join(" "));
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cargo test could not be started: {error}");
            false
        }
    }
}

/// The tests that compare with the tools which users have, by a Python that is made if it is not there.
fn compare_with_python(paths: &Paths, filter: Option<&str>) -> bool {
    let made = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start a runtime: {error}"))
        .and_then(|runtime| {
            runtime.block_on(python::prepare(paths, &Progress::stderr())).map_err(|error| error.to_string())
        });
    match made {
        Ok(python) => {
            let tests = ["--package", "vendue-nvml-sim", "--package", "vendue-gpu-agent", "--test", "python"];
            let variable = ("VENDUE_SIM_PYTHON", python.into_os_string());
            cargo(paths.checkout(), &tests, filter, &["--ignored"], Some(variable))
        }
        Err(error) => {
            eprintln!("verify: {error}");
            false
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let start = Instant::now();
    let filter = args.filter.as_deref();
    let paths = match Paths::from_env() {
        Ok(paths) => paths,
        Err(error) => {
            eprintln!("verify: {error}");
            return ExitCode::FAILURE;
        }
    };
    let cargo =
        |args: &[&str], runner: &[&str], variable| cargo(paths.checkout(), args, filter, runner, variable);
    let mut failed = Vec::new();
    if !args.clusters_only && !cargo(&["--workspace"], &[], None) {
        failed.push("tests without clusters");
    }
    if !args.clusters_only && !compare_with_python(&paths, filter) {
        failed.push("tests with Python's tools");
    }
    let on_clusters = ["--package", "vendue-testbed", "--tests"];
    let keep = args.keep.then(|| ("VENDUE_KEEP", "1".into()));
    if !args.no_clusters && !cargo(&on_clusters, &["--ignored", "--test-threads=1"], keep) {
        failed.push("tests on clusters");
    }
    if args.no_clusters {
        eprintln!("the scenarios on clusters were left out");
    }
    eprintln!("verify took {:.0} s", start.elapsed().as_secs_f64());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("verify failed: {}", failed.join(", "));
    ExitCode::FAILURE
}
