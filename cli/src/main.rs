//! `kubectl vendue`: logs, outputs, receipts, verify and doctor.
//!
//! Inputs: the command line, the kubeconfig, files. Outputs: text or JSON on standard output, explanations on standard
//! error, and an exit code: 0 done, 1 a check failed, 2 wrong usage, 3 the cluster cannot be reached or forbids it.
//! Invariant: `verify` and `receipts --verify` with files need no cluster and trust nothing but what they are given.

mod args;
mod cluster;
mod dashboards;
mod doctor;
mod error;
mod logs;
mod metrics_text;
mod outputs;
mod receipts;
mod report;
mod terminal;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};
use error::CliError;

fn main() -> ExitCode {
    let args = Args::parse();
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(next) = error.next_step() {
                eprintln!("  next: {next}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: Args) -> Result<ExitCode, CliError> {
    match &args.command {
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Args::command(), "kubectl-vendue", &mut std::io::stdout());
            return Ok(ExitCode::SUCCESS);
        }
        Command::Dashboards { out } => {
            dashboards::write(out)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => {}
    }
    // One TLS provider for the whole process; a second call finds the first and changes nothing.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| CliError::failed(format!("start: {e}")))?.block_on(command(args))
}

async fn command(args: Args) -> Result<ExitCode, CliError> {
    let ok = match args.command {
        Command::Logs(options) => {
            let target = match options.follow {
                true => cluster::Target::connect_to_follow(&args.global, &options.job).await?,
                false => cluster::Target::connect(&args.global, &options.job).await?,
            };
            logs::run(&target, &options, args.global.output).await?;
            true
        }
        Command::Outputs(options) => {
            let target = cluster::Target::connect(&args.global, &options.job).await?;
            outputs::run(&target, &options, args.global.output).await?;
            true
        }
        Command::Receipts(options) => {
            match (&options.verify, &options.job) {
                (Some(file), _) => receipts::run_file(file, args.global.output)?,
                (None, Some(job)) => {
                    let target = cluster::Target::connect(&args.global, job).await?;
                    receipts::run(&target, &options, args.global.output).await?;
                }
                (None, None) => return Err(CliError::Usage("receipts of which JOB?".to_owned())),
            }
            true
        }
        Command::Verify(options) => {
            verify::run(&args.global, &options).await?;
            true
        }
        Command::Doctor(options) => doctor::run(&args.global, &options).await?,
        Command::Completion { .. } | Command::Dashboards { .. } => true,
    };
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
