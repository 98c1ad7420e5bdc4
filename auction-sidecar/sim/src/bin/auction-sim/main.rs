//! Simulates the auction under faults, for as long as wanted: sweeps over schedules, replays of one, and the rate.
//!
//! Inputs: arguments, schedule files. Outputs: a report on standard output and as JSON; where an invariant does not hold,
//! a schedule file that shows it and exit code 1.

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use vendue_auction_core::KeyError;
use vendue_auction_sim::keys::{Keys, MockKeys, RealKeys};
use vendue_auction_sim::sweep::{Plan, Tally, sweep};
use vendue_auction_sim::{Schedule, explore};
use vendue_market::encode::to_hex;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Simulates the auction protocol under faults and checks its invariants")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs schedules until so many rounds are simulated.
    Sweep(SweepArgs),
    /// Runs one schedule from its file.
    Replay(ReplayArgs),
    /// Measures what partial bundles cost: hops, waiting, views, messages.
    Costs {
        /// Number of seats.
        #[arg(long, default_value_t = 4)]
        seats: u16,
        /// Rounds to simulate for each way and delay.
        #[arg(long, default_value_t = 500)]
        rounds: u64,
        /// Where the result goes as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
    },
    /// Explores all runs of one round of four seats, one of them faulty, within bounds.
    Explore(ExploreArgs),
}

#[derive(Args)]
struct SweepArgs {
    /// Number of seats.
    #[arg(long, default_value_t = 4)]
    seats: u16,
    /// Rounds to simulate.
    #[arg(long, default_value_t = 10_000)]
    rounds: u64,
    /// Seed of the first schedule.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One faulty seat more than the market tolerates.
    #[arg(long)]
    beyond: bool,
    /// With the real cryptography.
    #[arg(long)]
    real: bool,
    /// Where the result goes as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder for schedules that fail.
    #[arg(long, default_value = ".")]
    failures: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Conduct {
    /// Nothing.
    Silent,
    /// Bundles, votes, commits, NEWVIEWs and proposals.
    Votes,
    /// Also SETs, and votes for nothing.
    Anything,
}

fn broken_rule(text: &str) -> Result<(explore::Broken, String), String> {
    use explore::Broken::{
        AdmitsTwice, AdmitsWhatOneLists, AdmitsWhatQuorumLists, AwardsOfItsOwn, IgnoresLock,
        LocksWithoutQuorum, NeverLocks, OpensBeforeCommit,
    };
    let rules = [
        AdmitsTwice,
        AdmitsWhatOneLists,
        AdmitsWhatQuorumLists,
        AwardsOfItsOwn,
        IgnoresLock,
        LocksWithoutQuorum,
        NeverLocks,
        OpensBeforeCommit,
    ];
    let (name, invariant) = text.split_once('=').ok_or("expected RULE=INVARIANT")?;
    let rule = rules.into_iter().find(|rule| format!("{rule:?}") == name);
    rule.map(|rule| (rule, invariant.into())).ok_or_else(|| format!("the rules are {rules:?}"))
}

impl From<Conduct> for explore::Conduct {
    fn from(conduct: Conduct) -> Self {
        match conduct {
            Conduct::Silent => explore::Conduct::Silent,
            Conduct::Votes => explore::Conduct::Votes,
            Conduct::Anything => explore::Conduct::Anything,
        }
    }
}

#[derive(Args)]
struct ExploreArgs {
    /// Views after view 0, at most 2.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=2))]
    views: u8,
    /// Messages between honest seats that are late or lost, at most.
    #[arg(long, default_value_t = 0)]
    deviations: u8,
    /// What the faulty seat does.
    #[arg(long, value_enum, default_value = "votes")]
    faulty: Conduct,
    /// Explores seats that all break this rule, until an invariant does not hold: `NeverLocks=I9`.
    #[arg(long = "break", value_parser = broken_rule)]
    broken: Option<(explore::Broken, String)>,
    /// Only SETs are late or lost.
    #[arg(long)]
    only_sets: bool,
    /// Versions of the faulty seat's bundle.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    versions: u8,
    /// Stops after so many states.
    #[arg(long, default_value_t = 100_000_000)]
    states: u64,
    /// Takes up to four messages that reach a seat in one phase in every order.
    #[arg(long)]
    every_order: bool,
    /// Where the result goes as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct ReplayArgs {
    /// The schedule.
    file: PathBuf,
    /// With the real cryptography.
    #[arg(long)]
    real: bool,
    /// Judges it as one with more faulty seats than the market tolerates.
    #[arg(long)]
    beyond: bool,
}

/// Why the program ends without a result.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("keys: {0}")]
    Keys(#[from] KeyError),
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error("{0} is no schedule: {1}")]
    Schedule(PathBuf, serde_json::Error),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Sweep(args) if args.real => run_sweep::<RealKeys>(&args),
        Command::Sweep(args) => run_sweep::<MockKeys>(&args),
        Command::Replay(args) if args.real => replay::<RealKeys>(&args),
        Command::Replay(args) => replay::<MockKeys>(&args),
        Command::Costs { seats, rounds, json } => costs(seats, rounds, json.as_ref()),
        Command::Explore(args) => run_explore(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("auction-sim: {error}");
            ExitCode::from(2)
        }
    }
}

fn write(path: Option<&PathBuf>, value: &serde_json::Value) -> Result<(), Error> {
    let text = format!("{value:#}\n");
    print!("{text}");
    match path {
        Some(path) => std::fs::write(path, text).map_err(|e| Error::File(path.clone(), e)),
        None => Ok(()),
    }
}

