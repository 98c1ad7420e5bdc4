//! What is asked and told over HTTPS.
//!
//! | request | who | answer |
//! |---|---|---|
//! | `POST /v1/receipts` | agents | for each chain from where to go on; awards that are over |
//! | `GET /v1/chains` | agents | the node's chains that are not closed, as they are here |
//! | `GET /v1/awards/{id}/chains` | the seat | the chains of an award |
//! | `GET /v1/awards/{id}/chains/{name}/records?from=N` | the seat | encoded records, at most 256 KiB |
//!
//! Invariants: nothing of a body is read before the token was accepted; bodies are bounded; work on the disk is done in
//! blocking tasks, a few at a time; of an award only nodes that held its devices are told of.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use vendue_receipts::delivery::{Answer, Answered, Batch};
use vendue_receipts::{AwardId, Chain, ChainName};

use super::body::{Bodies, BodyError};
use super::book::Book;
use super::door::{Caller, Door, DoorError};
use super::error::BookError;
use super::node::Told as ToldChain;
use crate::award::Ledger;
use crate::metrics::Metrics;

/// Disk tasks at a time.
const AT_ONCE: usize = 8;

/// What the handlers share.
#[derive(Clone)]
pub struct Desk {
    /// Chains.
    pub book: Arc<Book>,
    /// Who may.
    pub door: Arc<Door>,
    /// Which awards there are.
    pub ledger: Arc<Ledger>,
    /// Metrics.
    pub metrics: Metrics,
    slots: Arc<Semaphore>,
    bodies: Bodies,
}

impl Desk {
    /// What is served.
    pub fn new(book: Arc<Book>, door: Door, ledger: Arc<Ledger>, metrics: Metrics) -> Self {
        let slots = Arc::new(Semaphore::new(AT_ONCE));
        Self { book, door: Arc::new(door), ledger, metrics, slots, bodies: Bodies::default() }
    }
}

