//! Who may tell receipts and who may read them: tokens of service accounts, reviewed by the API server.
//!
//! Inputs: the token of a request. Output: a [`Caller`]. Invariants: the node that an agent speaks for is the one that its
//! token is bound to, never one that it names; a review is believed for a minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::{Api, PostParams};
use tokio::sync::Semaphore;
use vendue_crds::names;

use crate::io::{IoError, timed};

/// For how long a review is believed.
const BELIEVED: Duration = Duration::from_secs(60);
/// Most reviews that are remembered.
const REMEMBERED: usize = 8_192;
/// Reviews at a time.
const REVIEWS: usize = 16;
/// Longest token; those of service accounts are below 2 KiB.
const MAX_TOKEN: usize = 16 << 10;
/// Where the API server says to which node a token is bound.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// The agent on this node.
    Agent {
        /// The node.
        node: String,
    },
    /// The seat of this cluster.
    Seat,
}

/// Why somebody is not let in.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// Without a token.
    #[error("no bearer token")]
    NoToken,
    /// The API server does not know the token, or not for this audience.
    #[error("the API server does not accept the token: {0}")]
    Unknown(String),
    /// Nobody who has business here.
    #[error("{0} may neither tell nor read receipts")]
    Stranger(String),
    /// An agent's token that is bound to no node.
    #[error(
        "the token of the agent is bound to no node; accepted: a token that kubelet projects into a Pod, from Kubernetes 1.32 on"
    )]
    Unbound,
    /// The review failed.
    #[error(transparent)]
    Review(#[from] IoError),
}

/// Reviews tokens.
pub struct Door {
    api: Api<TokenReview>,
    namespace: String,
    known: Mutex<HashMap<String, (Caller, Instant)>>,
    reviews: Semaphore,
}

impl Door {
    /// A door to receipts of the Vendue in `namespace`.
    pub fn new(client: kube::Client, namespace: &str) -> Self {
        Self {
            api: Api::all(client),
            namespace: namespace.to_owned(),
            known: Mutex::default(),
            reviews: Semaphore::new(REVIEWS),
        }
    }

    /// Whose token this is.
    pub async fn caller(&self, token: &str) -> Result<Caller, DoorError> {
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(DoorError::NoToken);
        }
        if let Some(caller) = self.remembered(token, Instant::now()) {
            return Ok(caller);
        }
        let Ok(_slot) = self.reviews.acquire().await else { return Err(DoorError::NoToken) };
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![names::RECEIPTS_AUDIENCE.to_owned()]),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let review = timed("review a token", self.api.create(&params, &review)).await?;
        let status = review.status.unwrap_or_default();
        let meant = status.audiences.iter().flatten().any(|audience| audience == names::RECEIPTS_AUDIENCE);
        if status.authenticated != Some(true) || !meant {
            return Err(DoorError::Unknown(status.error.unwrap_or_else(|| "not authenticated".to_owned())));
        }
        let caller = judge(&self.namespace, status.user.unwrap_or_default())?;
        self.remember(token, &caller, Instant::now());
        Ok(caller)
    }

    fn remembered(&self, token: &str, now: Instant) -> Option<Caller> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(token)
            .filter(|(_, at)| now.duration_since(*at) < BELIEVED)
            .map(|(caller, _)| caller.clone())
    }

    fn remember(&self, token: &str, caller: &Caller, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, (_, at)| now.duration_since(*at) < BELIEVED);
        }
        if known.len() < REMEMBERED {
            known.insert(token.to_owned(), (caller.clone(), now));
        }
    }
}

/// What a user may be here.
fn judge(namespace: &str, user: UserInfo) -> Result<Caller, DoorError> {
    let name = user.username.unwrap_or_default();
    let account = name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
    match account {
        Some((ns, names::AGENT_ACCOUNT)) if ns == namespace => {
            let extra = user.extra.unwrap_or_default();
            let node = extra.get(NODE_NAME).and_then(|values| values.first()).cloned();
            node.map(|node| Caller::Agent { node }).ok_or(DoorError::Unbound)
        }
        Some((ns, names::AUCTION_ACCOUNT)) if ns == namespace => Ok(Caller::Seat),
        _ => Err(DoorError::Stranger(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, node: Option<&str>) -> UserInfo {
        UserInfo {
            username: Some(name.to_owned()),
            extra: node.map(|n| [(NODE_NAME.to_owned(), vec![n.to_owned()])].into()),
            ..UserInfo::default()
        }
    }

    #[test]
    fn agents_speak_for_the_node_of_their_token_and_strangers_for_nobody() {
        let judge = |name, node| judge("vendue-system", user(name, node));
        let agent = "system:serviceaccount:vendue-system:vendue-gpu-agent";
        assert_eq!(judge(agent, Some("n1")).unwrap(), Caller::Agent { node: "n1".to_owned() });
        assert!(matches!(judge(agent, None), Err(DoorError::Unbound)));
        assert_eq!(judge("system:serviceaccount:vendue-system:vendue-auction", None).unwrap(), Caller::Seat);
        for stranger in [
            "system:serviceaccount:default:vendue-gpu-agent",
            "system:serviceaccount:vendue-system:default",
            "vendue-gpu-agent",
            "",
        ] {
            assert!(matches!(judge(stranger, Some("n1")), Err(DoorError::Stranger(_))), "{stranger}");
        }
    }
}
