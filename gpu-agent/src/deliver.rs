//! Receipts on their way to the controller.
//!
//! Inputs: batches of the metering thread. Outputs: answers to it, and the awards that are over. Invariants: what is not
//! acknowledged is told again, so a record arrives at least once and the receiver sorts out what it knows; nothing here
//! decides what is metered, and a controller that is away for days costs nothing but disk.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use vendue_receipts::delivery::{Answer, Batch};
use vendue_receipts::{AwardId, Chain};

use crate::meter::{Counter, Next};
use crate::metrics::Metrics;

const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Longest answer: some bytes for each chain.
const MAX_ANSWER: usize = 4 << 20;

/// Where receipts go.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// `https://host:port` of the controller.
    pub url: String,
    /// File with the certificate authority of the controller.
    pub ca: PathBuf,
    /// File with the token of this node's agent; kubelet renews it.
    pub token: PathBuf,
}

/// How often receipts are told.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How often it is looked whether there is something to tell.
    pub look: Duration,
    /// The controller is asked so often at least, for it says which awards are over.
    pub ask: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look: Duration::from_secs(2), ask: Duration::from_secs(30) }
    }
}

/// Why receipts do not arrive.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// A file cannot be read.
    #[error("read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No client can be made.
    #[error("trust {}: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// The controller does not answer.
    #[error("{operation} at the controller: {source}")]
    Http {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The controller refuses.
    #[error("{operation}: the controller answers {status}: {text}")]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Its answer.
        status: StatusCode,
        /// What it says.
        text: String,
    },
    /// The controller answers something else.
    #[error("{operation}: an answer that is none: {reason}")]
    Answer {
        /// What was tried.
        operation: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Tells receipts.
pub struct Deliverer {
    receiver: Receiver,
    pace: Pace,
    counter: Counter,
    ended: watch::Sender<BTreeSet<AwardId>>,
    metrics: Arc<Metrics>,
    client: Option<reqwest::Client>,
}

impl Deliverer {
    /// A deliverer that has told nothing yet.
    #[must_use]
    pub fn new(
        receiver: Receiver,
        pace: Pace,
        counter: Counter,
        ended: watch::Sender<BTreeSet<AwardId>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { receiver, pace, counter, ended, metrics, client: None }
    }

    /// Delivers until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let Pace { look, ask } = self.pace;
        let (mut asked, mut pause) = (None::<Instant>, look);
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            let must_ask = asked.is_none_or(|at| at.elapsed() >= ask);
            let told = tokio::select! {
                told = self.turn(must_ask) => told,
                () = stop.cancelled() => return,
            };
            match told {
                Ok(Told::Nothing) => pause = look,
                Ok(Told::Some { more }) => {
                    self.metrics.count_delivery(true);
                    (asked, pause) = (Some(Instant::now()), if more { Duration::ZERO } else { look });
                }
                Err(error) => {
                    self.metrics.count_delivery(false);
                    // A new authority or token may be there by the next time.
                    self.client = None;
                    pause = (pause.max(look) * 2).min(LONGEST_PAUSE);
                    tracing::warn!(%error, again_in = ?pause, "receipts are not delivered yet");
                }
            }
        }
    }

    async fn turn(&mut self, must_ask: bool) -> Result<Told, DeliverError> {
        match self.counter.next().await {
            None => Ok(Told::Nothing),
            Some(Next::Adopt) => {
                let chains = self.chains().await?;
                self.counter.adopt(chains);
                Ok(Told::Some { more: true })
            }
            Some(Next::Batch(batch)) if batch == Batch::default() && !must_ask => Ok(Told::Nothing),
            Some(Next::Batch(batch)) => {
                let answer = self.tell(&batch).await?;
                let clean = answer.chains.iter().all(|chain| chain.error.is_none());
                self.ended.send_replace(answer.ended.iter().copied().collect());
                let heard = self.counter.answered(answer);
                Ok(Told::Some { more: heard && clean && !batch.chains.is_empty() })
            }
        }
    }

    async fn tell(&mut self, batch: &Batch) -> Result<Answer, DeliverError> {
        let operation = "tell receipts";
        let request = self.client()?.post(format!("{}/v1/receipts", self.receiver.url)).json(batch);
        self.ask(operation, request).await
    }

    async fn chains(&mut self) -> Result<Vec<Chain>, DeliverError> {
        let request = self.client()?.get(format!("{}/v1/chains", self.receiver.url));
        self.ask("ask where chains stand", request).await
    }

    fn client(&mut self) -> Result<reqwest::Client, DeliverError> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let path = &self.receiver.ca;
        let failed = |source| DeliverError::Authority { path: path.clone(), source };
        let authority = reqwest::Certificate::from_pem_bundle(read(path)?.as_bytes()).map_err(failed)?;
        let client = reqwest::Client::builder()
            .tls_certs_only(authority)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .timeout(REQUEST)
            .pool_max_idle_per_host(1)
            .build()
            .map_err(failed)?;
        self.client = Some(client.clone());
        Ok(client)
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        operation: &'static str,
        request: reqwest::RequestBuilder,
    ) -> Result<T, DeliverError> {
        let token = read(&self.receiver.token)?;
        let failed = |source| DeliverError::Http { operation, source };
        let mut answer = request.bearer_auth(token.trim()).send().await.map_err(failed)?;
        let (status, mut body) = (answer.status(), vec![]);
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let reason = format!("it is longer than {MAX_ANSWER} bytes");
                return Err(DeliverError::Answer { operation, reason });
            }
            body.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            let text: String = String::from_utf8_lossy(&body).trim().chars().take(256).collect();
            return Err(DeliverError::Refused { operation, status, text });
        }
        serde_json::from_slice(&body)
            .map_err(|error| DeliverError::Answer { operation, reason: error.to_string() })
    }
}

/// What a turn did.
enum Told {
    Nothing,
    Some { more: bool },
}

fn read(path: &Path) -> Result<String, DeliverError> {
    std::fs::read_to_string(path).map_err(|source| DeliverError::File { path: path.to_owned(), source })
}
