//! The numbers of the auction, as JSON: `auction-bench [--quick] [--only PART] [--json FILE]`.

use serde_json::{Value, json};
use std::error::Error;
use std::process::Command;
use vendue_auction_sim::bench::{Plan, run};

/// What the command line asks for.
#[derive(Debug, Default)]
struct Args {
    quick: bool,
    only: Option<String>,
    json: Option<String>,
}

fn args(mut given: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args::default();
    while let Some(arg) = given.next() {
        match arg.as_str() {
            "--quick" => args.quick = true,
            "--only" => args.only = Some(given.next().ok_or("--only needs the name of a part")?),
            "--json" => args.json = Some(given.next().ok_or("--json needs a file")?),
            other => {
                return Err(format!("{other}: usage: auction-bench [--quick] [--only PART] [--json FILE]"));
            }
        }
    }
    Ok(args)
}

/// The first value of a field of /proc/cpuinfo or /proc/meminfo.
fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// The machine and the program.
fn circumstances(quick: bool) -> Value {
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_else(|| "unknown".into());
    let changed = git(&["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
    json!({
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "memory": field("/proc/meminfo", "MemTotal"),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
        "load": std::fs::read_to_string("/proc/loadavg").ok().map(|text| text.trim().to_owned()),
        "commit": commit,
        "changed_since_commit": changed,
        "optimised": !cfg!(debug_assertions),
        "quick": quick,
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = args(std::env::args().skip(1))?;
    let plan = if args.quick { Plan::quick() } else { Plan::full() };
    let report = run(&plan, args.only.as_deref(), |part| eprintln!("measuring: {part}"))?;
    let mut out = serde_json::to_value(&report)?;
    if let Some(map) = out.as_object_mut() {
        map.insert("measured_on".into(), circumstances(args.quick));
    }
    let text = serde_json::to_string_pretty(&out)? + "\n";
    match args.json {
        Some(file) => std::fs::write(file, text)?,
        None => print!("{text}"),
    }
    for (key, value) in &report.keys {
        eprintln!("{key:55} {value:.2}");
    }
    Ok(())
}
