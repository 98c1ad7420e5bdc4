//! `verify`: checks an award from a market record, without trusting the cluster, the winner or the seats.
//!
//! Inputs: a market record, a certificate, an award with its proof (as files, or read from the cluster). Outputs: one
//! line for each check, in the order in which they build on each other; the first that fails ends the list.
//! Invariant: the record is the trust root. Keys that come with a certificate are never looked at.

mod checks;
mod devices;
mod evidence;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::args::{Global, Output, VerifyOptions};
use crate::error::CliError;
use crate::report::{self, Check, Level};

use checks::Facts;
use devices::Claim;
use evidence::Evidence;

/// The answer as JSON.
#[derive(Serialize, Debug)]
struct Answer {
    verified: bool,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    award: Option<Facts>,
}

/// Checks what the options name; an error names the check that failed.
pub async fn run(global: &Global, options: &VerifyOptions) -> Result<(), CliError> {
    let mut evidence = match (&options.job, &options.market, &options.certificate, &options.award) {
        (Some(job), ..) => Evidence::from_cluster(global, options, job).await?,
        (None, Some(market), Some(certificate), Some(award)) => {
            Evidence::from_files(market, certificate, award, options.job_uid.clone())?
        }
        _ => {
            return Err(CliError::Usage(
                "name a Job, or give --market FILE --certificate FILE --award FILE".to_owned(),
            ));
        }
    };
    if let Some(fingerprint) = &options.fingerprint {
        evidence.binding.devices = Some(Claim::User(fingerprint.clone()));
    }
    if let Some(folder) = &options.save {
        evidence.save(folder)?;
    }
    let (checks, award) = checks::all(&evidence, options.issuer.as_deref());
    let verified = report::passed(&checks) && award.is_some();
    let mut text = report::text(&checks, report::colour() && global.output == Output::Text);
    text.push_str(&match (&award, verified) {
        (Some(facts), true) => format!("\nverified: {facts}\n"),
        _ => "\nNOT verified\n".to_owned(),
    });
    let failed = checks.iter().find(|c| c.level == Level::Fail).cloned();
    report::print(global.output, &text, &Answer { verified, checks, award })?;
    match failed {
        Some(check) => Err(CliError::Failed {
            message: format!("not verified: {}: {}", check.name, check.detail),
            next: check.next,
        }),
        None if verified => Ok(()),
        None => Err(CliError::failed("not verified")),
    }
}
