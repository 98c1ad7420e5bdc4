//! What the seats tell each other once the key is certified: which certificate each has, and who has finished.
//!
//! Each seat aggregates the votes that it got first, and an attempt may certify the key of an earlier one again, so seats come to
//! different certificates of one key, and the next record carries one of them. Here they choose the same one: the first in a fixed order of all that seats have, once all have said
//! theirs or the attempt has expired; and who comes later takes what the others have stored.
//!
//! Inputs: words of the other seats, the own certificate, the time. Outputs: the own word, the choice, whether all have
//! finished. Invariants: only certificates that verify count; no choice is changed. Where messages take longer than an attempt,
//! or seats are faulty, honest seats may choose differently: each record is right then, and the issuer signs one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vendue_auction_core::{Certificate, CertificateFile, MarketRecord, verify};

/// Longest word.
const MAX_WORD: usize = 4096;
/// Certificates of one seat that are checked.
const MAX_CHECKS: u32 = 64;
/// Delays that a seat waits for the others when it is later than the attempt.
const LATE: u64 = 4;

/// What one seat says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Word {
    /// Whether it knows that the seat that it speaks to has finished.
    knows: bool,
    /// Whether its files are stored.
    finished: bool,
    /// The certificate that it has; that of its record when it has finished.
    certificate: Option<CertificateFile>,
}

/// What a seat said last.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    certificate: Certificate,
    finished: bool,
}

/// What all have said.
pub(super) struct Words {
    /// Of the market in which the key is agreed on.
    record: Arc<MarketRecord>,
    seat: u16,
    /// The own certificate, and until when others are waited for.
    own: Option<(Certificate, u64)>,
    /// The one that was chosen, once the files are stored.
    finished: Option<Certificate>,
    said: BTreeMap<u16, Said>,
    checks: BTreeMap<u16, u32>,
    /// Who knows that this seat has finished.
    told: BTreeSet<u16>,
}

/// The order of certificates of one key: earlier attempts first, then more signers, then by their bytes.
fn rank(certificate: &Certificate) -> impl Ord + use<> {
    let signers = &certificate.quorum.signers;
    let bytes = Reverse((signers.bitmap(), certificate.quorum.aggregate));
    (Reverse(certificate.round), signers.len(), bytes)
}

impl Words {
    pub(super) fn new(record: Arc<MarketRecord>, seat: u16) -> Self {
        Self {
            record,
            seat,
            own: None,
            finished: None,
            said: BTreeMap::new(),
            checks: BTreeMap::new(),
            told: BTreeSet::new(),
        }
    }

    /// The own word to a seat.
    pub(super) fn own(&self, to: u16) -> Vec<u8> {
        let certificate = self.finished.as_ref().or(self.own.as_ref().map(|(own, _)| own));
        let certificate = certificate.map(CertificateFile::from);
        // A bitmap and an aggregate always fit.
        let word = Word { knows: self.has_finished(to), finished: self.finished.is_some(), certificate };
        serde_json::to_vec(&word).unwrap_or_default()
    }

    /// Takes the word of a seat, if it is one; gives its certificate where that is new and verifies.
    pub(super) fn hear(&mut self, from: u16, word: &[u8]) -> Option<Option<Certificate>> {
        if from == self.seat || from >= self.record.n() || word.len() > MAX_WORD {
            return None;
        }
        let Word { knows, finished, certificate } = serde_json::from_slice(word).ok()?;
        if knows && self.finished.is_some() {
            self.told.insert(from);
        }
        let certificate = certificate.and_then(|file| file.certificate(self.record.n()).ok());
        Some(certificate.filter(|certificate| self.take(from, certificate, finished)))
    }

    /// Takes note of what a seat has; whether that is new.
    fn take(&mut self, from: u16, certificate: &Certificate, finished: bool) -> bool {
        if let Some(known) = self.said.get_mut(&from).filter(|known| known.certificate == *certificate) {
            known.finished = finished;
            return false;
        }
        let checks = self.checks.entry(from).or_default();
        *checks = checks.saturating_add(1);
        if *checks > MAX_CHECKS || verify::certificate(&self.record, certificate).is_err() {
            return false;
        }
        self.said.insert(from, Said { certificate: certificate.clone(), finished });
        true
    }