/// Says how far it is, every two seconds.
struct Progress {
    started: Instant,
    said: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { started: Instant::now(), said: Instant::now() }
    }
    fn is_due(&mut self) -> bool {
        let due = self.said.elapsed() >= Duration::from_secs(2);
        if due {
            self.said = Instant::now();
        }
        due
    }
    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

fn run_sweep<K: Keys>(args: &SweepArgs) -> Result<bool, Error> {
    let plan = Plan { seats: args.seats, rounds: args.rounds, seed: args.seed, beyond: args.beyond };
    let mut progress = Progress::new();
    let tally = sweep::<K>(&plan, |tally| {
        if progress.is_due() {
            let (rounds, all, bad) = (tally.rounds, plan.rounds, tally.failures.len());
            let rate = progress.rate(rounds);
            eprintln!("{rounds} of {all} rounds, {rate:.0} per second, {bad} schedules with violations");
        }
    })?;
    let mut files = vec![];
    for failure in &tally.failures {
        let small = failure.shrunk::<K>(&plan);
        let path = args.failures.join(format!("schedule-{}-{}.json", args.seats, small.seed));
        std::fs::write(&path, small.to_json()).map_err(|e| Error::File(path.clone(), e))?;
        eprintln!("{:?}: replay with {}", failure.violations, path.display());
        files.push(path.display().to_string());
    }
    write(args.json.as_ref(), &as_json(args, &tally, &progress, &files))?;
    Ok(tally.failures.is_empty())
}

fn as_json(args: &SweepArgs, tally: &Tally, progress: &Progress, files: &[String]) -> serde_json::Value {
    let all = |f: &vendue_auction_sim::sweep::Failure| f.violations.len();
    json!({
        "seats": args.seats,
        "seed": args.seed,
        "beyond_f": args.beyond,
        "crypto": if args.real { "real" } else { "mock" },
        "schedules": tally.schedules,
        "schedules_with_one_behaviour": tally.alone,
        "rounds": tally.rounds,
        "rounds_certified": tally.certified,
        "orders_handed_over": tally.handed_over,
        "messages": tally.messages,
        "new_views": tally.new_views,
        "faults_proven": tally.proven,
        "restarts": tally.restarts,
        "split_schedules": tally.split_at,
        "split_rounds_by_proven_culprits": tally.splits,
        "invariants_broken_beyond_f": tally.beyond,
        "violations": tally.failures.iter().map(all).sum::<usize>(),
        "failing_schedules": files,
        "seconds": progress.started.elapsed().as_secs_f64(),
        "rounds_per_s": progress.rate(tally.rounds),
        "trace": to_hex(&tally.trace),
    })
}

fn replay<K: Keys>(args: &ReplayArgs) -> Result<bool, Error> {
    let text = std::fs::read_to_string(&args.file).map_err(|e| Error::File(args.file.clone(), e))?;
    let schedule = Schedule::from_json(&text).map_err(|e| Error::Schedule(args.file.clone(), e))?;
    let plan = Plan { seats: schedule.seats, rounds: 0, seed: schedule.seed, beyond: args.beyond };
    let (report, violations) = plan.judge::<K>(&schedule)?;
    for violation in &violations {
        println!("{} at {} ms: {}", violation.invariant, violation.at, violation.what);
    }
    println!(
        "{} rounds, {} certified, {} orders handed over, {} violations, trace {}",
        report.rounds,
        report.certified.len(),
        report.handed_over,
        violations.len(),
        to_hex(&report.trace)
    );
    Ok(violations.is_empty())
}

fn costs(seats: u16, rounds: u64, path: Option<&PathBuf>) -> Result<bool, Error> {
    let costs = vendue_auction_sim::costs::costs::<MockKeys>(seats, rounds)?;
    write(path, &json!({ "seats": seats, "crypto": "mock", "costs": costs }))?;
    Ok(true)
}

fn run_explore(args: &ExploreArgs) -> Result<bool, Error> {
    let mut progress = Progress::new();
    let bounds = explore::Bounds {
        views: args.views,
        deviations: args.deviations,
        only: args.only_sets.then_some(vendue_auction_core::wire::Kind::Set),
        conduct: args.faulty.into(),
        versions: args.versions,
        states: args.states,
        every_order: args.every_order,
    };
    let report = |found: &explore::Found| {
        if progress.is_due() {
            let (states, depth) = (found.states, found.depth);
            eprintln!("{states} states, {} of one seat, depth {depth}", found.local_states);
        }
    };
    let found = match &args.broken {
        Some((rule, invariant)) => explore::explore_broken(&bounds, *rule, invariant)?,
        None => explore::explore(&bounds, report)?,
    };
    let value = json!({
        "views": args.views,
        "deviations": args.deviations,
        "faulty": format!("{:?}", args.faulty).to_lowercase(),
        "versions": args.versions,
        "complete": found.complete,
        "states": found.states,
        "transitions": found.transitions,
        "states_of_a_seat": found.local_states,
        "transitions_compared": found.compared,
        "orders_that_matter": found.ordered,
        "phases": found.depth,
        "states_with_commit_everywhere": found.committed,
        "last_states_without": found.undecided,
        "violations": found.violations,
        "seconds": progress.started.elapsed().as_secs_f64(),
    });
    write(args.json.as_ref(), &value)?;
    Ok(found.violations.is_empty() && found.complete)
}
