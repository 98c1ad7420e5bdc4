//! A real Prometheus that scrapes a deployed market, for tests of dashboards and rules.
//!
//! Inputs: a [`Deployment`]. Outputs: a Prometheus on 127.0.0.1 and its query API. Each Pod is reached through its
//! cluster's API server, with the administrator's certificate, so that no Pod network has to be routed to the host.
//! Invariant: the process ends with the handle.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::config::Kubeconfig;
use serde_json::{Value, json};
use tokio::process::Child;

use crate::command::{command, log_pair, run};
use crate::deploy::{Deployment, NAMESPACE, Site};
use crate::error::{Error, IoContext as _, Result};
use crate::files;
use crate::paths::Paths;
use crate::wait::{self, Poll};

/// A running Prometheus.
pub struct Prometheus {
    child: Child,
    url: String,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    /// Starts it and waits until it is ready.
    pub async fn start(deployment: &Deployment) -> Result<Self> {
        let program = program(&deployment.setup.paths).await?;
        let folder = tempfile::tempdir().io("create folder in", std::env::temp_dir())?;
        let mut jobs = Vec::new();
        for site in &deployment.sites {
            jobs.extend(scrape_jobs(site, folder.path()).await?);
        }
        // JSON is YAML.
        let config =
            json!({ "global": { "scrape_interval": "2s", "scrape_timeout": "2s" }, "scrape_configs": jobs });
        let file = folder.path().join("prometheus.yml");
        files::write(&file, config.to_string())?;
        let port = free_port()?;
        let (out, err) = log_pair(&folder.path().join("prometheus.log"))?;
        let child = tokio::process::Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdin(std::process::Stdio::null())
            .stdout(out)
            .stderr(err)
            .kill_on_drop(true)
            .spawn()
            .io("start", "prometheus")?;
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|e| Error::Machine(format!("make HTTP client: {e}")))?;
        let this = Self { child, url: format!("http://127.0.0.1:{port}"), http, _folder: folder };
        this.wait_ready().await?;
        Ok(this)
    }

    async fn wait_ready(&self) -> Result<()> {
        wait::until("wait for Prometheus", Duration::from_secs(30), Duration::from_millis(200), || async {
            Ok(match self.http.get(format!("{}/-/ready", self.url)).send().await {
                Ok(answer) if answer.status().is_success() => Poll::Ready(()),
                Ok(answer) => Poll::Pending(answer.status().to_string()),
                Err(error) => Poll::Pending(error.to_string()),
            })
        })
        .await
    }

    /// How many series with a real value an instant query returns; a query that does not parse is an error.
    pub async fn query(&self, query: &str) -> Result<usize> {
        let failed = |e: reqwest::Error| Error::Invalid(format!("query {query:?}: {e}"));
        let request = self.http.get(format!("{}/api/v1/query", self.url)).query(&[("query", query)]);
        let answer: Value = request.send().await.map_err(failed)?.json().await.map_err(failed)?;
        if answer["status"] != "success" {
            return Err(Error::Invalid(format!("query {query:?}: {}", answer["error"])));
        }
        let series = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(series.iter().filter(|s| s["value"][1].as_str().is_some_and(|v| v != "NaN")).count())
    }

    /// Stops it.
    pub async fn stop(mut self) -> Result<()> {
        self.child.kill().await.io("stop", "prometheus")
    }
}

/// The program that tests rules; the package of [`Prometheus`] has it too.
pub async fn promtool(paths: &Paths) -> Result<PathBuf> {
    if let Some(found) = crate::tools::which("promtool") {
        return Ok(found);
    }
    Ok(program(paths).await?.with_file_name("promtool"))
}

/// Finds the program, or unpacks the distribution's package into the cache: installed in full, the package would start
/// a server of its own.
async fn program(paths: &Paths) -> Result<PathBuf> {
    if let Some(found) = crate::tools::which("prometheus") {
        return Ok(found);
    }
    let folder = paths.cache().join("tools/prometheus");
    let program = folder.join("usr/bin/prometheus");
    if program.exists() {
        return Ok(program);
    }
    let partial = files::with_suffix(&folder, ".partial");
    files::remove_dir(&partial)?;
    files::create_dir(&partial)?;
    let limit = Duration::from_secs(300);
    // A new machine may have no package lists yet.
    let mut download = command("sh", ["-c", "apt-get update --quiet && apt-get download prometheus"]);
    download.current_dir(&partial);
    run("fetch prometheus", limit, download).await?;
    let mut unpack = command("sh", ["-c", "dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb"]);
    unpack.current_dir(&partial);
    run("unpack prometheus", limit, unpack).await?;
    std::fs::rename(&partial, &folder).io("rename to", &folder)?;
    Ok(program)
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").io("bind", "127.0.0.1")?;
    Ok(listener.local_addr().io("read address of", "127.0.0.1")?.port())
}

/// One scrape job for each annotated Pod of Vendue on a cluster.
async fn scrape_jobs(site: &Site, folder: &Path) -> Result<Vec<Value>> {
    let access = Access::of(site, folder)?;
    let what = format!("list Pods of {}", site.name);
    let api: Api<Pod> = Api::namespaced(site.client.clone(), NAMESPACE);
    let pods = api.list(&ListParams::default()).await.map_err(|e| Error::kube(what, e))?;
    Ok(pods.items.iter().filter_map(|pod| access.job(site, pod)).collect())
}

/// How the API server of a cluster is reached.
struct Access {
    server: String,
    tls: Value,
}

impl Access {
    fn of(site: &Site, folder: &Path) -> Result<Self> {
        let bad = |what: &str| Error::Invalid(format!("kubeconfig of {}: {what}", site.name));
        let config = Kubeconfig::read_from(&site.tools.kubeconfig).map_err(|e| bad(&e.to_string()))?;
        let config = serde_json::to_value(config).map_err(|e| bad(&e.to_string()))?;
        let text = |pointer: &str| {
            let value = config.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            value.ok_or_else(|| bad(&format!("nothing at {pointer}")))
        };
        let mut tls = json!({});
        for (name, pointer) in [
            ("ca_file", "/clusters/0/cluster/certificate-authority-data"),
            ("cert_file", "/users/0/user/client-certificate-data"),
            ("key_file", "/users/0/user/client-key-data"),
        ] {
            let pem = base64::engine::general_purpose::STANDARD
                .decode(text(pointer)?)
                .map_err(|e| bad(&e.to_string()))?;
            let path = folder.join(format!("{}-{name}.pem", site.name));
            files::write(&path, pem)?;
            tls[name] = json!(path);
        }
        Ok(Self { server: text("/clusters/0/cluster/server")?, tls })
    }

    fn job(&self, site: &Site, pod: &Pod) -> Option<Value> {
        let annotations = pod.metadata.annotations.as_ref()?;
        let name = pod.metadata.name.as_ref()?;
        let port = annotations
            .get("prometheus.io/port")
            .filter(|_| annotations.get("prometheus.io/scrape").is_some_and(|v| v == "true"))?;
        Some(json!({
            "job_name": format!("{}/{name}", site.name),
            "scheme": "https",
            "metrics_path": format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}:{port}/proxy/metrics"),
            "tls_config": self.tls,
            "static_configs": [{ "targets": [self.server.trim_start_matches("https://")], "labels": { "cluster": site.name } }],
        }))
    }
}
