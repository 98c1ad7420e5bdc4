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
use vendue_receipts::delivery::{Answer, Answered, Batch, Piece};
use vendue_receipts::{AwardId, Chain};

use crate::meter::{Counter, Next};
use crate::metrics::Metrics;

const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(30);
/// Below the time for which the controller waits for the last receipts of a run (25 s).
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
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
                Ok(Told::Some(then)) => {
                    self.metrics.count_delivery(true);
                    asked = Some(Instant::now());
                    pause = match then {
                        Then::More => Duration::ZERO,
                        Then::Look => look,
                        Then::Later => longer(pause, look),
                    };
                }
                Err(error) => {
                    self.metrics.count_delivery(false);
                    // A new authority or token may be there by the next time.
                    self.client = None;
                    pause = longer(pause, look);
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
                let heard = self.counter.adopt(chains);
                Ok(Told::Some(if heard { Then::More } else { Then::Look }))
            }
            Some(Next::Batch(batch)) if batch == Batch::default() && !must_ask => Ok(Told::Nothing),
            Some(Next::Batch(batch)) => {
                let answer = self.tell(&batch).await?;
                let then = then(&batch, &answer);
                self.ended.send_replace(answer.ended.iter().copied().collect());
                let heard = self.counter.answered(answer);
                Ok(Told::Some(if heard { then } else { Then::Look }))
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
    Some(Then),
}

/// When to tell on.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    More,
    Look,
    Later,
}

/// At once only when something was taken: an answer that changes nothing would be asked for without end.
fn then(batch: &Batch, answer: &Answer) -> Then {
    if answer.chains.iter().any(|told| told.later) {
        return Then::Later;
    }
    let is_clean = answer.chains.iter().all(|told| told.error.is_none());
    let moved = |(piece, told): (&Piece, &Answered)| {
        let first = piece.records.first().map(|record| record.sequence);
        piece.name == told.name && told.next.is_none_or(|next| first.is_none_or(|first| next > first))
    };
    let moved = batch.chains.iter().zip(&answer.chains).any(moved);
    if is_clean && moved { Then::More } else { Then::Look }
}

fn longer(pause: Duration, look: Duration) -> Duration {
    (pause.max(look) * 2).min(LONGEST_PAUSE)
}

fn read(path: &Path) -> Result<String, DeliverError> {
    std::fs::read_to_string(path).map_err(|source| DeliverError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use vendue_receipts::{Body, BootId, ChainName, NodeKey, Opened};

    use super::*;

    #[test]
    fn telling_goes_on_at_once_only_when_something_was_taken() {
        let key = NodeKey::from_bytes(&[1; 32]).unwrap();
        let name = ChainName::new(AwardId::IDLE, key.public());
        let body = Body::Opened(Opened { public_key: key.public(), boot: BootId([1; 16]), time_ms: 0 });
        let record = Chain::new(AwardId::IDLE, 0).sign(body, &key).unwrap();
        let batch = |records| Batch { chains: vec![Piece { name, records }], hours: vec![] };
        let (told, head) = (batch(vec![record]), batch(vec![]));
        let answered = |next, error: Option<&str>, later| Answer {
            chains: vec![Answered { name, next, error: error.map(str::to_owned), later }],
            ..Answer::default()
        };
        let cases = [
            (&told, answered(Some(1), None, false), Then::More),
            (&told, answered(None, None, false), Then::More),
            (&told, answered(Some(0), None, false), Then::Look),
            (&told, answered(None, Some("two stories"), false), Then::Look),
            (&told, answered(None, Some("the disk is full"), true), Then::Later),
            (&told, Answer::default(), Then::Look),
            (&head, answered(Some(0), None, false), Then::More),
            (&Batch::default(), Answer::default(), Then::Look),
        ];
        for (batch, answer, expected) in cases {
            assert_eq!(then(batch, &answer), expected, "{answer:?}");
        }
        let look = Duration::from_secs(2);
        let pauses = std::iter::successors(Some(look), |pause| Some(longer(*pause, look)));
        assert_eq!(pauses.take(4).map(|pause| pause.as_secs()).collect::<Vec<_>>(), [2, 4, 8, 10]);
    }
}
