//! Clients of the clusters' API servers, and calls with a deadline.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::error::{Error, Result};

const LIMIT: Duration = Duration::from_secs(15);

/// A client for one context of a kubeconfig file.
pub async fn connect(kubeconfig: &Path, context: Option<&str>) -> Result<Client> {
    // The program may have chosen its provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let invalid = |e: String| Error::Invalid(format!("kubeconfig {}: {e}", kubeconfig.display()));
    let file = Kubeconfig::read_from(kubeconfig).map_err(|e| invalid(e.to_string()))?;
    let options = KubeConfigOptions { context: context.map(Into::into), ..KubeConfigOptions::default() };
    let mut config =
        Config::from_custom_kubeconfig(file, &options).await.map_err(|e| invalid(e.to_string()))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    Client::try_from(config).map_err(|e| Error::kube(format!("make client for {}", kubeconfig.display()), e))
}

/// Runs an API call with the crate's usual deadline.
pub async fn call<T>(operation: &str, work: impl Future<Output = kube::Result<T>>) -> Result<T> {
    tokio::time::timeout(LIMIT, work)
        .await
        .map_err(|_| Error::timeout(operation, LIMIT, ""))?
        .map_err(|e| Error::kube(operation, e))
}

/// Asks a path of the API server for its text, such as `/readyz`.
pub async fn get_text(client: &Client, path: &str) -> Result<String> {
    let request =
        http::Request::get(path).body(Vec::new()).map_err(|e| Error::Invalid(format!("path {path}: {e}")))?;
    call(&format!("get {path}"), client.request_text(request)).await
}