    /// This seat has a certificate.
    pub(super) fn certified(&mut self, own: Certificate, now_ms: u64) {
        let params = &self.record.params;
        let until = params.expiry(own.round).max(now_ms.saturating_add(LATE * params.delay_ms));
        self.own = Some((own, until));
    }

    /// Until when others are waited for, while there is nothing to choose yet.
    pub(super) fn waits_until(&self) -> Option<u64> {
        self.own.as_ref().filter(|_| self.finished.is_none()).map(|(_, until)| *until)
    }

    /// The certificate for the next record, as soon as it can be said.
    pub(super) fn choose(&self, now_ms: u64) -> Option<Certificate> {
        let (own, until) = self.own.as_ref()?;
        let same_key = |said: &&Said| said.certificate.root == own.root;
        let others: Vec<&Said> = self.said.values().filter(same_key).collect();
        let stored = |certificate: &Certificate| {
            others.iter().filter(|said| said.finished && said.certificate == *certificate).count()
        };
        let finished = others.iter().filter(|said| said.finished).map(|said| &said.certificate);
        let most = finished.max_by_key(|certificate| (stored(certificate), rank(certificate)));
        let enough = usize::from(self.record.f()) + 1;
        let agreed = most.filter(|certificate| stored(certificate) >= enough);
        let all = others.len() + 1 == usize::from(self.record.n());
        let best = || others.iter().map(|said| &said.certificate).chain([own]).max_by_key(|c| rank(c));
        let chosen = match agreed {
            Some(agreed) => Some(agreed),
            None if all => best(),
            None if now_ms >= *until => most.or_else(best),
            None => None,
        };
        chosen.cloned()
    }

    /// The files of this seat are stored, with this certificate.
    pub(super) fn finish(&mut self, chosen: Certificate) {
        self.finished = Some(chosen);
    }
    /// Whether a seat has stored its files.
    pub(super) fn has_finished(&self, seat: u16) -> bool {
        self.said.get(&seat).is_some_and(|said| said.finished)
    }