/// The routes.
pub fn router(desk: Desk) -> Router {
    Router::new()
        .route("/v1/receipts", post(take))
        .route("/v1/chains", get(open_chains))
        .route("/v1/awards/{id}/chains", get(chains))
        .route("/v1/awards/{id}/chains/{name}/records", get(records))
        .with_state(desk)
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Door(#[from] DoorError),
    #[error("{0} does not do that")]
    Forbidden(&'static str),
    #[error("{field} {value:?}: {accepted}")]
    Malformed { field: &'static str, value: String, accepted: String },
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error(transparent)]
    Book(#[from] BookError),
    #[error("a task ended: {0}")]
    Task(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Door(DoorError::NoToken | DoorError::Unknown(_)) => StatusCode::UNAUTHORIZED,
            Self::Door(DoorError::Stranger(_) | DoorError::Unbound) | Self::Forbidden(_) => {
                StatusCode::FORBIDDEN
            }
            Self::Door(DoorError::Review(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Malformed { .. } => StatusCode::BAD_REQUEST,
            Self::Body(error) => error.status(),
            Self::Book(error) if error.is_senders() => StatusCode::CONFLICT,
            Self::Book(_) | Self::Task(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        tracing::debug!(%status, error = %self, "a request about receipts is refused");
        (status, format!("{self}\n")).into_response()
    }
}

impl Desk {
    async fn caller(&self, headers: &HeaderMap) -> Result<Caller, Refusal> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = value.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        Ok(self.door.caller(token.trim()).await?)
    }

    async fn agent(&self, headers: &HeaderMap) -> Result<String, Refusal> {
        match self.caller(headers).await? {
            Caller::Agent { node } => Ok(node),
            Caller::Seat => Err(Refusal::Forbidden("the seat")),
        }
    }

    async fn seat(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match self.caller(headers).await? {
            Caller::Seat => Ok(()),
            Caller::Agent { .. } => Err(Refusal::Forbidden("an agent")),
        }
    }

    /// Does what waits for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Book) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let task = |error: String| Refusal::Task(error);
        let slot = self.slots.clone().acquire_owned().await.map_err(|e| task(e.to_string()))?;
        let book = self.book.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&book);
            drop(slot);
            done
        });
        done.await.map_err(|e| task(e.to_string()))
    }
}

async fn take(State(desk): State<Desk>, request: Request) -> Result<Json<Answer>, Refusal> {
    let (head, body) = request.into_parts();
    let node = desk.agent(&head.headers).await?;
    // The place is held while what came is worked on: it is in memory until then.
    let (body, _place) = desk.bodies.read(&node, &head.headers, body).await?;
    let batch: Batch = serde_json::from_slice(&body).map_err(|error| Refusal::Malformed {
        field: "body",
        value: String::from_utf8_lossy(body.get(..64.min(body.len())).unwrap_or_default()).into_owned(),
        accepted: format!("a batch of records as JSON: {error}"),
    })?;
    let (from, said) = (node.clone(), batch.hours.clone());
    let answered = desk.on_disk(move |book| answers(book, &from, batch)).await?;
    let from = node.clone();
    let hours = desk.on_disk(move |book| book.take_hours(&from, &said)).await?;
    // What was said of the chains is not lost with it; the hours are told again.
    let hours = hours.unwrap_or_else(|error| {
        tracing::error!(node, %error, "statements of hours cannot be kept");
        vec![]
    });
    for answer in &answered {
        let result = if answer.error.is_some() { "refused" } else { "taken" };
        desk.metrics.receipts.with_label_values(&[result]).inc_by(answer.records);
    }
    let ended = ended(&desk, &node).await?;
    let chains = answered.into_iter().map(|told| told.answer()).collect();
    Ok(Json(Answer { chains, ended, book: Some(desk.book.id()), hours }))
}

/// The answer to one chain of a batch.
struct Told {
    name: ChainName,
    records: u64,
    next: Option<u64>,
    error: Option<String>,
    later: bool,
}

impl Told {
    fn answer(self) -> Answered {
        Answered { name: self.name, next: self.next, error: self.error, later: self.later }
    }
}

/// Takes chain by chain: one that is refused does not hold up the others.
fn answers(book: &Book, node: &str, batch: Batch) -> Vec<Told> {
    let take = |chain: vendue_receipts::delivery::Piece| {
        let (name, records) = (chain.name, chain.records.len() as u64);
        match book.take(node, name, &chain.records) {
            Ok(next) => Told { name, records, next, error: None, later: false },
            Err(error) => {
                if error.is_senders() {
                    tracing::error!(node, chain = %name, %error, "receipts that do not verify are refused");
                } else {
                    tracing::error!(node, chain = %name, %error, "receipts cannot be kept");
                }
                let later = !error.is_senders();
                Told { name, records, next: None, error: Some(error.to_string()), later }
            }
        }
    };
    batch.chains.into_iter().map(take).collect()
}

/// Awards with open chains of the node that are over.
async fn ended(desk: &Desk, node: &str) -> Result<Vec<AwardId>, Refusal> {
    let from = node.to_owned();
    // A node whose folder cannot be read was told so, chain by chain.
    let open = desk.on_disk(move |book| book.open_awards(&from)).await?.unwrap_or_default();
    Ok(open.into_iter().filter(|award| desk.ledger.is_over(&award.to_string()) == Some(true)).collect())
}

async fn open_chains(State(desk): State<Desk>, headers: HeaderMap) -> Result<Json<Vec<Chain>>, Refusal> {
    let node = desk.agent(&headers).await?;
    Ok(Json(desk.on_disk(move |book| book.open_chains(&node)).await??))
}

/// A chain as the seat is told of it.
#[derive(Debug, Serialize)]
struct ChainHead {
    name: ChainName,
    node: String,
    next: u64,
    closed: bool,
}

#[derive(Debug, Serialize)]
struct ChainHeads {
    chains: Vec<ChainHead>,
}

fn award_id(text: &str) -> Result<AwardId, Refusal> {
    text.parse().map_err(|error: vendue_receipts::NameError| Refusal::Malformed {
        field: "award",
        value: text.to_owned(),
        accepted: error.to_string(),
    })
}

async fn chains(
    State(desk): State<Desk>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<ChainHeads>, Refusal> {
    desk.seat(&headers).await?;
    let award = award_id(&id)?;
    let nodes = desk.ledger.nodes_of(&award.to_string());
    let told = desk.on_disk(move |book| book.of_award(award, &nodes)).await??;
    let head = |ToldChain { name, node, next, closed }| ChainHead { name, node, next, closed };
    Ok(Json(ChainHeads { chains: told.into_iter().map(head).collect() }))
}

#[derive(Debug, Deserialize)]
struct From {
    #[serde(default)]
    from: u64,
}

async fn records(
    State(desk): State<Desk>,
    headers: HeaderMap,
    Path((id, name)): Path<(String, String)>,
    Query(From { from }): Query<From>,
) -> Result<Response, Refusal> {
    desk.seat(&headers).await?;
    let award = award_id(&id)?;
    let chain = name.parse::<ChainName>().ok().filter(|chain| chain.award == award && !award.is_idle());
    let Some(chain) = chain else {
        let accepted = format!("the name of a chain of award {award}");
        return Err(Refusal::Malformed { field: "chain", value: name, accepted });
    };
    let nodes = desk.ledger.nodes_of(&award.to_string());
    let bytes = desk.on_disk(move |book| book.records(chain, &nodes, from)).await??;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}
