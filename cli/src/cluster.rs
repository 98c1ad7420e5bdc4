//! The way to a cluster, and to one Job in it.

use std::time::Duration;

use http::Request;
use k8s_openapi::jiff::Timestamp;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use vendue_crds::ComputeJob;

use crate::args::Global;
use crate::error::{CliError, chain};

/// Root of the aggregated API.
const STREAM: &str = "/apis/stream.vendue.dev/v1alpha1";

/// Longest silence of a cluster that is asked something. A log that is followed may be silent for longer.
const SILENCE: Duration = Duration::from_secs(60);

/// A connection to the cluster that the options name.
pub async fn connect(global: &Global) -> Result<Client, CliError> {
    connect_with(global, Some(SILENCE)).await
}

async fn connect_with(global: &Global, silence: Option<Duration>) -> Result<Client, CliError> {
    let unusable = |what: String| CliError::Cluster {
        message: format!("kubeconfig: {what}"),
        next: "name one with --kubeconfig FILE and --context NAME".to_owned(),
    };
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match (&global.kubeconfig, &global.context) {
        (Some(file), _) => {
            let kubeconfig = Kubeconfig::read_from(file).map_err(|e| unusable(chain(&e)))?;
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| unusable(chain(&e)))?
        }
        (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|e| unusable(chain(&e)))?,
        (None, None) => Config::infer().await.map_err(|e| unusable(chain(&e)))?,
    };
    // A person waits: the default would retry for minutes.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(10));
    config.read_timeout = silence;
    Client::try_from(config).map_err(|e| unusable(chain(&e)))
}

/// One Job in a cluster.
pub struct Target {
    /// The cluster.
    pub client: Client,
    /// Namespace of the Job.
    pub namespace: String,
    /// Name of the Job.
    pub job: String,
}

impl Target {
    /// Connects; does not ask whether the Job exists.
    pub async fn connect(global: &Global, job: &str) -> Result<Self, CliError> {
        Self::new(global, job, Some(SILENCE)).await
    }

    /// The same for what may be silent for long.
    pub async fn connect_to_follow(global: &Global, job: &str) -> Result<Self, CliError> {
        Self::new(global, job, None).await
    }

    async fn new(global: &Global, job: &str, silence: Option<Duration>) -> Result<Self, CliError> {
        let client = connect_with(global, silence).await?;
        let namespace = global.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok(Self { client, namespace, job: job.to_owned() })
    }

    /// The Job.
    pub async fn get(&self) -> Result<ComputeJob, CliError> {
        let api: Api<ComputeJob> = Api::namespaced(self.client.clone(), &self.namespace);
        let doing = format!("read Job {}/{}", self.namespace, self.job);
        match api.get_opt(&self.job).await {
            Ok(Some(job)) => Ok(job),
            Ok(None) => Err(CliError::failed_with(
                format!("Job {} not found in namespace {}", self.job, self.namespace),
                "kubectl get jobs.vendue.dev --all-namespaces",
            )),
            Err(error) => Err(CliError::kube(&doing, &error)),
        }
    }

    /// A request for a subresource of the aggregated API; `query` is already encoded.
    pub fn request(&self, subresource: &str, query: &str) -> Result<Request<Vec<u8>>, CliError> {
        let path = format!("{STREAM}/namespaces/{}/jobs/{}/{subresource}", self.namespace, self.job);
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        Request::get(uri).body(Vec::new()).map_err(|e| CliError::Usage(e.to_string()))
    }
}

/// Encodes a value for a query string.
pub fn encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Milliseconds since 1970 as people write time.
pub fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms} ms"), |t| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use http::Response;
    use kube::client::Body;
    use std::sync::{Arc, Mutex};

    /// What a fake cluster answers: path and query to status and body.
    pub type Answer = Box<dyn Fn(&str) -> (u16, Vec<u8>) + Send + Sync>;

    /// A Job in a fake cluster, and the requests that it saw.
    pub fn fake(answer: Answer) -> (Target, Arc<Mutex<Vec<String>>>) {
        let seen = Arc::new(Mutex::new(vec![]));
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().path_and_query().map(|p| p.to_string()).unwrap_or_default();
            log.lock().unwrap().push(format!("{} {uri}", request.method()));
            let (status, body) = answer(&uri);
            async move {
                Ok::<_, std::convert::Infallible>(
                    Response::builder().status(status).body(Body::from(body)).unwrap(),
                )
            }
        });
        let client = Client::new(service, "default");
        (Target { client, namespace: "team".into(), job: "digits".into() }, seen)
    }

    /// The body of an error.
    pub fn status(code: u16, message: &str) -> (u16, Vec<u8>) {
        let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": if code == 404 { "NotFound" } else { "Because" }, "code": code});
        (code, serde_json::to_vec(&body).unwrap())
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encode("models/a b.npz"), "models%2Fa%20b.npz");
        assert_eq!(encode("ä"), "%C3%A4");
    }

    #[test]
    fn times() {
        assert_eq!(time(1_767_225_600_000), "2026-01-01 00:00:00 UTC");
    }

    #[tokio::test]
    async fn a_cluster_that_does_not_answer_is_given_up() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        let server = format!("http://{}", silent.local_addr().unwrap());
        let config = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        std::fs::write(&file, config.to_string()).unwrap();
        let global = Global { kubeconfig: Some(file), ..Global::default() };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let target = Target::new(&global, "digits", Some(Duration::from_millis(50))).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(20), target.get()).await;
        let error = answer.expect("it is given up").unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
    }

    #[tokio::test]
    async fn a_missing_job_says_where_to_look() {
        let (target, seen) = fake(Box::new(|_| status(404, "jobs.vendue.dev \"digits\" not found")));
        let error = target.get().await.unwrap_err();
        assert_eq!(error.to_string(), "Job digits not found in namespace team");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(*seen.lock().unwrap(), ["GET /apis/vendue.dev/v1alpha1/namespaces/team/jobs/digits"]);
    }
}
