//! One signed message that is wrong by itself: its share, its vote or what it rests on does not verify.

use super::{Fault, Judged, Signed, Unproven, open};
use crate::crypto::Scheme;
use crate::justify::{self, ByRecord, Checks};
use crate::record::MarketRecord;
use crate::wire::{Admitted, Body, Header, VoteWord};
use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_sealed_bid::RoundId;

/// A message that no honest seat signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadMessage {
    /// The message.
    pub message: Signed,
}

impl BadMessage {
    pub(super) fn judge<S: Scheme>(&self, record: &MarketRecord) -> Judged {
        let message = open::<S>(record, &self.message)?;
        let (header, checks) = (message.header, ByRecord::<S>::new(record));
        let good = match &message.body {
            Body::Set(set) => justify::full(&checks, header.round, header.seat, set),
            Body::Admit(a) => voted(&checks, &header, VoteWord::Admit, a.view, &a.set, &a.vote),
            Body::Lock(l) => {
                let admitted = Admitted { view: l.view, set: l.set, quorum: l.quorum.clone() };
                voted(&checks, &header, VoteWord::Lock, l.view, &l.set, &l.vote)
                    && justify::admitted(&checks, header.round, &admitted)
            }
            Body::Open(o) => {
                if !justify::commit(&checks, header.round, &o.set, &o.commit) {
                    return Ok((vec![header.seat], Fault::Unjustified));
                }
                let id = RoundId { market: record.market, epoch: record.epoch, round: header.round };
                let key = record.seat(header.seat).map(|s| s.seal_share_key).ok_or(Unproven::Signature)?;
                if !S::verify_share(&id, &key, &o.share) {
                    return Ok((vec![header.seat], Fault::BadShare));
                }
                true
            }
            Body::Commit(c) => justify::commit(&checks, header.round, &c.set, &c.commit),
            Body::Award(a) => voted(&checks, &header, VoteWord::Award, 0, &a.root, &a.vote),
            // The signatures of the SETs in it are not part of what its sender signed.
            Body::NewView(v) => justify::new_view_by_what_is_signed(&checks, &header, v),
            Body::Propose(p) => justify::proposal(&checks, &header, p).is_some(),
            _ => return Err(Unproven::Malformed),
        };
        if good { Err(Unproven::Innocent) } else { Ok((vec![header.seat], Fault::Unjustified)) }
    }
}

fn voted(
    checks: &impl Checks,
    header: &Header,
    word: VoteWord,
    view: u32,
    digest: &Digest,
    vote: &[u8; 48],
) -> bool {
    let message = justify::vote_message(checks.record(), header.round, word, view, digest);
    checks.vote(header.seat, &message, vote)
}
