//! The binary `vendue-auction`: reads the command line, sets up logs and TLS, and hands over to the library.

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vendue_auction::args::{Cli, Command, DealArgs, GenerateKeysArgs, LogFormat};
use vendue_auction::courier::{self, CourierConfig};
use vendue_auction::deal::{self, DealOptions};
use vendue_auction::engine::now_ms;
use vendue_auction::keygen::{self, GenerateError};
use vendue_auction::{replay, run, sign_record, verify_record};
use vendue_auction_core::MarketRecord;

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vendue-auction: {error}");
            let generation = error.downcast_ref::<GenerateError>();
            generation.map_or(ExitCode::FAILURE, |error| ExitCode::from(error.exit_code()))
        }
    }
}

fn start(cli: Cli) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&cli.log)?;
    let logs =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match cli.log_format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
    // Two TLS providers are in the graph; the choice is made here, once.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| "a TLS provider was installed before")?;
    match cli.command {
        Command::Deal(args) => deal_keys(args),
        Command::GenerateKeys(args) => generate_keys(&args),
        Command::VerifyRecord(args) => {
            print!("{}", verify_record::run(&args, now_ms())?);
            Ok(())
        }
        Command::SignRecord(args) => {
            let signed = sign_record::run(&args, now_ms())?;
            println!("{}", args.out.display());
            tell(&signed.record);
            Ok(())
        }
        Command::Replay(args) => replay::run(&args).map_err(Failure::from),
        Command::Run(args) => runtime(2)?.block_on(run::run(*args)).map_err(Failure::from),
        Command::Courier(args) => {
            let config = CourierConfig {
                listen: args.listen,
                token_file: args.token_file,
                volume: args.volume,
                ray_logs: args.ray_logs,
            };
            runtime(1)?.block_on(courier::run(config)).map_err(Failure::from)
        }
    }
}

fn runtime(workers: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(8)
        .enable_all()
        .build()
}

fn deal_keys(args: DealArgs) -> Result<(), Failure> {
    let options = DealOptions {
        regions: args.regions,
        market: args.market,
        seats: args.seats,
        homes: args.homes,
        delay_ms: args.delay_ms,
        period_ms: args.period_ms.unwrap_or(6 * args.delay_ms),
        handover_ms: args.handover_ms,
        out: args.out,
    };
    let record = deal::run(&options)?;
    println!("{}", record.display());
    eprintln!("These keys come from one dealer, who could read every bid: for development only.");
    Ok(())
}

fn generate_keys(args: &GenerateKeysArgs) -> Result<(), Failure> {
    let made = runtime(2)?.block_on(keygen::run(args))?;
    println!("{}", made.record.display());
    println!("{}", made.keys.display());
    tell(&made.next);
    Ok(())
}

/// What operators compare, and how much time they have.
fn tell(record: &MarketRecord) {
    eprintln!("Epoch {}, digest {}.", record.epoch, hex::encode(record.digest()));
    if let Some(first) = verify_record::first_round(record, now_ms()) {
        eprintln!("It begins with {first}.");
    }
}
