//! Prints the CRDs of every kind, for the chart `vendue-crds`.
//!
//! `crdgen --out DIR` writes one file per kind; `crdgen` alone prints all to standard output.

use std::{fs, io::Write, path::PathBuf};

use clap::Parser;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use vendue_crds::crds;

/// Writes the CustomResourceDefinitions of vendue.dev.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Folder that gets one file per kind; without it everything is printed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

fn yaml(crd: &CustomResourceDefinition) -> Result<String, Box<dyn std::error::Error>> {
    Ok(serde_saphyr::to_string(crd)?)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    for crd in crds() {
        let text = yaml(&crd)?;
        match &args.out {
            Some(dir) => {
                fs::create_dir_all(dir)?;
                fs::write(dir.join(format!("{}.yaml", crd.spec.names.plural)), text)?;
            }
            None => writeln!(std::io::stdout(), "---\n{text}")?,
        }
    }
    Ok(())
}
