//! The wire codec: one canonical encoding per message, total decoders, bounded sizes.
//!
//! A message is `HDR (25 bytes) | body | evidence signature (65 bytes)`; CERT and REPLY carry no signature, because
//! they prove themselves. [`decode`] accepts exactly the bytes that [`Message::encode`] produces and nothing else.

mod bodies;
mod coding;
mod header;
mod signers;
mod view;
mod views;

pub(crate) use bodies::bundle_digest;
pub use bodies::{
    Accept, Acks, Admit, Again, AwardVote, Body, Bundle, Cancel, Cert, Commit, CommitMsg, Deal, DealKeyMsg,
    Fetch, Listed, Lock, MAX_DEALING, MAX_FETCH, MAX_KNOWN_MODELS, MAX_ORDERS, MAX_PAYLOAD, OpenShare,
    OrderMsg, Proof, Quorum, Receipt, Refuse, Reply, Reserve, SetMsg, Taken, Withdraw,
};
pub use header::{HEADER_LEN, Header, Kind, VERSION};
pub use signers::Signers;
pub(crate) use view::Views;
pub use view::{View, view_digest};
pub use views::{Admitted, NewView, OtherSet, Propose, ShownSet, ShownView};
pub(crate) use views::{listed_of, signed_view};

use crate::award::{Certificate, OrderLeaf};
use crate::merkle::Tree;
use vendue_market::Digest;
use vendue_market::encode::{Canonical, DecodeError, Reader, Writer};

/// Length of an evidence signature.
pub const SIGNATURE_LEN: usize = 65;
/// Longest message of any kind; a transport may refuse anything longer unread.
pub const MAX_MESSAGE: usize = 1 << 20;

/// A decoded message. Nothing about it has been verified yet but its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The header.
    pub header: Header,
    /// The body.
    pub body: Body,
    /// The evidence signature; `None` for kinds that prove themselves.
    pub signature: Option<[u8; SIGNATURE_LEN]>,
}

impl Message {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.header.write(&mut w);
        self.body.write(&mut w);
        if let Some(signature) = &self.signature {
            w.raw(signature);
        }
        w.finish()
    }
}

/// PROOF messages of one round, which differ in the outcome only.
pub(crate) struct ProofMessages<'a> {
    head: Vec<u8>,
    tree: &'a Tree,
}

impl<'a> ProofMessages<'a> {
    /// With what all of them begin with; `tree` is that of the round's table.
    pub(crate) fn new(header: &Header, certificate: &Certificate, tree: &'a Tree) -> Self {
        let mut w = Writer::new();
        header.write(&mut w);
        certificate.write(&mut w);
        Self { head: w.finish(), tree }
    }

    /// The bytes of the message about the outcome at a place of the table.
    pub(crate) fn encode(&self, index: usize, leaf: &OrderLeaf) -> Vec<u8> {
        // A leaf, and a digest for each level of the tree.
        let mut w = Writer::with_capacity(self.head.len() + 768);
        w.raw(&self.head);
        leaf.write(&mut w);
        self.tree.write_path(index, &mut w);
        w.finish()
    }
}

/// Decodes one message of a market with `n` seats.
pub fn decode(bytes: &[u8], n: u16) -> Result<Message, DecodeError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(DecodeError::TooLong { what: "message", found: bytes.len(), max: MAX_MESSAGE });
    }
    let mut r = Reader::new(bytes);
    let header = Header::read(&mut r)?;
    let body = Body::read(header.kind, &mut r, n)?;
    let signature = if header.kind.is_signed() { Some(r.array()?) } else { None };
    r.end()?;
    Ok(Message { header, body, signature })
}

/// The kind of an encoded message, to route it without decoding it.
pub fn peek_kind(bytes: &[u8]) -> Option<Kind> {
    bytes.get(1).copied().and_then(Kind::from_code)
}

/// What votes sign: domain word, epoch, round and the digest voted for.
pub fn vote_bytes(
    word: VoteWord,
    market: &Digest,
    epoch: u32,
    round: u64,
    view: u32,
    digest: &Digest,
) -> Vec<u8> {
    let mut w = Writer::new();
    w.str(word.as_str()).raw(market).u32(epoch).u64(round).u32(view).raw(digest);
    w.finish()
}

/// The kinds of votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoteWord {
    /// The seat's own set is complete and equals this.
    Full,
    /// This is the admitted set, in a view.
    Admit,
    /// A quorum admitted this set, in a view.
    Lock,
    /// These are the round's awards.
    Award,
}

impl VoteWord {
    /// The word itself.
    pub fn as_str(self) -> &'static str {
        match self {
            VoteWord::Full => "FULL",
            VoteWord::Admit => "ADMIT",
            VoteWord::Lock => "LOCK",
            VoteWord::Award => "AWARD",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
