//! The courier: a container beside the Ray head that serves the driver's log and the outputs to the auction process.
//!
//! Inputs: the award's volume and Ray's log folder, both written by a stranger's program; the token. Outputs: HTTP with a
//! bearer token. Invariant: only regular files below the two folders are read; no symbolic link is ever followed,
//! because each step of a path is opened relative to the one before with `O_NOFOLLOW`.

mod beneath;
mod log;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

pub use beneath::BeneathError;

use crate::wire::{FileEntry, MAX_FILES, sound_path};

/// Header with the size of the whole log.
pub const LOG_SIZE: &str = "x-vendue-log-size";
/// Most bytes of one response.
pub const CHUNK: usize = 256 << 10;

/// Where the courier finds things.
#[derive(Debug, Clone)]
pub struct CourierConfig {
    /// Address to serve on.
    pub listen: SocketAddr,
    /// File with the token.
    pub token_file: PathBuf,
    /// Mount of the award's volume; outputs are in its folder `outputs`.
    pub volume: PathBuf,
    /// Ray's folder with its sessions.
    pub ray_logs: PathBuf,
}

/// Why the courier ended.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// The token cannot be read.
    #[error("read the token {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The token is too short to keep anybody out.
    #[error("the token in {0} has fewer than 16 characters")]
    ShortToken(PathBuf),
    /// The address cannot be bound.
    #[error("listen on {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
    /// The server failed.
    #[error("serve: {0}")]
    Serve(std::io::Error),
}

/// Size, modification time and digest of files that were hashed before.
type Digests = Mutex<BTreeMap<String, (u64, i128, String)>>;

struct Shared {
    token: String,
    outputs: PathBuf,
    ray_logs: PathBuf,
    digests: Digests,
}

/// Serves until SIGTERM.
pub async fn run(config: CourierConfig) -> Result<(), CourierError> {
    let token = std::fs::read_to_string(&config.token_file)
        .map_err(|source| CourierError::Token { path: config.token_file.clone(), source })?;
    let token = token.trim().to_owned();
    if token.len() < 16 {
        return Err(CourierError::ShortToken(config.token_file));
    }
    let listener = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|e| CourierError::Bind(config.listen, e))?;
    tracing::info!(listen = %config.listen, "courier serves");
    axum::serve(listener, router(token, config.volume.join("outputs"), config.ray_logs))
        .with_graceful_shutdown(crate::signals::terminated())
        .await
        .map_err(CourierError::Serve)
}

/// The routes; all but the health check ask for the token.
pub fn router(token: String, outputs: PathBuf, ray_logs: PathBuf) -> Router {
    let shared = Arc::new(Shared { token, outputs, ray_logs, digests: Mutex::default() });
    Router::new()
        .route("/v1/log", get(log_chunk))
        .route("/v1/manifest", get(manifest))
        .route("/v1/file", get(file_chunk))
        .route_layer(middleware::from_fn_with_state(shared.clone(), authorize))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(shared)
}

async fn authorize(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .unwrap_or_default();
    if !constant_time_eq(given.as_bytes(), shared.token.as_bytes()) {
        return (StatusCode::UNAUTHORIZED, "the bearer token is missing or wrong").into_response();
    }
    next.run(request).await
}

/// Compares without leaving early, so that the time does not tell how much of a guess is right.
fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0u8, |diff, (x, y)| std::hint::black_box(diff | (x ^ y))) == 0
}

#[derive(Deserialize)]
struct At {
    #[serde(default)]
    offset: u64,
}

#[derive(Deserialize)]
struct FileAt {
    path: String,
    #[serde(default)]
    offset: u64,
}

/// The files of the outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Files sorted by path.
    pub files: Vec<FileEntry>,
}

/// An error as a response.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<BeneathError> for Refusal {
    fn from(error: BeneathError) -> Self {
        let code = match error {
            BeneathError::NotFound(_) => StatusCode::NOT_FOUND,
            BeneathError::NotPlain(_) => StatusCode::BAD_REQUEST,
            BeneathError::TooMany(_) => StatusCode::PAYLOAD_TOO_LARGE,
            BeneathError::Io { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(code, error.to_string())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BeneathError> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn log_chunk(State(shared): State<Arc<Shared>>, Query(at): Query<At>) -> Result<Response, Refusal> {
    let (data, size) = blocking(move || log::read(&shared.ray_logs, at.offset, CHUNK)).await?;
    Ok(([(HeaderName::from_static(LOG_SIZE), HeaderValue::from(size))], data).into_response())
}

async fn manifest(State(shared): State<Arc<Shared>>) -> Result<Json<Manifest>, Refusal> {
    let files = blocking(move || entries(&shared)).await?;
    Ok(Json(Manifest { files }))
}

/// Every regular file of the outputs with its digest; digests of unchanged files are remembered.
fn entries(shared: &Shared) -> Result<Vec<FileEntry>, BeneathError> {
    let mut known = shared.digests.lock().unwrap_or_else(PoisonError::into_inner);
    let mut files = Vec::new();
    let mut next = BTreeMap::new();
    for path in beneath::walk(&shared.outputs, MAX_FILES)? {
        let file = match beneath::open(&shared.outputs, &path) {
            Err(BeneathError::NotFound(_)) => continue,
            other => other?,
        };
        let (size, modified) = beneath::stamp(&file, &path)?;
        let (size, sha256) = match known.get(&path) {
            Some((s, m, digest)) if (*s, *m) == (size, modified) => (size, digest.clone()),
            _ => beneath::sha256(file, &path)?,
        };
        next.insert(path.clone(), (size, modified, sha256.clone()));
        files.push(FileEntry { path, size, sha256 });
    }
    *known = next;
    Ok(files)
}

async fn file_chunk(
    State(shared): State<Arc<Shared>>,
    Query(at): Query<FileAt>,
) -> Result<Response, Refusal> {
    if !sound_path(&at.path) {
        return Err(Refusal(
            StatusCode::BAD_REQUEST,
            "path must be relative, with plain components".to_owned(),
        ));
    }
    let data = blocking(move || {
        let file = beneath::open(&shared.outputs, &at.path)?;
        beneath::read_at(file, &at.path, at.offset, CHUNK)
    })
    .await?;
    Ok(data.into_response())
}
