//! Client of Ray's Jobs REST API, one per head.
//!
//! Inputs: the head's address and token. Outputs: what Ray says, as the state machine reads it.
//! Invariants: every request has a timeout and a bound on the answer; an answer counts only when the head's session
//! was the same before and after it; submitting an id that Ray knows already is a success.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;
use vendue_controller_core::award::ray_job::{Detail, RayState, Seen, Times};
use vendue_controller_core::text;

/// Longest wait for an answer; a busy head needs a second or two.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of an answer: a job's log comes whole.
const MAX_ANSWER: usize = 4 << 20;

/// A request to Ray that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum RayError {
    /// The head could not be reached or did not answer in time.
    #[error("{operation}: {source}")]
    Transport {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The head answered with an error.
    #[error("{operation}: Ray answers {status}: {body}")]
    Status {
        /// What was tried.
        operation: &'static str,
        /// The status.
        status: StatusCode,
        /// Beginning of the answer.
        body: String,
    },
    /// The answer is not what Ray says.
    #[error("{operation}: answer not understood: {reason}")]
    Answer {
        /// What was tried.
        operation: &'static str,
        /// Why.
        reason: String,
    },
}

/// How a submission went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// Ray accepted it.
    New,
    /// Ray knew it already.
    Known,
}

#[derive(Deserialize)]
struct Version {
    session_name: String,
}

#[derive(Deserialize)]
struct Job {
    status: String,
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    start_time: Option<i64>,
    #[serde(default)]
    end_time: Option<i64>,
}

#[derive(Deserialize)]
struct Logs {
    logs: String,
}

/// Client for one head.
#[derive(Clone, Debug)]
pub struct RayClient {
    http: reqwest::Client,
    base: String,
    token: String,
}

/// Makes the HTTP client that all heads share.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    // Heads come and go; an idle connection to a dead one helps nobody.
    reqwest::Client::builder()
        .timeout(TIMEOUT)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(20))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

impl RayClient {
    /// A client for the head at `base`, for example `http://ray-head.ns.svc:8265`.
    pub fn new(http: reqwest::Client, base: String, token: String) -> Self {
        Self { http, base, token }
    }

    /// What Ray says about a submission. Silence is an answer too, so this fails only on nonsense.
    pub async fn observe(&self, id: &str) -> Seen {
        match self.try_observe(id).await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(%error, id, "Ray says nothing");
                Seen::Silent
            }
        }
    }

    async fn try_observe(&self, id: &str) -> Result<Seen, RayError> {
        let session = self.session().await?;
        let job = self.job(id).await?;
        let seen = match job {
            None => Seen::Unknown { session: session.clone() },
            Some(job) => self.describe(id, session.clone(), job).await?,
        };
        // A head that restarted in between would make a lost job look like one that was never submitted.
        Ok(if self.session().await? == session { seen } else { Seen::Silent })
    }

    async fn describe(&self, id: &str, session: String, job: Job) -> Result<Seen, RayError> {
        let state = RayState::parse(&job.status).ok_or_else(|| RayError::Answer {
            operation: "read a job",
            reason: format!("status {:?}", text::head(&job.status, 32)),
        })?;
        let mut detail =
            Detail { message: headline(job.message.as_deref().unwrap_or_default()), ..Detail::default() };
        if matches!(state, RayState::Failed | RayState::Stopped) {
            // The reason of most failures is only in the log; without it the outcome stands all the same.
            let logs = self.logs(id).await.unwrap_or_default();
            detail.log_tail = text::log_tail(if logs.is_empty() {
                job.message.as_deref().unwrap_or_default()
            } else {
                &logs
            });
        }
        let time = |ms: Option<i64>| ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let times = Times { started: time(job.start_time), ended: time(job.end_time) };
        Ok(Seen::Job { session, state, detail, times })
    }

    /// Name of the head's session; it changes when the head restarts.
    pub async fn session(&self) -> Result<String, RayError> {
        let operation = "read the session";
        let answer = self.send(operation, self.http.get(format!("{}/api/version", self.base))).await?;
        let version: Version = self.read(operation, answer).await?;
        Ok(text::head(&version.session_name, 128))
    }

    async fn job(&self, id: &str) -> Result<Option<Job>, RayError> {
        let operation = "read a job";
        let request = self.http.get(format!("{}/api/jobs/{id}", self.base));
        match self.send(operation, request).await {
            Err(RayError::Status { status, .. }) if status == StatusCode::NOT_FOUND => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => self.read(operation, answer).await.map(Some),
        }
    }

    async fn logs(&self, id: &str) -> Result<String, RayError> {
        let operation = "read a log";
        let answer = self.send(operation, self.http.get(format!("{}/api/jobs/{id}/logs", self.base))).await?;
        let logs: Logs = self.read(operation, answer).await?;
        Ok(logs.logs)
    }

    /// Submits an entry point under an id, once: asks first, and takes Ray's complaint about a known id as success.
    pub async fn submit(&self, id: &str, entrypoint: &str) -> Result<Submitted, RayError> {
        let operation = "submit a job";
        if self.job(id).await?.is_some() {
            return Ok(Submitted::Known);
        }
        let body = json!({ "entrypoint": entrypoint, "submission_id": id });
        let request = self.http.post(format!("{}/api/jobs/", self.base)).json(&body);
        match self.send(operation, request).await {
            Ok(_) => Ok(Submitted::New),
            // Ray answers 500 with a traceback to an id that it knows; and a time-out may come after it took the job.
            Err(error) => match self.job(id).await {
                Ok(Some(_)) => Ok(Submitted::Known),
                _ => Err(error),
            },
        }
    }

    /// Stops a job; one that Ray does not know is stopped.
    pub async fn stop(&self, id: &str) -> Result<(), RayError> {
        let operation = "stop a job";
        match self.send(operation, self.http.post(format!("{}/api/jobs/{id}/stop", self.base))).await {
            Err(RayError::Status { status, .. }) if status == StatusCode::NOT_FOUND => Ok(()),
            other => other.map(drop),
        }
    }

    async fn send(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<reqwest::Response, RayError> {
        let answer = request
            .bearer_auth(&self.token)
            .send()
            .await
            .map_err(|source| RayError::Transport { operation, source })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = bounded(operation, answer).await.unwrap_or_default();
        let body = text::tail(String::from_utf8_lossy(&body).trim(), 300);
        Err(RayError::Status { operation, status, body })
    }

    async fn read<T: serde::de::DeserializeOwned>(
        &self,
        operation: &'static str,
        answer: reqwest::Response,
    ) -> Result<T, RayError> {
        let bytes = bounded(operation, answer).await?;
        serde_json::from_slice(&bytes).map_err(|e| RayError::Answer { operation, reason: e.to_string() })
    }
}

/// Reads an answer up to the bound: the head runs a stranger's code.
async fn bounded(operation: &'static str, mut answer: reqwest::Response) -> Result<Vec<u8>, RayError> {
    let mut bytes = Vec::new();
    while let Some(chunk) =
        answer.chunk().await.map_err(|source| RayError::Transport { operation, source })?
    {
        if bytes.len() + chunk.len() > MAX_ANSWER {
            return Err(RayError::Answer { operation, reason: format!("more than {MAX_ANSWER} bytes") });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Ray's message without the log that it appends.
fn headline(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    text::head(first.split(", last available logs").next().unwrap_or_default(), 300)
}

#[cfg(test)]
mod tests;
