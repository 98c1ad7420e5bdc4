//! `cargo verify`: every test. First those that need no cluster, then the scenarios on real clusters.
//!
//! Inputs: the checkout. Outputs: the closing lines of the test runners, and their exit status. Invariant: a step that
//! cannot be run is a failure, never skipped.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use vendue_testbed::paths::Paths;

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

fn cargo(checkout: &Path, args: &[&str], filter: Option<&str>, runner: &[&str], keep: bool) -> bool {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(checkout);
    command.args(["test", "--no-fail-fast"]).args(args).args(filter).arg("--").args(runner);
    if keep {
        command.env("VENDUE_KEEP", "1");
    }
    eprintln!("$ cargo test {}", args.join(" "));
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("cargo test could not be started: {error}");
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
    let cargo = |args: &[&str], runner: &[&str], keep| cargo(paths.checkout(), args, filter, runner, keep);
    let mut failed = Vec::new();
    if !args.clusters_only && !cargo(&["--workspace"], &[], false) {
        failed.push("tests without clusters");
    }
    let on_clusters = ["--package", "vendue-testbed", "--tests"];
    if !args.no_clusters && !cargo(&on_clusters, &["--ignored", "--test-threads=1"], args.keep) {
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
