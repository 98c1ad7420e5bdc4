//! Client of the couriers: HTTP inside the cluster, with the token of the award.
//!
//! Invariant: what comes from a courier is a stranger's data: bounded, checked, never trusted.

use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use reqwest::Response;
use vendue_crds::names;

use crate::bridge::cluster::{Cluster, ClusterError};
use crate::courier::{LOG_SIZE, Manifest};
use crate::net::{CHUNK, MAX_HANDOVER};
use crate::wire::{FileEntry, FrameError, MAX_FILES, check_manifest};

/// Why the courier's bytes cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// The HTTP client cannot be built.
    #[error("build the HTTP client: {0}")]
    Build(reqwest::Error),
    /// The token cannot be read.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The award has no token (any more).
    #[error("the award has no courier")]
    NoToken,
    /// The courier did not answer.
    #[error("ask the courier for {what}: {source}")]
    Http {
        /// What was asked for.
        what: &'static str,
        /// Why.
        source: reqwest::Error,
    },
    /// The courier refused.
    #[error("the courier answers {status} when asked for {what}")]
    Status {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        status: u16,
    },
    /// The answer is not what it should be.
    #[error("the courier's answer: {0}")]
    Answer(String),
    /// The outputs cannot be described in a manifest.
    #[error("the outputs cannot be delivered: {0}")]
    Outputs(#[from] FrameError),
}

/// Reads logs and outputs of awards.
#[derive(Clone)]
pub struct CourierClient {
    cluster: Cluster,
    http: reqwest::Client,
}

/// The courier of one award.
#[derive(Clone)]
pub(super) struct Courier {
    http: reqwest::Client,
    base: String,
    token: String,
}

impl CourierClient {
    /// A client; no proxy is ever used, and no redirection followed: the address belongs to a stranger's Pod, which could
    /// send this process to places that the Pod itself may not reach.
    pub fn new(cluster: Cluster) -> Result<Self, CourierError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(3))
            .timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(8)
            .build()
            .map_err(CourierError::Build)?;
        Ok(Self { cluster, http })
    }

    /// The courier of an award.
    pub(super) async fn of(&self, award_id: &str) -> Result<Courier, CourierError> {
        let namespace = names::award_namespace(award_id);
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client.clone(), &namespace);
        let secret =
            self.cluster.get("tokens", &secrets, names::TOKENS_SECRET).await?.ok_or(CourierError::NoToken)?;
        let token = secret
            .data
            .and_then(|mut data| data.remove(names::COURIER_TOKEN_KEY))
            .and_then(|bytes| String::from_utf8(bytes.0).ok())
            .ok_or(CourierError::NoToken)?;
        let base = format!("http://{}.{namespace}.svc:{}", names::HEAD_SERVICE, names::COURIER_PORT);
        Ok(Courier { http: self.http.clone(), base, token: token.trim().to_owned() })
    }
}

#[cfg(test)]
impl Courier {
    /// A courier at an address, without the cluster.
    pub(super) fn at(base: String, token: &str) -> Self {
        Self { http: reqwest::Client::new(), base, token: token.to_owned() }
    }
}

impl Courier {
    async fn get(
        &self,
        what: &'static str,
        path: &str,
        query: &[(&str, String)],
    ) -> Result<Response, CourierError> {
        let request = self.http.get(format!("{}{path}", self.base)).query(query).bearer_auth(&self.token);
        let response = request.send().await.map_err(|source| CourierError::Http { what, source })?;
        if !response.status().is_success() {
            return Err(CourierError::Status { what, status: response.status().as_u16() });
        }
        Ok(response)
    }

    /// At most `max` bytes of a response.
    async fn body(what: &'static str, mut response: Response, max: usize) -> Result<Bytes, CourierError> {
        let mut body = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|source| CourierError::Http { what, source })?
        {
            if body.len() + chunk.len() > max {
                return Err(CourierError::Answer(format!("{what} is longer than {max} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.into())
    }

    /// A piece of the log, and its size so far.
    pub(super) async fn log(&self, offset: u64) -> Result<(Bytes, u64), CourierError> {
        let response = self.get("log", "/v1/log", &[("offset", offset.to_string())]).await?;
        let size =
            response.headers().get(LOG_SIZE).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        let size = size.ok_or_else(|| CourierError::Answer("no size of the log".to_owned()))?;
        Ok((Self::body("log", response, CHUNK).await?, size))
    }

    /// The outputs. Hashing large files takes the courier a while.
    pub(super) async fn manifest(&self) -> Result<Vec<FileEntry>, CourierError> {
        let response = match self.get("manifest", "/v1/manifest", &[]).await {
            Err(CourierError::Status { status: 413, .. }) => {
                return Err(CourierError::Outputs(FrameError::TooMany {
                    what: "output files",
                    max: MAX_FILES,
                }));
            }
            other => other?,
        };
        let too_long = FrameError::TooMany { what: "bytes of paths and digests", max: MAX_HANDOVER };
        if response.content_length().is_some_and(|len| len > MAX_HANDOVER as u64) {
            return Err(too_long.into());
        }
        let body = Self::body("manifest", response, MAX_HANDOVER).await?;
        let manifest: Manifest =
            serde_json::from_slice(&body).map_err(|e| CourierError::Answer(e.to_string()))?;
        check_manifest(&manifest.files)?;
        Ok(manifest.files)
    }

    /// A piece of an output.
    pub(super) async fn file(&self, path: &str, offset: u64) -> Result<Bytes, CourierError> {
        let query = [("path", path.to_owned()), ("offset", offset.to_string())];
        let response = self.get("file", "/v1/file", &query).await?;
        Self::body("file", response, CHUNK).await
    }
}
