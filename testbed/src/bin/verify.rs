//! `cargo verify`: every test. First those that need no cluster, then those that compare with Python's tools, then the
//! scenarios on real clusters.
//!
//! Inputs: the checkout. Outputs: the closing lines of the test runners, and their exit status. Invariant: a step that
//! cannot be run is a failure, never skipped.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
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

type Variable<'a> = (&'a str, &'a OsStr);

fn cargo(
    checkout: &Path,
    args: &[&str],
    filter: Option<&str>,
    runner: &[&str],
    variable: Option<Variable<'_>>,
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

/// The interpreter that the tests with Python's tools run, made if it is not there.
fn interpreter(paths: &Paths) -> Result<PathBuf, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(python::prepare(paths, &Progress::stderr()))?)
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
    let with_python = ["--package", "vendue-nvml-sim", "--package", "vendue-gpu-agent", "--test", "python"];
    if !args.clusters_only {
        let agree = match interpreter(&paths) {
            Ok(python) => {
                let python = ("VENDUE_SIM_PYTHON", python.as_os_str());
                cargo(&with_python, &["--ignored"], Some(python))
            }
            Err(error) => {
                eprintln!("verify: {error}");
                false
            }
        };
        if !agree {
            failed.push("tests with Python's tools");
        }
    }
    let on_clusters = ["--package", "vendue-testbed", "--tests"];
    let keep: Option<Variable<'_>> = args.keep.then_some(("VENDUE_KEEP", OsStr::new("1")));
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
