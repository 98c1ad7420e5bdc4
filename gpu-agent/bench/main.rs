//! The numbers of the GPU agent: `agent-bench [--quick] [--only PART] [--json FILE]`.
//!
//! Starts the real agent on a node that exists only for it (simulated GPUs, an API server, a kubelet) and measures from
//! outside. Exit codes: 0 every target is met, 1 one is not, or something failed, 2 wrong arguments.

mod metering;
// The tests use the rest of it.
#[allow(dead_code)]
mod node;
mod process;
mod report;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

use node::{NodeError, Programs, io, wrong};
use process::Plan;
use report::{Report, say};

/// The parts in the order in which they are measured.
const PARTS: [&str; 4] = ["agent", "large", "metering", "tools"];

/// Measures the GPU agent with simulated GPUs.
#[derive(Debug, Parser)]
#[command(name = "agent-bench", version)]
struct Args {
    /// Write the report as JSON into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A look in seconds instead of minutes: the numbers say little.
    #[arg(long)]
    quick: bool,
    /// One part: agent (8 GPUs), large (64), metering (virtual time), tools (compared with Python's).
    #[arg(long, value_parser = PARTS)]
    only: Option<String>,
    /// The agent; default is the one that cargo builds beside this program.
    #[arg(long, value_name = "FILE", requires = "library")]
    agent: Option<PathBuf>,
    /// The simulated NVML library; default is the one that cargo builds beside this program.
    #[arg(long, value_name = "FILE", requires = "agent")]
    library: Option<PathBuf>,
}

impl Args {
    fn plan(&self) -> (Plan, u64) {
        if self.quick {
            (Plan { starts: 1, seconds: 3, scrapes: 50, xids: 2 }, 200)
        } else {
            (Plan { starts: 5, seconds: 30, scrapes: 2_000, xids: 8 }, 600)
        }
    }
}

/// The programs that were named, or those that cargo builds: started by cargo, this program knows how.
fn programs(args: &Args) -> Result<Programs, NodeError> {
    if let (Some(agent), Some(library)) = (args.agent.clone(), args.library.clone()) {
        return Ok(Programs { agent, library });
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        // Handed on, what describes this program makes build scripts believe that something has changed.
        let kinds = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        for (name, _) in std::env::vars() {
            if kinds.iter().any(|kind| name.starts_with(kind)) {
                build.env_remove(name);
            }
        }
        build.args(["build", "--quiet", "-p", "vendue-gpu-agent", "-p", "vendue-nvml-sim"]);
        build.args(["--bin", "vendue-gpu-agent", "--lib"]);
        build.args((!cfg!(debug_assertions)).then_some("--release"));
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        eprintln!("building the agent and the simulated library");
        let status = build.status().map_err(io("run cargo build"))?;
        if !status.success() {
            return Err(wrong("cargo build")(status));
        }
    }
    let own = std::env::current_exe().map_err(io("find this program"))?;
    let beside = own.parent().unwrap_or(Path::new("."));
    let programs =
        Programs { agent: beside.join("vendue-gpu-agent"), library: beside.join("libvendue_nvml_sim.so") };
    for file in [&programs.agent, &programs.library] {
        if !file.exists() {
            let hint = "is missing: run this with `cargo run`, or name --agent and --library";
            return Err(wrong(file.display().to_string())(hint));
        }
    }
    Ok(programs)
}

fn compare_tools(programs: &Programs, report: &mut Report) -> Result<(), NodeError> {
    let python = match tools::python() {
        Ok(python) => python,
        Err(why) => {
            report.tools_missing = Some(why);
            return Ok(());
        }
    };
    say("values of Python's tools");
    let pairs = tools::compare(programs, &python)?;
    let differ: Vec<_> = pairs.iter().filter(|pair| !pair.agrees()).collect();
    for pair in &differ {
        eprintln!("{}: theirs {}, ours {}", pair.what, pair.theirs, pair.ours);
    }
    report.key("values_that_differ_from_python_tools", differ.len() as f64);
    report.detail("tools: values compared", pairs.len() as f64);
    Ok(())
}

fn measure(args: &Args, parts: &[&str]) -> Result<Report, NodeError> {
    let programs = programs(args)?;
    let ((plan, seconds), mut report) = (args.plan(), Report::default());
    for part in parts {
        match *part {
            "agent" => process::eight(&programs, &plan, &mut report)?,
            "large" => process::sixty_four(&programs, &plan, &mut report)?,
            "metering" => metering::measure(&programs, seconds, &mut report)?,
            _ => compare_tools(&programs, &mut report)?,
        }
    }
    Ok(report)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let parts: Vec<&str> =
        PARTS.into_iter().filter(|part| args.only.as_deref().is_none_or(|only| only == *part)).collect();
    let written = measure(&args, &parts).and_then(|report| {
        let json = report.json(&parts, args.quick);
        if let Some(file) = &args.json {
            std::fs::write(file, format!("{json:#}\n")).map_err(io(format!("write {}", file.display())))?;
        }
        print!("{}", report.table(&parts));
        Ok(report.judged(&parts).iter().all(|(_, measured)| measured.met))
    });
    match written {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("agent-bench: not every target is met");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("agent-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
