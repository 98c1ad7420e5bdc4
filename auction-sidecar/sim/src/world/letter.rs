//! A message as it goes through the simulated network: its bytes once, however many get it, and what was found out about
//! them, so that no watcher works it out again.

use crate::mock::hash_of;
use std::sync::{Arc, OnceLock};
use vendue_auction_core::wire::{Body, Kind, Message, decode, peek_kind};
use vendue_market::Digest;

/// A message with what is known of it.
#[derive(Debug)]
struct Sheet {
    bytes: Vec<u8>,
    id: [u8; 16],
    n: u16,
    message: OnceLock<Option<Message>>,
    bundle: OnceLock<Option<Digest>>,
}

/// A message that may have many receivers.
#[derive(Debug, Clone)]
pub(crate) struct Letter(Arc<Sheet>);

impl Letter {
    /// Bytes in a market of `n` seats.
    pub(crate) fn new(bytes: Vec<u8>, n: u16) -> Self {
        let id = hash_of(&bytes);
        Self(Arc::new(Sheet { bytes, id, n, message: OnceLock::new(), bundle: OnceLock::new() }))
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }
    /// The bytes for somebody who keeps them; they are copied where others still need them.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        Arc::try_unwrap(self.0).map_or_else(|shared| shared.bytes.clone(), |sheet| sheet.bytes)
    }
    /// Names the bytes: a hash over them.
    pub(crate) fn id(&self) -> [u8; 16] {
        self.0.id
    }
    /// The kind.
    pub(crate) fn kind(&self) -> Option<Kind> {
        peek_kind(self.bytes())
    }
    /// The message, if it is one.
    pub(crate) fn message(&self) -> Option<&Message> {
        self.0.message.get_or_init(|| decode(&self.0.bytes, self.0.n).ok()).as_ref()
    }
    /// The digest of the bundle, if it is one.
    pub(crate) fn bundle(&self) -> Option<Digest> {
        let digest = || match self.message()? {
            Message { header, body: Body::Bundle(bundle), .. } => Some(bundle.digest(header)),
            _ => None,
        };
        *self.0.bundle.get_or_init(digest)
    }
}
