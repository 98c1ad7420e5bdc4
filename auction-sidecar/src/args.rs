//! The command line. Each option of `run` and `courier` has an environment variable of the same name.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use libp2p::Multiaddr;

use crate::times::{parse_duration, parse_time};

/// The cluster's peer in a Vendue market.
#[derive(Parser, Debug)]
#[command(name = "vendue-auction", version, max_term_width = 110)]
pub struct Cli {
    /// What to log: a level, or a filter such as "info,vendue_auction=debug".
    #[arg(
        long,
        env = "VENDUE_LOG",
        default_value = "info,libp2p=warn,quinn=warn,kube_runtime=warn",
        global = true
    )]
    pub log: String,
    /// How to log.
    #[arg(long, env = "VENDUE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Form of the log.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs, one object per line.
    Json,
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Runs the cluster's peer.
    Run(Box<RunArgs>),
    /// Makes keys and the record of a market for development: whoever runs this could read every bid.
    Deal(DealArgs),
    /// Makes the keys of the market's next epoch together with the other seats, so that nobody ever has the seal key. Every
    /// seat runs this with the same --start; it ends when all have their keys.
    #[command(after_help = GENERATE_KEYS_HELP)]
    GenerateKeys(Box<GenerateKeysArgs>),
    /// Serves the log and the outputs of one award, beside its Ray head.
    Courier(CourierArgs),
    /// Replays a round from a seat's log: says why each order went where it did, and whether the seat signed what follows.
    Replay(ReplayArgs),
    /// Checks a market record: signature, numbers and keys, and whether it follows another one; prints its digest.
    VerifyRecord(VerifyRecordArgs),
    /// Signs the record of the next epoch as the market's issuer, once it is checked against the one before.
    SignRecord(SignRecordArgs),
}

/// Which sides a cluster has.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Places orders.
    Home,
    /// Holds a seat.
    Provider,
    /// Does both.
    Both,
}

impl Profile {
    /// Whether it places orders.
    pub fn is_home(self) -> bool {
        matches!(self, Self::Home | Self::Both)
    }

    /// Whether it holds a seat.
    pub fn is_provider(self) -> bool {
        matches!(self, Self::Provider | Self::Both)
    }
}

/// Options of `run`.
#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    /// Which sides this cluster has.
    #[arg(long, env = "VENDUE_PROFILE", value_enum)]
    pub profile: Profile,
    /// Namespace of this process; Bids are written here.
    #[arg(long, env = "VENDUE_NAMESPACE", default_value = "vendue-system")]
    pub namespace: String,
    /// Name of this Pod, for Events.
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,
    /// The market record.
    #[arg(long, env = "VENDUE_MARKET_RECORD", default_value = "/etc/vendue/market/market.json")]
    pub market_record: PathBuf,
    /// This cluster's keys.
    #[arg(long, env = "VENDUE_KEYS", default_value = "/etc/vendue/keys/keys.json")]
    pub keys: PathBuf,
    /// Where peers connect.
    #[arg(long, env = "VENDUE_P2P_LISTEN", default_value = "/ip4/0.0.0.0/udp/4470/quic-v1")]
    pub p2p_listen: Multiaddr,
    /// Health and metrics.
    #[arg(long, env = "VENDUE_LISTEN", default_value = "0.0.0.0:9472")]
    pub listen: SocketAddr,
    /// The aggregated API; a home without it serves no logs and outputs.
    #[arg(long, env = "VENDUE_STREAM_LISTEN")]
    pub stream_listen: Option<SocketAddr>,
    /// Folder with tls.crt and tls.key of the aggregated API.
    #[arg(long, env = "VENDUE_STREAM_TLS", default_value = "/etc/vendue/tls")]
    pub stream_tls: PathBuf,
    /// Folder of outputs and logs.
    #[arg(long, env = "VENDUE_STORE", default_value = "/var/lib/vendue/store")]
    pub store: PathBuf,
    /// Most MiB in it.
    #[arg(long, env = "VENDUE_STORE_MAX_MIB", default_value_t = 4096)]
    pub store_max_mib: u64,
    /// How long outputs are kept.
    #[arg(long, env = "VENDUE_STORE_RETENTION_SECONDS", default_value_t = 14 * 86_400)]
    pub store_retention_seconds: u64,
    /// Receipts of the agents on the GPUs' nodes.
    #[command(flatten)]
    pub receipts: ReceiptsArgs,
    /// The next epoch, while the market goes over to it.
    #[command(flatten)]
    pub next: NextArgs,
    /// The seat's log.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where receipts come from and how many are kept.
