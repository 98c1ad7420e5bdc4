//! `testbed`: whole real Kubernetes clusters on this machine, from the command line.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments. Results go to standard output, progress to standard
//! error.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde_json::json;
use vendue_testbed::{
    Error, Fault, Market, MarketSpec, Options, Paths, Progress, Result, cleanup, doctor, dump, images, setup,
};

/// Whole real Kubernetes clusters on this machine.
#[derive(Debug, Parser)]
#[command(name = "testbed", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell what this machine lacks, each with the command that fixes it.
    Doctor {
        /// Print findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Install packages, build the programs and images; quick when all is there. Goes on where it stopped.
    Setup,
    /// Start the demo's five clusters. Without --keep they stop with this command (Ctrl-C).
    Up(Up),
    /// Stop a market and remove what it left.
    Down(MarketName),
    /// Stop and remove all markets, also those that a killed run left.
    Clean,
    /// Show the markets, their clusters and how to look at them.
    Status {
        /// Print as JSON, with memory.
        #[arg(long)]
        json: bool,
    },
    /// Build Vendue's image from built programs and put it into a running market.
    Image(ImageArgs),
    /// Cut a cluster off from the others; the host still reaches it.
    Cut(ClusterName),
    /// Undo cut.
    Heal(ClusterName),
    /// Kill a component of a cluster, or a Pod's processes.
    Kill(Target),
    /// Start a component again.
    Restart(Component),
    /// Freeze a component (SIGSTOP).
    Freeze(Component),
    /// Undo freeze.
    Thaw(Component),
    /// Fill the disk of a cluster's volumes; the market must have been started with --disk-mib.
    Fill(ClusterName),
    /// Undo fill.
    Empty(ClusterName),
    /// Let the driver of a cluster's node lose a simulated GPU.
    LoseGpu(Gpu),
    /// Undo lose-gpu.
    ReturnGpu(Gpu),
    /// Set the clock of a cluster's seat ahead or back, and restart the seat; 0 sets it right.
    ShiftClock {
        #[command(flatten)]
        at: ClusterName,
        /// Seconds ahead; below 0: back.
        #[arg(allow_negative_numbers = true)]
        seconds: i32,
    },
    /// Write events, Pods, nodes and logs of all clusters into a folder.
    Dump {
        #[command(flatten)]
        market: MarketName,
        /// Where to.
        #[arg(long, default_value = "testbed-dump")]
        to: PathBuf,
    },
    /// Empty and offer again the released volumes of a kept market, until stopped.
    #[command(hide = true)]
    Volumes(MarketName),
}

