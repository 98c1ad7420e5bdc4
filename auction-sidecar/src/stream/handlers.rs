//! Routes and handlers.
//!
//! Invariant: the first thing that a handler of a Job does is [`admit`].

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use super::backend::{Backend, Place};
use super::identity::{FrontProxy, Trusted};
use super::status::ApiStatus;
use super::{discovery, logs};
use crate::metrics::Metrics;
use crate::receipts::Shelf;
use crate::store::{Store, StoreError};

/// Bytes read from a stored file at once.
const READ: usize = 256 << 10;

/// What handlers share.
pub struct Shared<B> {
    /// Cluster and network.
    pub backend: B,
    /// Outputs and logs of Jobs that ended.
    pub store: Arc<Store>,
    /// Receipts of Jobs; none when they cannot be read.
    pub receipts: Option<Arc<Shelf>>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// The routes. Requests must carry the extensions `Trusted` and `Arc<FrontProxy>`.
pub fn router<B: Backend>(shared: Arc<Shared<B>>) -> Router {
    let job = "/apis/stream.vendue.dev/v1alpha1/namespaces/{namespace}/jobs/{name}";
    Router::new()
        .route(&format!("{job}/log"), get(log::<B>))
        .route(&format!("{job}/outputs"), get(outputs::<B>))
        .route(&format!("{job}/receipts"), get(receipts::<B>))
        .route("/apis/stream.vendue.dev/v1alpha1", get(discovery::resources))
        .route("/apis/stream.vendue.dev", get(discovery::one_group))
        .route("/apis", get(discovery::groups))
        .fallback(|| async { ApiStatus::not_found("the path is not served") })
        .layer(middleware::from_fn_with_state(shared.clone(), count::<B>))
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .with_state(shared)
}

async fn count<B: Backend>(State(shared): State<Arc<Shared<B>>>, request: Request, next: Next) -> Response {
    let resource = match request.uri().path() {
        path if path.ends_with("/log") => "log",
        path if path.ends_with("/outputs") => "outputs",
        path if path.ends_with("/receipts") => "receipts",
        _ => "other",
    };
    let response = next.run(request).await;
    shared.metrics.stream_requests.with_label_values(&[resource, response.status().as_str()]).inc();
    response
}

/// Lets a request pass that comes through the API server, from a user who may get this subresource.
async fn admit<B: Backend>(
    shared: &Shared<B>,
    trusted: Trusted,
    proxy: &FrontProxy,
    headers: &HeaderMap,
    (namespace, name): (&str, &str),
    subresource: &'static str,
) -> Result<(), ApiStatus> {
    let user = Some(trusted)
        .filter(|t| t.0)
        .and_then(|_| proxy.user(headers))
        .ok_or_else(ApiStatus::unauthorized)?;
    match shared.backend.authorize(&user, namespace, name, subresource).await? {
        true => Ok(()),
        false => Err(ApiStatus::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!(
                "user {:?} cannot get jobs/{subresource} of {namespace}/{name} in group {}",
                user.name,
                super::GROUP
            ),
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogQuery {
    #[serde(default)]
    follow: bool,
    tail_lines: Option<u64>,
}

async fn log<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Extension(trusted): Extension<Trusted>,
    Extension(proxy): Extension<Arc<FrontProxy>>,
    Path((namespace, name)): Path<(String, String)>,
    query: Result<Query<LogQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiStatus> {
    admit(&shared, trusted, &proxy, &headers, (&namespace, &name), "log").await?;
    let Query(query) = query.map_err(|e| ApiStatus::bad_request(e.body_text()))?;
    let stream = logs::stream(shared, namespace, name, query.follow, query.tail_lines).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response())
}

/// Clients that wait ask again at this answer.
const ON_THE_WAY: &str = "the outputs are being delivered; ask again in a moment";

#[derive(Deserialize)]
struct OutputQuery {
    path: Option<String>,
}

async fn outputs<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Extension(trusted): Extension<Trusted>,
    Extension(proxy): Extension<Arc<FrontProxy>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<OutputQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiStatus> {
    admit(&shared, trusted, &proxy, &headers, (&namespace, &name), "outputs").await?;
    let located = shared.backend.locate(&namespace, &name).await?;
    let index = match shared.store.job(&located.uid) {
        Ok(index) if index.complete => index,
        Ok(_) => return Err(ApiStatus::unavailable(ON_THE_WAY)),
        // It has ended, and its provider has not begun to deliver.
        Err(StoreError::UnknownJob(_))
            if located.ended && matches!(located.place, Place::Provider { .. }) =>
        {
            return Err(ApiStatus::unavailable(ON_THE_WAY));
        }
        Err(StoreError::UnknownJob(_)) => {
            return Err(ApiStatus::not_found(why_nothing(&located.place, located.ended)));
        }
        Err(error) => return Err(error.into()),
    };
    let Some(path) = query.path else {
        return Ok(Json(json!({ "files": index.outputs() })).into_response());
    };
    let uid = located.uid;
    if path == crate::wire::LOG_PATH {
        return Err(ApiStatus::not_found("the log is another subresource"));
    }
    let (file, entry) = blocking(move || shared.store.open_file(&uid, &path)).await?;
    let stream = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), READ);
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, entry.size.to_string()),
        (header::ETAG, format!("\"{}\"", entry.sha256)),
    ];
    Ok((headers, Body::from_stream(stream)).into_response())
}

/// What of receipts is wanted.
#[derive(Debug, Default, Deserialize)]
struct ReceiptsQuery {
    /// Only how far they are.
    #[serde(default)]
    heads: bool,
}

async fn receipts<B: Backend>(
    State(shared): State<Arc<Shared<B>>>,
    Extension(trusted): Extension<Trusted>,
    Extension(proxy): Extension<Arc<FrontProxy>>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Query<ReceiptsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiStatus> {
    admit(&shared, trusted, &proxy, &headers, (&namespace, &name), "receipts").await?;
    let (job, awards) = shared.backend.awards(&namespace, &name).await?;
    let shelf = shared.receipts.clone().ok_or_else(|| {
        ApiStatus::unavailable("this cluster cannot read its receipts; the log of vendue-auction says why")
    })?;
    if query.heads {
        return Ok(Json(super::receipts::heads(shelf, job, awards).await?).into_response());
    }
    let stream = super::receipts::stream(shelf, job, awards).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response())
}

fn why_nothing(place: &Place, ended: bool) -> String {
    match place {
        Place::Nowhere(state) if ended => format!("the job has no outputs: {state}"),
        Place::Nowhere(state) => format!("the job has no outputs yet: {state}"),
        Place::Provider { .. } => "the job has no outputs yet: they are delivered when it ends".to_owned(),
    }
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, ApiStatus> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            Err(ApiStatus::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string()))
        }
    }
}