#[derive(Args, Debug, Clone)]
pub struct ReceiptsArgs {
    /// Seat: where the controller serves receipts, https. Without it homes are told that there are none.
    #[arg(long, env = "VENDUE_RECEIPTS_URL", requires_all = ["receipts_ca", "receipts_token"])]
    pub receipts_url: Option<String>,
    /// Seat: file with the authority of the controller's certificate.
    #[arg(long, env = "VENDUE_RECEIPTS_CA")]
    pub receipts_ca: Option<PathBuf>,
    /// Seat: file with the token by which the controller knows this process.
    #[arg(long, env = "VENDUE_RECEIPTS_TOKEN")]
    pub receipts_token: Option<PathBuf>,
    /// Home: most MiB of receipts, which are in the folder receipts of the store.
    #[arg(long, env = "VENDUE_RECEIPTS_MAX_MIB", default_value_t = 512)]
    pub receipts_max_mib: u64,
}

/// The next epoch. Give it well before its first round and until the rounds of the old one have expired; after that its
/// record and keys are the market record and the keys, and the old keys are deleted.
#[derive(Args, Debug, Clone)]
pub struct NextArgs {
    /// The market record of the next epoch, signed by the same issuer.
    #[arg(long, env = "VENDUE_NEXT_MARKET_RECORD")]
    pub next_market_record: Option<PathBuf>,
    /// This cluster's keys with its seat's share in the next epoch. A home without a seat needs none.
    #[arg(long, env = "VENDUE_NEXT_KEYS", requires = "next_market_record")]
    pub next_keys: Option<PathBuf>,
}

/// How the seat's log is kept.
#[derive(Args, Debug, Clone)]
pub struct LogArgs {
    /// Folder of the seat's durable log. Without one a seat that restarts observes until all rounds begun before have
    /// expired.
    #[arg(long, env = "VENDUE_LOG_DIR")]
    pub log_dir: Option<PathBuf>,
    /// Generation of the lease under which this process may append; a log with a higher one is refused. Without it each
    /// start takes the next one.
    #[arg(long, env = "VENDUE_LOG_GENERATION")]
    pub log_generation: Option<u64>,
    /// Log received messages too, so that rounds can be replayed.
    #[arg(long, env = "VENDUE_LOG_RECEIVED")]
    pub log_received: bool,
    /// How long rounds that are over stay in the log.
    #[arg(long, env = "VENDUE_LOG_RETAIN_SECONDS", default_value_t = 0)]
    pub log_retain_seconds: u64,
    /// A log that is longer than so many MiB keeps only what a restart needs.
    #[arg(long, env = "VENDUE_LOG_MAX_MIB", default_value_t = 256)]
    pub log_max_mib: u64,
}

/// Options of `deal`.
#[derive(Args, Debug, Clone)]
pub struct DealArgs {
    /// Name of the market.
    #[arg(long)]
    pub market: String,
    /// A seat: NAME=MULTIADDR, for example alpha=/ip4/10.77.2.2/udp/30470/quic-v1. Repeat for each.
    #[arg(long = "seat", value_parser = parse_seat, required = true)]
    pub seats: Vec<(String, Multiaddr)>,
    /// A home by name. Repeat for each.
    #[arg(long = "home")]
    pub homes: Vec<String>,
    /// Where a seat's cluster is: NAME=REGION, for example alpha=eu-north. Jobs may name the regions that they accept.
    /// Repeat for each seat that has one.
    #[arg(long = "region", value_parser = parse_region)]
    pub regions: Vec<(String, String)>,
    /// D, the bound on the one-way delay, in milliseconds.
    #[arg(long, default_value_t = 125)]
    pub delay_ms: u64,
    /// Time from one round to the next in milliseconds; six times D when not given.
    #[arg(long)]
    pub period_ms: Option<u64>,
    /// Time for the hand-over after voting has stopped, in milliseconds.
    #[arg(long, default_value_t = 5_000)]
    pub handover_ms: u64,
    /// Folder to write to.
    #[arg(long)]
    pub out: PathBuf,
}

