//! What is to be checked, and where it comes from.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use vendue_crds::{Award, ComputeJob};

use super::checks::Binding;
use crate::args::{Global, VerifyOptions};
use crate::cluster::Target;
use crate::error::CliError;

/// Largest file that is read; records of 256 seats stay far below.
const MAX_FILE: u64 = 8 << 20;

/// The three texts, and what the award must belong to.
#[derive(Debug)]
pub struct Evidence {
    /// Where the market record comes from, for people.
    pub record_source: String,
    /// Whether the record was read from the cluster that is being checked.
    pub record_from_cluster: bool,
    /// The signed market record, JSON.
    pub record: String,
    /// The certificate file, JSON.
    pub certificate: String,
    /// The award file, JSON.
    pub award: String,
    /// What the award must belong to.
    pub binding: Binding,
}

fn read(path: &Path) -> Result<String, CliError> {
    let size = fs::metadata(path).map_err(|e| CliError::file(path, &e))?.len();
    if size > MAX_FILE {
        return Err(CliError::failed(format!(
            "{}: {size} bytes; accepted: at most {MAX_FILE}",
            path.display()
        )));
    }
    fs::read_to_string(path).map_err(|e| CliError::file(path, &e))
}

impl Evidence {
    /// From three files, without a cluster.
    pub fn from_files(
        market: &Path,
        certificate: &Path,
        award: &Path,
        job_uid: Option<String>,
    ) -> Result<Self, CliError> {
        Ok(Self {
            record_source: market.display().to_string(),
            record_from_cluster: false,
            record: read(market)?,
            certificate: read(certificate)?,
            award: read(award)?,
            binding: Binding { job_uid, ..Binding::default() },
        })
    }

    /// From the Job's Award; the record from a file, if one is named, or else from the cluster.
    pub async fn from_cluster(global: &Global, options: &VerifyOptions, job: &str) -> Result<Self, CliError> {
        let target = Target::connect(global, job).await?;
        let found = target.get().await?;
        let award = award_of(&target, &found).await?;
        let (record_source, record) = match &options.market {
            Some(file) => (file.display().to_string(), read(file)?),
            None => market_of(&target.client, options).await?,
        };
        let data = award.spec.certificate.clone().ok_or_else(|| {
            CliError::failed(format!(
                "Award {} holds no certificate",
                award.metadata.name.as_deref().unwrap_or("?")
            ))
        })?;
        Ok(Self {
            record_source,
            record_from_cluster: options.market.is_none(),
            record,
            certificate: data.certificate,
            award: data.award,
            binding: Binding::of(&found, &award),
        })
    }

    /// Writes the three texts to a folder, for a check on another machine.
    pub fn save(&self, folder: &Path) -> Result<(), CliError> {
        fs::create_dir_all(folder).map_err(|e| CliError::file(folder, &e))?;
        for (name, text) in [
            ("market.json", &self.record),
            ("certificate.json", &self.certificate),
            ("award.json", &self.award),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| CliError::file(&path, &e))?;
        }
        Ok(())
    }
}

async fn award_of(target: &Target, job: &ComputeJob) -> Result<Award, CliError> {
    let status = job.status.as_ref();
    let Some(summary) = status.and_then(|s| s.award.as_ref()) else {
        let state = status.and_then(|s| s.state.as_deref()).unwrap_or("Pending");
        return Err(CliError::failed_with(
            format!("Job {} has no award yet: its state is {state}", target.job),
            format!("kubectl describe jobs.vendue.dev -n {} {}", target.namespace, target.job),
        ));
    };
    let api: Api<Award> = Api::namespaced(target.client.clone(), &target.namespace);
    api.get(&summary.name)
        .await
        .map_err(|e| CliError::kube(&format!("read Award {}/{}", target.namespace, summary.name), &e))
}

async fn market_of(client: &Client, options: &VerifyOptions) -> Result<(String, String), CliError> {
    let named = options.market_configmap.as_deref().unwrap_or("vendue-market");
    let (namespace, name) = named.split_once('/').unwrap_or((&options.system_namespace, named));
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let doing = format!("read ConfigMap {namespace}/{name}");
    let map = api.get(name).await.map_err(|e| match CliError::kube(&doing, &e) {
        CliError::Cluster { message, .. } | CliError::Failed { message, .. } => CliError::Cluster {
            message,
            next: "give the market record as a file: --market market.json".to_owned(),
        },
        usage @ CliError::Usage(_) => usage,
    })?;
    let text = map.data.and_then(|mut data| data.remove("market.json"));
    let text =
        text.ok_or_else(|| CliError::failed(format!("ConfigMap {namespace}/{name} has no key market.json")))?;
    Ok((format!("ConfigMap {namespace}/{name}"), text))
}
