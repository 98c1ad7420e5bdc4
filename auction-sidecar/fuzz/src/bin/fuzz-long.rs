//! Runs every target on changed inputs for as many executions as one wants, on one core.
//!
//! Inputs: a number of executions and a seed. Outputs: progress, and counts and times as JSON; for each target that
//! fails the input in hex, and exit status 1. Cheap targets get most of the executions.

use clap::Parser;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use vendue_auction_fuzz::Target;
use vendue_auction_fuzz::drive::{Campaign, Failure};

/// Fuzzes every decoder with inputs that are changed from those of simulated rounds.
#[derive(Parser)]
struct Args {
    /// Executions in all; each target runs at least once.
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Seed of all changes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only targets whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Runs this input, in hex, on the targets and nothing else.
    #[arg(long)]
    input: Option<String>,
    /// File for the report.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct TargetReport {
    executions: u64,
    accepted: u64,
    seconds: f64,
    executions_per_s: f64,
    slowest_ms: f64,
    most_bytes_allocated_per_byte_read: u64,
}

#[derive(Serialize)]
struct Report {
    commit: String,
    hardware: String,
    seed: u64,
    executions: u64,
    seconds: f64,
    failures: Vec<String>,
    targets: BTreeMap<&'static str, TargetReport>,
}

/// Executions that are done of one target before progress is looked at.
const STEP: u64 = 50_000;

fn main() -> ExitCode {
    let args = Args::parse();
    let targets: Vec<Target> =
        vendue_auction_fuzz::all().filter(|t| t.name.contains(args.only.as_str())).collect();
    if let Some(input) = &args.input {
        return run_input(&targets, input);
    }
    let weights: u64 = targets.iter().map(|t| t.cost.weight()).sum();
    let start = Instant::now();
    let mut report = Report {
        commit: said_by("git", &["rev-parse", "HEAD"]),
        hardware: hardware(),
        seed: args.seed,
        executions: 0,
        seconds: 0.0,
        failures: vec![],
        targets: BTreeMap::new(),
    };
    for target in targets {
        let share = u128::from(args.executions) * u128::from(target.cost.weight());
        let executions = u64::try_from(share.div_ceil(u128::from(weights.max(1)))).unwrap_or(u64::MAX);
        let (done, failure) = run(target, args.seed, executions);
        report.executions += done.executions;
        report.seconds = start.elapsed().as_secs_f64();
        println!(
            "{:>24}: {:>9} executions, {:>8} accepted, {:>9.0}/s, slowest {:.1} ms; {} in all after {:.0} s",
            target.name,
            done.executions,
            done.accepted,
            done.executions_per_s,
            done.slowest_ms,
            report.executions,
            report.seconds
        );
        report.targets.insert(target.name, done);
        if let Some(Failure { target, input, message }) = failure {
            let text = format!("{target} fails on {}: {message}", hex::encode(input));
            eprintln!("{text}");
            report.failures.push(text);
        }
    }
    finish(&report, args.json)
}

/// Runs one target to the end or to its first failure; the others go on.
fn run(target: Target, seed: u64, executions: u64) -> (TargetReport, Option<Failure>) {
    let mut campaign = Campaign::new(target, seed);
    let (start, mut shown) = (Instant::now(), Instant::now());
    let mut failure = campaign.replay().err();
    while failure.is_none() && campaign.tally.executions < executions {
        failure = campaign.run(STEP.min(executions - campaign.tally.executions)).err();
        if shown.elapsed() > Duration::from_secs(10) {
            shown = Instant::now();
            eprintln!("{}: {} of {executions}", target.name, campaign.tally.executions);
        }
    }
    let (tally, seconds) = (&campaign.tally, start.elapsed().as_secs_f64());
    let report = TargetReport {
        executions: tally.executions,
        accepted: tally.accepted,
        seconds,
        executions_per_s: tally.executions as f64 / seconds.max(1e-9),
        slowest_ms: tally.slowest.as_secs_f64() * 1e3,
        most_bytes_allocated_per_byte_read: tally.most_per_byte,
    };
    (report, failure)
}

fn run_input(targets: &[Target], input: &str) -> ExitCode {
    let Ok(bytes) = hex::decode(input) else {
        eprintln!("--input is not hex");
        return ExitCode::from(2);
    };
    for target in targets {
        println!("{}: accepted {}", target.name, (target.run)(&bytes));
    }
    ExitCode::SUCCESS
}

fn finish(report: &Report, json: Option<PathBuf>) -> ExitCode {
    println!("{} executions in {:.0} s, {} targets", report.executions, report.seconds, report.targets.len());
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(report).unwrap_or_default();
        if let Err(error) = std::fs::write(&file, text) {
            eprintln!("writing {}: {error}", file.display());
            return ExitCode::from(2);
        }
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn said_by(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success());
    output.map_or_else(|| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

fn hardware() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map(|(_, m)| m);
    format!("{}, one core", model.unwrap_or("unknown processor"))
}