fn parse_seat(text: &str) -> Result<(String, Multiaddr), String> {
    let (name, address) = text.split_once('=').ok_or("accepted: NAME=MULTIADDR")?;
    let address = address.parse().map_err(|e| format!("{address:?} is no multiaddr: {e}"))?;
    Ok((name.to_owned(), address))
}

fn parse_region(text: &str) -> Result<(String, String), String> {
    let (name, region) = text.split_once('=').ok_or("accepted: NAME=REGION")?;
    if !vendue_market::is_region(region) {
        return Err(format!("{region:?} is no region; accepted: 1 to 63 of a-z, 0-9 and '-'"));
    }
    Ok((name.to_owned(), region.to_owned()))
}

/// What operators must know beside the options of `generate-keys`.
const GENERATE_KEYS_HELP: &str = "\
It writes keys.json (this cluster's keys with the new share) and next-record.json (the record of the next epoch, the same \
from every seat, which anybody checks with verify-record --previous and the market's issuer signs with sign-record). A process that was stopped \
goes on when it is started again with the same options.

Exit status: 0 when both are written; 3 when the seats made no key and a new --start is to be agreed on; 4 when there is a key \
but this seat has no share of it; 1 for every other error.";

/// Options of `generate-keys`.
#[derive(Args, Debug, Clone)]
pub struct GenerateKeysArgs {
    /// The market record of the present epoch.
    #[arg(long, env = "VENDUE_MARKET_RECORD", default_value = "/etc/vendue/market/market.json")]
    pub market_record: PathBuf,
    /// This cluster's keys, those of its seat included.
    #[arg(long, env = "VENDUE_KEYS", default_value = "/etc/vendue/keys/keys.json")]
    pub keys: PathBuf,
    /// When the seats begin, as RFC 3339, for example 2027-01-31T12:00:00Z. All operators agree on it beforehand, give the same
    /// time, and start the command before it; clocks must be right within the market's delay bound.
    #[arg(long, value_parser = parse_time, value_name = "TIME")]
    pub start: u64,
    /// Time from --start to the first round with the new keys, for example 1h; at least 2m. All operators give the same. Keys are
    /// made in its first half; the other half is left to sign the record and to bring it and the keys to every cluster.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION", default_value = "1h")]
    pub notice: u64,
    /// Where the other seats connect to this one. A running seat keeps its own address, so this is another port.
    #[arg(long, env = "VENDUE_P2P_LISTEN", default_value = "/ip4/0.0.0.0/udp/4470/quic-v1")]
    pub p2p_listen: Multiaddr,
    /// Where the generate-keys of a seat is reached: NAME=MULTIADDR, with another port than in the market record, where its running seat
    /// listens. Every other seat must be named; this one may be.
    #[arg(long = "seat", value_parser = parse_seat, value_name = "NAME=MULTIADDR")]
    pub seats: Vec<(String, Multiaddr)>,
    /// How long to stay for seats that are late, when this one has its keys and not all others do.
    #[arg(long, default_value_t = 600)]
    pub stay_seconds: u64,
    /// Folder to write to, with the secrets of the generation while it goes on. On a disk that outlives the process.
    #[arg(long)]
    pub out: PathBuf,
    /// Folder for a file that names --out, so that a second --out of the same seat and start is refused; that of --keys when not given.
    #[arg(long, value_name = "DIR")]
    pub marker_dir: Option<PathBuf>,
}

/// Options of `courier`.
#[derive(Args, Debug, Clone)]
pub struct CourierArgs {
    /// Where to serve.
    #[arg(long, env = "VENDUE_COURIER_LISTEN", default_value = "0.0.0.0:8466")]
    pub listen: SocketAddr,
    /// File with the token.
    #[arg(long, env = "VENDUE_COURIER_TOKEN_FILE", default_value = "/etc/vendue/tokens/courier")]
    pub token_file: PathBuf,
    /// Mount of the award's volume.
    #[arg(long, env = "VENDUE_COURIER_VOLUME", default_value = "/vendue")]
    pub volume: PathBuf,
    /// Ray's folder.
    #[arg(long, env = "VENDUE_COURIER_RAY_LOGS", default_value = "/tmp/ray")]
    pub ray_logs: PathBuf,
}

