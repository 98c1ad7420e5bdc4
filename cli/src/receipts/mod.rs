//! `receipts`: what a Job used by the signed records of the GPUs' nodes, verified here.
//!
//! Inputs: the receipts that came home, or a file of them; the Job's status. Outputs: sums, the file, an exit code.
//! Invariants: nothing is shown as used that does not verify; with a file no cluster is asked.

mod sum;
mod table;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use vendue_receipts::{FileJob, ReceiptsFile, ReceiptsHeads};

use crate::args::{Output, ReceiptOptions};
use crate::cluster::Target;
use crate::error::CliError;
use crate::report;

use sum::Sums;

/// Between two looks while the rest is waited for.
const PAUSE: Duration = Duration::from_secs(2);

/// What `-o json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    job: &'a FileJob,
    #[serde(flatten)]
    sums: &'a Sums,
}

/// Shows the receipts of a Job.
pub async fn run(target: &Target, options: &ReceiptOptions, output: Output) -> Result<(), CliError> {
    let patience = options.wait.map(Duration::from_secs);
    let (bytes, file, mut sums) = whole(target, patience, PAUSE).await?;
    if let Some(path) = &options.save {
        save(path, &bytes)?;
    }
    if file.awards.is_empty() {
        return Err(CliError::failed_with(
            format!(
                "Job {}/{} was not handed over to a provider, so nothing was used",
                target.namespace, target.job
            ),
            format!("kubectl describe jobs.vendue.dev {} --namespace {}", target.job, target.namespace),
        ));
    }
    if let Some(fault) = compare(target, &file, &sums).await? {
        sums.blame(fault);
    }
    show(&file.job, &sums, output)
}

/// Verifies a file without any cluster.
pub fn run_file(path: &Path, output: Output) -> Result<(), CliError> {
    let bytes = fs::read(path).map_err(|e| CliError::file(path, &e))?;
    let file = parse(&bytes, &path.display().to_string())?;
    show(&file.job, &sum::sums(&file), output)
}

fn parse(bytes: &[u8], from: &str) -> Result<ReceiptsFile, CliError> {
    serde_json::from_slice(bytes).map_err(|e| {
        let next = "take a file that `kubectl vendue receipts JOB --save FILE` wrote";
        CliError::failed_with(format!("{from}: no file of receipts: {e}"), next)
    })
}

/// The receipts; with patience, when nothing more is to come. While it waits it asks how far they are, and fetches them
/// again only then.
async fn whole(
    target: &Target,
    patience: Option<Duration>,
    pause: Duration,
) -> Result<(Vec<u8>, ReceiptsFile, Sums), CliError> {
    let doing = format!("read the receipts of Job {}/{}", target.namespace, target.job);
    let fetch = async |query: &str| -> Result<Vec<u8>, CliError> {
        let text = target.client.request_text(target.request("receipts", query)?).await;
        Ok(text.map_err(|e| CliError::kube(&doing, &e))?.into_bytes())
    };
    let (start, mut told) = (Instant::now(), String::new());
    loop {
        let bytes = fetch("").await?;
        let file = parse(&bytes, &doing)?;
        let sums = sum::sums(&file);
        let Some(patience) = patience.filter(|_| !sums.is_whole() && sums.verified) else {
            return Ok((bytes, file, sums));
        };
        loop {
            if start.elapsed() >= patience {
                return Err(CliError::failed_with(
                    format!("{doing}: after {} s more records may still come", patience.as_secs()),
                    "run the command without --wait to see what is there, or again later",
                ));
            }
            tokio::time::sleep(pause.min(patience)).await;
            let bytes = fetch("heads=true").await?;
            let heads: ReceiptsHeads = serde_json::from_slice(&bytes)
                .map_err(|e| CliError::failed(format!("{doing}: how far they are: {e}")))?;
            let line = table::progress(&heads);
            if line != told {
                eprintln!("{line}");
                told = line;
            }
            if heads.is_whole() {
                break;
            }
        }
    }
}

/// Compares what the Job's status says with the receipts of the award that it speaks of.
async fn compare(target: &Target, file: &ReceiptsFile, sums: &Sums) -> Result<Option<String>, CliError> {
    let Some(status) = target.get().await?.status else { return Ok(None) };
    let (Some(award), Some(usage)) = (status.award, status.usage) else { return Ok(None) };
    let mut both = file.awards.iter().zip(&sums.awards);
    let Some((file, sums)) = both.find(|(file, _)| file.name == award.name) else { return Ok(None) };
    Ok(sum::contradiction(sums, &usage).or_else(|| sum::other_heads(file, sums.closed, &usage)))
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    let fail = |e: std::io::Error| CliError::file(path, &e);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
    part.write_all(bytes).and_then(|()| part.as_file().sync_all()).map_err(fail)?;
    part.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn show(job: &FileJob, sums: &Sums, output: Output) -> Result<(), CliError> {
    report::print(output, &table::text(job, sums), &Answer { job, sums })?;
    match sums.faults.as_slice() {
        [] => Ok(()),
        [first, rest @ ..] => Err(CliError::failed_with(
            match rest.len() {
                0 => format!("not verified: {first}"),
                more => format!("not verified: {first}, and {more} more"),
            },
            "keep the file (--save FILE), ask the provider, and compare with its hour statements",
        )),
    }
}

#[cfg(test)]
mod tests;