#[derive(Debug, Args)]
struct MarketName {
    /// Name of the market.
    #[arg(long, default_value = "demo")]
    market: String,
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    market: MarketName,
    /// Leave the clusters running and return.
    #[arg(long)]
    keep: bool,
    /// Only these clusters of the demo, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Folder with the built programs (GPU simulator, Vendue); default is the one this program is in.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Put each cluster's volumes on a memory disk of this size, so that `fill` can fill it.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(16..=16384))]
    disk_mib: Option<u32>,
    /// Put Vendue's image, as far as its programs are built, into the clusters.
    #[arg(long)]
    vendue: bool,
    /// Print seconds and memory as JSON when the clusters are ready.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ImageArgs {
    #[command(flatten)]
    market: MarketName,
    /// Folder with the built programs; default is the one this program is in.
    #[arg(long)]
    programs: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ClusterName {
    #[command(flatten)]
    market: MarketName,
    /// Cluster.
    cluster: String,
}

#[derive(Debug, Args)]
struct Component {
    #[command(flatten)]
    at: ClusterName,
    /// Component, such as kubelet.
    component: String,
}

#[derive(Debug, Args)]
struct Gpu {
    #[command(flatten)]
    at: ClusterName,
    /// Index or UUID of the device.
    device: String,
}

#[derive(Debug, Args)]
struct Target {
    #[command(flatten)]
    at: ClusterName,
    /// Component such as kubelet, or NAMESPACE/POD.
    target: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("testbed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<ExitCode> {
    let paths = Paths::from_env()?;
    let progress = Progress::stderr();
    match command {
        Command::Doctor { json } => return Ok(examine(&paths, json)),
        Command::Setup => {
            setup::prepare(&paths, &progress).await?;
            progress.say("everything is there");
        }
        Command::Up(args) => return up(&paths, &progress, args).await,
        Command::Down(name) => {
            progress
                .step(&format!("stop market {}", name.market), cleanup::market(&paths, &name.market))
                .await?;
        }
        Command::Clean => {
            for name in cleanup::known(&paths).await? {
                progress.step(&format!("remove market {name}"), cleanup::market(&paths, &name)).await?;
            }
        }
        Command::Status { json } => status(&paths, json).await?,
        Command::Image(args) => {
            let programs = programs(args.programs)?;
            let image = images::vendue_image(&paths, &programs, true, &progress).await?;
            let market = attach(&paths, &args.market.market).await?;
            progress.step("import into all clusters", market.import(&image)).await?;
        }
        Command::Cut(at) => inflict(&paths, &at, &Fault::Cut).await?,
        Command::Heal(at) => inflict(&paths, &at, &Fault::Heal).await?,
        Command::Kill(Target { at, target }) => {
            let fault = match target.split_once('/') {
                Some((namespace, pod)) => Fault::KillPod { namespace: namespace.into(), pod: pod.into() },
                None => Fault::Kill { component: target },
            };
            inflict(&paths, &at, &fault).await?;
        }
        Command::Restart(Component { at, component }) => {
            inflict(&paths, &at, &Fault::Restart { component }).await?
        }
        Command::Freeze(Component { at, component }) => {
            inflict(&paths, &at, &Fault::Freeze { component }).await?
        }
        Command::Thaw(Component { at, component }) => {
            inflict(&paths, &at, &Fault::Thaw { component }).await?
        }
        Command::Fill(at) => inflict(&paths, &at, &Fault::FillDisk).await?,
        Command::Empty(at) => inflict(&paths, &at, &Fault::EmptyDisk).await?,
        Command::LoseGpu(Gpu { at, device }) => inflict(&paths, &at, &Fault::LoseGpu { device }).await?,
        Command::ReturnGpu(Gpu { at, device }) => inflict(&paths, &at, &Fault::ReturnGpu { device }).await?,
        Command::ShiftClock { at, seconds } => inflict(&paths, &at, &Fault::ShiftClock { seconds }).await?,
        Command::Dump { market, to } => {
            let market = attach(&paths, &market.market).await?;
            print!("{}", dump::market(&market, &to).await?);
        }
        Command::Volumes(name) => attach(&paths, &name.market).await?.recycle_volumes().await,
    }
    Ok(ExitCode::SUCCESS)
}

fn examine(paths: &Paths, json: bool) -> ExitCode {
    let findings = doctor::examine(paths);
    if json {
        println!("{}", json!({ "findings": findings }));
    } else if findings.is_empty() {
        println!("this machine can run the test bed");
    } else {
        print!("{}", doctor::report(&findings));
    }
    if findings.iter().any(|f| f.blocks) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

async fn attach(paths: &Paths, name: &str) -> Result<Market> {
    let found = setup::find(paths).await?;
    Market::attach(&found, name).await?.ok_or_else(|| {
        Error::Invalid(format!(
            "market {name} is not running: start it with `testbed up --keep --market {name}`"
        ))
    })
}

async fn inflict(paths: &Paths, at: &ClusterName, fault: &Fault) -> Result<()> {
    attach(paths, &at.market.market).await?.cluster(&at.cluster)?.inflict(fault).await
}

async fn up(paths: &Paths, progress: &Progress, args: Up) -> Result<ExitCode> {
    let setup = setup::prepare(paths, progress).await?;
    let programs = programs(args.programs.clone())?;
    let mut spec = MarketSpec::demo().named(&args.market.market).only(&args.only)?;
    if let Some(mib) = args.disk_mib {
        spec = spec.with_disks(mib, |_| true);
    }
    let mut options = Options { progress: progress.clone(), ..Options::default() };
    if programs.join("nvml-sim").exists() {
        options.programs = Some(programs.clone());
    } else {
        progress.say(format!("no GPU simulator in {}: nodes have no GPUs", programs.display()));
    }
    if args.vendue {
        options.images.push(images::vendue_image(paths, &programs, true, progress).await?);
    }
    let begin = progress.elapsed();
    let started = tokio::select! {
        started = Market::start(&setup, &spec, &options) => Some(started),
        () = interrupted() => None,
    };
    let Some(started) = started else {
        cleanup::own(paths, &spec.name).await?;
        return Ok(ExitCode::FAILURE);
    };
    let mut market = started?;
    let seconds = (progress.elapsed() - begin).as_secs_f64();
    if args.json {
        println!("{}", json!({"clusters_ready": seconds, "clusters": memory(&market)}));
    }
    hints(&setup, &market);
    if args.keep {
        market.keep().await?;
        return Ok(ExitCode::SUCCESS);
    }
    progress.say("Ctrl-C stops the clusters");
    interrupted().await;
    progress.step("stop", market.stop(&setup)).await?;
    Ok(ExitCode::SUCCESS)
}

/// The given folder, or the one that this program was built into.
fn programs(given: Option<PathBuf>) -> Result<PathBuf> {
    let own = || std::env::current_exe().ok()?.parent().map(Path::to_path_buf);
    given
        .or_else(own)
        .ok_or_else(|| Error::Invalid("give --programs: this program's own folder is unknown".into()))
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn hints(setup: &vendue_testbed::Setup, market: &Market) {
    let (Some(kubeconfig), Some(first)) = (market.kubeconfig(), market.clusters().first()) else { return };
    eprintln!("\n  export KUBECONFIG={}", kubeconfig.display());
    eprintln!("  {} --context {} get nodes\n", setup.programs.kubectl.display(), first.name());
}

fn memory(market: &Market) -> serde_json::Value {
    let of = |cluster: &vendue_testbed::Cluster| {
        let memory = cluster.memory().unwrap_or_default();
        json!({"name": cluster.name(), "resident_mb": memory.resident >> 20, "proportional_mb": memory.proportional >> 20})
    };
    market.clusters().iter().map(of).collect()
}

async fn status(paths: &Paths, as_json: bool) -> Result<()> {
    let mut all = Vec::new();
    for name in cleanup::known(paths).await? {
        let state = vendue_testbed::state::MarketState::load(&paths.run(&name))?;
        let live = state.as_ref().is_some_and(vendue_testbed::state::MarketState::is_live);
        let clusters = if live { memory(&attach(paths, &name).await?) } else { json!([]) };
        all.push(json!({"name": name, "running": live, "folder": paths.run(&name), "clusters": clusters}));
    }
    if as_json {
        println!("{}", json!({ "markets": all }));
        return Ok(());
    }
    if all.is_empty() {
        println!("no markets");
    }
    for market in &all {
        print_market(market, paths);
    }
    Ok(())
}

fn print_market(market: &serde_json::Value, paths: &Paths) {
    let name = market["name"].as_str().unwrap_or_default();
    if market["running"] != true {
        println!("{name}: leftovers of a killed run; remove them with `testbed clean`");
        return;
    }
    let folder: &Path = &paths.run(name);
    println!("{name}: running; export KUBECONFIG={}", folder.join("kubeconfig").display());
    for cluster in market["clusters"].as_array().into_iter().flatten() {
        println!("  {:<12} {} MiB", cluster["name"].as_str().unwrap_or_default(), cluster["proportional_mb"]);
    }
}