/// Form of what `replay` prints.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayForm {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Options of `replay`.
#[derive(Args, Debug, Clone)]
pub struct ReplayArgs {
    /// The folder of a log (--log-dir of a process that ran with --log-received), or one file of it.
    pub log: PathBuf,
    /// The round; every one in the log when not given.
    #[arg(long)]
    pub round: Option<u64>,
    /// The seat whose log it is.
    #[arg(long)]
    pub seat: u16,
    /// The market record. Repeat for each epoch that the log spans: rounds of an epoch without one are skipped.
    #[arg(long, env = "VENDUE_MARKET_RECORD", default_value = "/etc/vendue/market/market.json")]
    pub market_record: Vec<PathBuf>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = ReplayForm::Text)]
    pub output: ReplayForm,
    /// Write the records of what was replayed to this file, to be replayed elsewhere.
    #[arg(long)]
    pub export: Option<PathBuf>,
}

/// Options of `verify-record`.
#[derive(Args, Debug, Clone)]
pub struct VerifyRecordArgs {
    /// The record; with --previous one that is not signed yet too.
    pub record: PathBuf,
    /// The record of the epoch before: also checks that a quorum of its seats certified the keys, and that nothing else differs.
    #[arg(long)]
    pub previous: Option<PathBuf>,
}

/// Options of `sign-record`.
#[derive(Args, Debug, Clone)]
pub struct SignRecordArgs {
    /// The record, as generate-keys wrote it.
    pub record: PathBuf,
    /// The record of the epoch before, signed by the same issuer.
    #[arg(long)]
    pub previous: PathBuf,
    /// The issuer's key, as deal wrote it to issuer.json.
    #[arg(long)]
    pub issuer: PathBuf,
    /// The record is refused if its first round is nearer than this, for example 10m: a quarter of the agreed notice when not given. 0s
    /// takes whatever is left.
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    pub time_left: Option<u64>,
    /// A record that was signed before, so that no second one is signed of its epoch. Repeat for each. Records in the folder of --out
    /// are known too.
    #[arg(long, value_name = "FILE")]
    pub known: Vec<PathBuf>,
    /// File to write the signed record to; it must not exist.
    #[arg(long)]
    pub out: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use vendue_auction_core::keygen::DEFAULT_NOTICE_MS;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let deal = "vendue-auction deal --market m --seat a=/ip4/10.0.0.1/udp/1/quic-v1 --home h --out x";
        assert!(Cli::try_parse_from(deal.split(' ')).is_ok());
        assert!(Cli::try_parse_from("vendue-auction deal --market m --seat a --out x".split(' ')).is_err());
    }

    #[test]
    fn receipts_need_address_authority_and_token_together() {
        let parse = |more: &[&str]| {
            Cli::try_parse_from(["vendue-auction", "run", "--profile", "provider"].iter().chain(more)).is_ok()
        };
        let all = ["--receipts-url", "https://r:9473", "--receipts-ca", "ca", "--receipts-token", "t"];
        assert!(parse(&[]) && parse(&all));
        assert!(!parse(&all[..2]) && !parse(&all[..4]));
    }

    #[test]
    fn start_and_notice_are_what_operators_agree_on() {
        let parse = |more: &[&str]| {
            let line = ["vendue-auction", "generate-keys", "--out", "x", "--start"];
            Cli::try_parse_from(line.iter().chain(more)).map(|cli| match cli.command {
                Command::GenerateKeys(args) => (args.start, args.notice),
                _ => (0, 0),
            })
        };
        let (noon, noon_ms) = ("2027-01-31T12:00:00Z", 1_801_396_800_000);
        assert_eq!(parse(&[noon]).unwrap(), (noon_ms, DEFAULT_NOTICE_MS));
        assert_eq!(parse(&[noon, "--notice", "2m"]).unwrap(), (noon_ms, 120_000));
        assert!(parse(&["2027-01-31T12:00:00"]).is_err() && parse(&[noon, "--notice", "60"]).is_err());
        assert!(Cli::try_parse_from(["vendue-auction", "generate-keys", "--out", "x"]).is_err());
        let mut cli = Cli::command();
        let help = cli.find_subcommand_mut("generate-keys").unwrap().render_long_help().to_string();
        for word in ["RFC 3339", "--notice", "next-record.json", "Exit status: 0", "--stay-seconds"] {
            assert!(help.contains(word), "{word} is missing in: {help}");
        }
    }
}
