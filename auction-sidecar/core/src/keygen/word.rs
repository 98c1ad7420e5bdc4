//! What a seat says in an attempt: its contribution, and the last attempt in which it has voted for a key.
//!
//! Layout: 0, or 1 with the attempt u64, the admitted set 32 and its commit as in COMMIT; then the contribution. Invariants:
//! one encoding; a word that shows a vote shows that the attempt's set is final, so that everybody finds the same key in it.

use crate::crypto::Scheme;
use crate::justify::{self, ByRecord};
use crate::record::MarketRecord;
use crate::wire::{Commit, CommitMsg};
use vendue_market::encode::{DecodeError, Reader, Writer};
use vendue_sealed_bid::dkg::{Contribution, DkgError, Setup};

/// The attempt in which a seat voted, and what was admitted in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voted {
    /// The attempt.
    pub attempt: u64,
    /// The admitted set, with the proof that it is final.
    pub commit: CommitMsg,
}

/// What a seat says in an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The last attempt in which it voted for a key.
    pub voted: Option<Voted>,
    /// What it contributes to a new one.
    pub contribution: Contribution,
}

/// Why bytes are no word.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// The vote that it shows.
    #[error("vote of an earlier attempt: {0}")]
    Voted(#[from] DecodeError),
    /// The contribution.
    #[error(transparent)]
    Contribution(#[from] DkgError),
}

impl Word {
    /// The word's bytes.
    pub fn to_bytes(&self, setup: &Setup) -> Vec<u8> {
        let mut w = Writer::new();
        match &self.voted {
            None => {
                w.u8(0);
            }
            Some(Voted { attempt, commit }) => {
                w.u8(1).u64(*attempt).raw(&commit.set);
                commit.commit.write(&mut w);
            }
        }
        w.raw(&self.contribution.to_bytes(setup));
        w.finish()
    }

    /// Reads a word.
    pub fn read(setup: &Setup, bytes: &[u8]) -> Result<Self, WordError> {
        let mut r = Reader::new(bytes);
        let voted = match r.u8()? {
            0 => None,
            1 => {
                let (attempt, set) = (r.u64()?, r.array()?);
                let commit = Commit::read(&mut r, setup.seats())?;
                Some(Voted { attempt, commit: CommitMsg { set, commit } })
            }
            _ => return Err(DecodeError::Invalid("vote of an earlier attempt").into()),
        };
        Ok(Self { voted, contribution: Contribution::read(setup, r.rest())? })
    }

    /// Most bytes of a word: of a vote by any seats, with as many values as a dealer may reveal.
    pub(super) fn most_bytes(setup: &Setup) -> usize {
        let vote = 8 + 32 + 1 + 4 + usize::from(setup.seats()).div_ceil(8) + 48;
        1 + vote + Contribution::most_bytes(setup)
    }

    /// Whether the vote that it shows is of an earlier attempt and of a set that is final.
    pub(super) fn is_sound<S: Scheme>(&self, record: &MarketRecord, attempt: u64) -> bool {
        let is_final = |voted: &Voted| {
            let CommitMsg { set, commit } = &voted.commit;
            voted.attempt < attempt
                && justify::commit(&ByRecord::<S>::new(record), voted.attempt, set, commit)
        };
        self.voted.as_ref().is_none_or(is_final)
    }
}