    /// Seats that have something to say or to be told still.
    pub(super) fn open(&self) -> Vec<u16> {
        let seats = (0..self.record.n()).filter(|seat| *seat != self.seat);
        seats.filter(|seat| !(self.has_finished(*seat) && self.told.contains(seat))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keygen::tests::Market;
    use vendue_auction_core::wire::{Quorum, Signers, VoteWord, vote_bytes};
    use vendue_sealed_bid::aggregate_votes;

    struct Rig {
        market: Market,
        record: Arc<MarketRecord>,
        seats: Vec<Words>,
    }

    impl Rig {
        fn new() -> Self {
            let market = Market::new(10);
            let record = Arc::new(market.record());
            let seats = (0..4).map(|seat| Words::new(record.clone(), seat)).collect();
            Self { market, record, seats }
        }

        fn certificate(&self, signers: &[u16], root: u8) -> Certificate {
            let (market, epoch, root) = (self.record.market, self.record.epoch, [root; 32]);
            let message = vote_bytes(VoteWord::Award, &market, epoch, 0, 0, &root);
            let votes: Vec<_> =
                signers.iter().map(|seat| self.market.keys(*seat).vote.sign(&message)).collect();
            let signers = Signers::new(4, signers.iter().copied());
            let quorum = Quorum { signers, aggregate: aggregate_votes(&votes).unwrap() };
            Certificate { market, epoch, round: 0, root, quorum }
        }

        fn tell(&mut self, from: u16, to: u16) {
            let word = self.seats[usize::from(from)].own(to);
            assert!(self.seats[usize::from(to)].hear(from, &word).is_some());
        }

        fn chosen(&self, now_ms: u64) -> Vec<Option<Certificate>> {
            self.seats.iter().map(|seat| seat.choose(now_ms)).collect()
        }
    }

    const OWN: [[u16; 3]; 4] = [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]];

    #[test]
    fn seats_with_different_certificates_choose_the_same_one() {
        let mut rig = Rig::new();
        let now = rig.record.params.t0(0);
        for (seat, signers) in OWN.iter().enumerate() {
            let own = rig.certificate(signers, 7);
            rig.seats[seat].certified(own, now);
        }
        assert_eq!(rig.chosen(now), [const { None }; 4]);
        for (from, to) in (0..4).flat_map(|from| (0..4).map(move |to| (from, to))).filter(|(a, b)| a != b) {
            rig.tell(from, to);
        }
        let chosen = rig.chosen(now);
        assert!(chosen[0].is_some() && chosen.iter().all(|other| *other == chosen[0]));
    }

    #[test]
    fn an_absent_seat_is_waited_for_until_the_attempt_expires() {
        let mut rig = Rig::new();
        let (now, over) = (rig.record.params.t0(0), rig.record.params.expiry(0));
        for (seat, signers) in OWN.iter().enumerate().take(3) {
            let own = rig.certificate(signers, 7);
            rig.seats[seat].certified(own, now);
        }
        for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)] {
            rig.tell(from, to);
        }
        assert_eq!(rig.chosen(over - 1), [const { None }; 4]);
        let chosen = rig.chosen(over);
        assert!(chosen[0].is_some() && chosen[0] == chosen[1] && chosen[1] == chosen[2]);
    }

    #[test]
    fn who_comes_late_takes_what_f_and_one_more_have_stored() {
        let mut rig = Rig::new();
        let late = rig.record.params.expiry(0) + 1;
        let all = rig.certificate(&[0, 1, 2, 3], 7);
        rig.seats[3].certified(all, late);
        for seat in 0..2usize {
            assert_eq!(rig.seats[3].choose(late), None);
            let stored = rig.certificate(&OWN[0], 7);
            rig.seats[seat].finish(stored);
            rig.tell(seat as u16, 3);
        }
        assert_eq!(rig.seats[3].choose(late), Some(rig.certificate(&OWN[0], 7)));
    }

    #[test]
    fn forged_certificates_and_those_of_other_keys_do_not_count() {
        let mut rig = Rig::new();
        let (now, over) = (rig.record.params.t0(0), rig.record.params.expiry(0));
        let own = rig.certificate(&OWN[0], 7);
        rig.seats[0].certified(own.clone(), now);
        let mut forged = rig.certificate(&[0, 1, 2, 3], 7);
        forged.quorum.aggregate = own.quorum.aggregate;
        let other = rig.certificate(&[0, 1, 2, 3], 8);
        for (seat, certificate) in [(1usize, forged), (2, other)] {
            rig.seats[seat].finish(certificate);
            let word = rig.seats[seat].own(0);
            let heard = rig.seats[0].hear(seat as u16, &word).unwrap();
            assert_eq!(heard.is_some(), seat == 2);
        }
        assert_eq!(rig.seats[0].choose(over), Some(own));
        for word in [&b"no word"[..], &[b' '; MAX_WORD + 1]] {
            assert!(rig.seats[0].hear(1, word).is_none());
        }
    }

    #[test]
    fn a_seat_stays_open_until_both_have_finished_and_know_it() {
        let mut rig = Rig::new();
        let own = rig.certificate(&OWN[0], 7);
        rig.seats[0].finish(own.clone());
        assert_eq!(rig.seats[0].open(), [1, 2, 3]);
        rig.seats[1].finish(own);
        rig.tell(1, 0);
        assert!(rig.seats[0].has_finished(1));
        assert_eq!(rig.seats[0].open(), [1, 2, 3], "seat 1 does not know it yet");
        rig.tell(0, 1);
        rig.tell(1, 0);
        assert_eq!(rig.seats[0].open(), [2, 3]);
    }
}
