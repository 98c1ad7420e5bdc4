//! The command line.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Look into the jobs of the Vendue market, fetch what they made, and check their awards.
#[derive(Parser, Debug)]
#[command(name = "kubectl-vendue", bin_name = "kubectl vendue", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 cluster not reachable or forbidden."
)]
pub struct Args {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(ClapArgs, Debug, Clone, Default)]
pub struct Global {
    /// Namespace of the Job; the context's by default.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig file; $KUBECONFIG or ~/.kube/config by default.
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Form of the output.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Output,
}

/// Form of the output.
#[derive(ValueEnum, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Print the log of a Job, while it runs or afterwards.
    Logs(LogOptions),
    /// List the files that a Job left, or download them, each checked by its digest.
    Outputs(OutputOptions),
    /// Show what a Job used by the signed receipts of its GPUs' nodes, each verified.
    Receipts(ReceiptOptions),
    /// Check the award of a Job without trusting anybody but the market record.
    Verify(VerifyOptions),
    /// Say what is in order in this cluster, what is not, and what to do about it.
    Doctor(DoctorOptions),
    /// Print the completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Write the Grafana dashboards as JSON files.
    #[command(hide = true)]
    Dashboards {
        /// Folder to write to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Options of `logs`.
#[derive(ClapArgs, Debug)]
pub struct LogOptions {
    /// The Job: `digits` or `job/digits`.
    #[arg(value_name = "JOB", value_parser = job_name)]
    pub job: String,
    /// Go on until the Job ends.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
}

/// Options of `outputs`.
#[derive(ClapArgs, Debug)]
pub struct OutputOptions {
    /// The Job: `digits` or `job/digits`.
    #[arg(value_name = "JOB", value_parser = job_name)]
    pub job: String,
    /// Download into this folder; without it the files are listed.
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// How long to wait for outputs that are still being delivered, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
}

/// Options of `receipts`.
#[derive(ClapArgs, Debug, Default)]
pub struct ReceiptOptions {
    /// The Job: `digits` or `job/digits`.
    #[arg(value_name = "JOB", value_parser = job_name, required_unless_present = "verify")]
    pub job: Option<String>,
    /// Verify a file that --save wrote; no cluster is asked.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["job", "save", "wait"])]
    pub verify: Option<PathBuf>,
    /// Also write the receipts to this file, for a check elsewhere.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Wait until the Job has ended and its last records are here, at most so many seconds; 600 without a number.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    pub wait: Option<u64>,
}

/// Options of `verify`.
#[derive(ClapArgs, Debug, Default)]
pub struct VerifyOptions {
    /// The Job in the cluster: `digits` or `job/digits`. Without it --certificate and --award are needed.
    #[arg(value_name = "JOB", value_parser = job_name, conflicts_with_all = ["certificate", "award"])]
    pub job: Option<String>,
    /// The market record, from somewhere you trust.
    #[arg(long, value_name = "FILE", conflicts_with = "market_configmap")]
    pub market: Option<PathBuf>,
    /// The market record in the cluster: NAMESPACE/NAME or NAME in the system namespace.
    #[arg(long, value_name = "CONFIGMAP")]
    pub market_configmap: Option<String>,
    /// The certificate, as a file.
    #[arg(long, value_name = "FILE", requires = "award", requires = "market")]
    pub certificate: Option<PathBuf>,
    /// The award with its proof, as a file.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub award: Option<PathBuf>,
    /// With files: the award must be of the Job with this UID.
    #[arg(long, value_name = "UID", requires = "certificate")]
    pub job_uid: Option<String>,
    /// The award must be bound to the devices with this fingerprint (hex), as GpuNodes and Awards have it in their status.
    #[arg(long, value_name = "FINGERPRINT")]
    pub fingerprint: Option<String>,
    /// The market record must be signed by this key (hex).
    #[arg(long, value_name = "KEY")]
    pub issuer: Option<String>,
    /// With a Job: also write certificate.json, award.json and market.json here, for a check elsewhere.
    #[arg(long, value_name = "DIR", requires = "job")]
    pub save: Option<PathBuf>,
    /// Namespace that Vendue is installed in.
    #[arg(long, value_name = "NAME", default_value = "vendue-system")]
    pub system_namespace: String,
}

/// Options of `doctor`.
#[derive(ClapArgs, Debug)]
pub struct DoctorOptions {
    /// Namespace that Vendue is installed in.
    #[arg(long, value_name = "NAME", default_value = "vendue-system")]
    pub system_namespace: String,
    /// Only say whether Vendue may be uninstalled now: not while an award runs.
    #[arg(long, conflicts_with = "upgrade_check")]
    pub uninstall_check: bool,
    /// With --uninstall-check: Helm's release Secret, which is put back to "deployed" on a refusal.
    #[arg(long, value_name = "SECRET", requires = "uninstall_check", hide = true)]
    pub release_secret: Option<String>,
    /// Only say what an upgrade does to running awards.
    #[arg(long)]
    pub upgrade_check: bool,
}

/// `job/NAME`, `jobs/NAME`, `jobs.vendue.dev/NAME` or `NAME`.
fn job_name(text: &str) -> Result<String, String> {
    let name = match text.split_once('/') {
        Some(("job" | "jobs" | "vjob" | "jobs.vendue.dev" | "job.vendue.dev", name)) => name,
        Some((kind, _)) => {
            return Err(format!("{kind:?} is no kind of this command; accepted: job/NAME or NAME"));
        }
        None => text,
    };
    let sound = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    if name.is_empty() || name.len() > 253 || !name.bytes().all(sound) {
        return Err(format!(
            "{name:?} is no name of a Job; accepted: lower case letters, digits, '-' and '.'"
        ));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn jobs_by_name_and_by_kind() {
        for text in ["digits", "job/digits", "jobs.vendue.dev/digits"] {
            assert_eq!(job_name(text), Ok("digits".to_owned()), "{text}");
        }
        for text in ["pod/digits", "", "job/", "../x", "Digits"] {
            assert!(job_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn receipts_are_of_a_job_or_a_file() {
        let parse =
            |words: &[&str]| match Args::try_parse_from([&["kubectl-vendue", "receipts"], words].concat())
                .map(|args| args.command)
            {
                Ok(Command::Receipts(options)) => Some((options.job, options.wait)),
                _ => None,
            };
        assert_eq!(parse(&["job/x", "--save", "f", "--wait"]), Some((Some("x".into()), Some(600))));
        for wait in [&["x", "--wait=5"][..], &["x", "--wait", "5"], &["--wait", "5", "x"]] {
            assert_eq!(parse(wait), Some((Some("x".into()), Some(5))), "{wait:?}");
        }
        assert_eq!(parse(&["--verify", "f"]), Some((None, None)));
        for bad in [
            &[][..],
            &["x", "--verify", "f"],
            &["--verify", "f", "--wait"],
            &["--verify", "f", "--save", "g"],
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn verify_takes_a_job_or_all_files() {
        let parse =
            |words: &[&str]| Args::try_parse_from([&["kubectl-vendue", "verify"], words].concat()).is_ok();
        assert!(parse(&["job/x"]));
        assert!(parse(&["--market", "m", "--certificate", "c", "--award", "a"]));
        assert!(
            !parse(&["--certificate", "c", "--award", "a"]),
            "a certificate that brings its own keys proves nothing"
        );
        assert!(!parse(&["job/x", "--certificate", "c", "--award", "a", "--market", "m"]));
    }
}
