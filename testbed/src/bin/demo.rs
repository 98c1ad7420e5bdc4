//! `cargo demo`: the main job. Starts a market of five clusters, buys GPUs at auction, trains a model on them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use vendue_testbed::deploy::{
    self, Deployment, Existing, ImageName, Member, P2P_NODE_PORT, Reach, SeatAddress, Source,
};
use vendue_testbed::error::{Error, Result};
use vendue_testbed::paths::Paths;
use vendue_testbed::progress::Progress;
use vendue_testbed::spec::MarketSpec;
use vendue_testbed::{cleanup, demo, signals};

/// Runs one training Job on a market of five Kubernetes clusters, from set-up to verified result.
#[derive(Parser)]
#[command(
    name = "demo",
    version,
    max_term_width = 110,
    after_help = "Without --keep the clusters are stopped at the end, also on failure and on Ctrl-C; Vendue is taken off \
                  clusters that you have.\nExit codes: 0 done, 1 failed, 2 wrong usage."
)]
struct Args {
    /// Leave the market running and say how to look around; a later run uses it again.
    #[arg(long)]
    keep: bool,
    /// Write what was measured to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    #[command(flatten)]
    yours: Yours,
}

/// Options for clusters that the user has.
#[derive(clap::Args)]
#[command(next_help_heading = "Clusters that you have")]
struct Yours {
    /// Their kubeconfig. Nothing else of the test bed is started; neither root nor Debian is needed.
    #[arg(long, value_name = "FILE", requires_all = ["contexts", "image", "ray_image"])]
    kubeconfig: Option<PathBuf>,
    /// Name in the market and context of each: one home, the others providers.
    #[arg(long, value_name = "home=CONTEXT,NAME=CONTEXT", value_delimiter = ',', requires = "kubeconfig")]
    contexts: Vec<Member>,
    /// Vendue's image, built from images/vendue/Containerfile, where the clusters can pull it.
    #[arg(long, value_name = "REPOSITORY:TAG", requires = "kubeconfig")]
    image: Option<ImageName>,
    /// Image that the Job runs in, built from images/ray/Containerfile, where the clusters can pull it.
    #[arg(long, value_name = "REPOSITORY:TAG", requires = "kubeconfig")]
    ray_image: Option<ImageName>,
    /// How the seats are reached; an address of a node is chosen, or the load balancer's is waited for.
    #[arg(long, value_enum, default_value_t, requires = "kubeconfig")]
    service: Reach,
    /// UDP node port of the seats.
    #[arg(long, value_name = "PORT", default_value_t = P2P_NODE_PORT, requires = "kubeconfig",
          value_parser = clap::value_parser!(u16).range(1..))]
    node_port: u16,
    /// Where the others reach the seat of a provider, if not as --service says. Repeat for each.
    #[arg(long = "seat-address", value_name = "NAME=HOST[:PORT]", requires = "kubeconfig")]
    seat_addresses: Vec<SeatAddress>,
    /// Storage class for home's store and the Jobs' volumes; the default class if not given.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    storage_class: Option<String>,
    /// Runtime class that gives the GPU agent NVIDIA's library, usually nvidia.
    #[arg(long, value_name = "NAME", requires = "kubeconfig", conflicts_with = "simulated_gpus")]
    runtime_class: Option<String>,
    /// The nodes' GPUs are simulated: this folder on them holds libnvidia-ml.so.1, libcuda.so.1 and state.json.
    #[arg(long, value_name = "DIR", requires = "kubeconfig")]
    simulated_gpus: Option<PathBuf>,
    /// Only take off the clusters what an earlier run with --keep left.
    #[arg(long, requires = "kubeconfig", conflicts_with = "keep")]
    remove: bool,
}

fn source(args: &Args) -> Source {
    let yours = &args.yours;
    let (Some(kubeconfig), Some(image), Some(ray_image)) =
        (&yours.kubeconfig, &yours.image, &yours.ray_image)
    else {
        return Source::Own(MarketSpec::demo());
    };
    Source::Existing(Box::new(Existing {
        kubeconfig: kubeconfig.clone(),
        members: yours.contexts.clone(),
        image: image.clone(),
        ray_image: ray_image.clone(),
        reach: yours.service,
        node_port: yours.node_port,
        addresses: yours.seat_addresses.clone(),
        storage_class: yours.storage_class.clone(),
        runtime_class: yours.runtime_class.clone(),
        simulated_nvml: yours.simulated_gpus.clone(),
    }))
}

async fn work(args: &Args, progress: &Progress) -> Result<()> {
    let paths = Paths::from_env()?;
    let source = source(args);
    if let (Source::Existing(existing), true) = (&source, args.yours.remove) {
        return deploy::remove_earlier(&paths, existing, progress).await;
    }
    let mut deployment = Deployment::up(&paths, &source, args.keep, progress).await?;
    let result = show(&deployment, args, progress).await;
    // Other people's Pods and logs are none of ours: only the test bed's own clusters are dumped.
    if result.is_err() && deployment.market.is_own() {
        let dump = paths.cache().join("failed/demo");
        // The failure is what counts; the dump is a help only.
        let _ = vendue_testbed::dump::market(&deployment.market, &dump).await;
    }
    if args.keep {
        let kept = deployment.market.keep().await;
        progress.say(demo::look_around(&deployment));
        return result.and(kept);
    }
    let step = if deployment.market.is_own() { "stop the clusters" } else { "take Vendue off the clusters" };
    let stopped = progress.step(step, deployment.stop()).await;
    result.and(stopped)
}

async fn show(deployment: &Deployment, args: &Args, progress: &Progress) -> Result<()> {
    let mut report = demo::run_job(deployment, progress).await?;
    demo::look_at_results(deployment, &mut report, progress).await?;
    println!("{}", report.timeline());
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    Ok(())
}

/// What an interrupted run left: its handles went with the work, so it is found by name. A market of that name that
/// another process started, or kept, is none of this run's.
async fn clean_up(args: &Args, error: &Error, progress: &Progress) -> Result<()> {
    let paths = Paths::from_env()?;
    match source(args) {
        Source::Own(spec) => cleanup::own(&paths, &spec.name).await,
        // Other failures were cleaned up after where they happened.
        Source::Existing(existing) if matches!(error, Error::Interrupted(_)) => {
            deploy::remove_earlier(&paths, &existing, progress).await
        }
        Source::Existing(_) => Ok(()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let progress = Progress::stderr();
    let Err(error) = signals::until_interrupted(work(&args, &progress)).await else {
        return ExitCode::SUCCESS;
    };
    eprintln!("demo failed: {error}");
    if !args.keep
        && let Err(error) = clean_up(&args, &error, &progress).await
    {
        eprintln!("clean up: {error}");
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn clusters_of_the_user_need_images() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(matches!(source(&parse("demo --keep").unwrap()), Source::Own(_)));
        let full = "demo --kubeconfig k --contexts home=a,alpha=b --image r/vendue:1 --ray-image r/ray:2";
        let Source::Existing(existing) = source(&parse(full).unwrap()) else {
            panic!("not the user's clusters")
        };
        assert_eq!(existing.members.len(), 2);
        assert_eq!(existing.simulated_nvml, None, "simulated only when asked for");
        for bad in [
            "demo --kubeconfig k --contexts home=a,alpha=b --image r/vendue:1",
            "demo --contexts home=a,alpha=b",
            "demo --remove",
            "demo --simulated-gpus /x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
