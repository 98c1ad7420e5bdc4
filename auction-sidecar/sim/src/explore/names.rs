//! Messages under short names: two that differ only in which seats a quorum counts have one name and one form.
//!
//! Inputs: messages as bytes. Outputs: their numbers and what they say in terms of the bundles of the explored round.
//! Invariant: messages with one name change a seat in the same way, which the search checks as it goes.

use super::{FAULTY, HONEST, SEATS};
use crate::keys::{Keys, MockKeys, spec};
use crate::mock::{MockCrypto, MockScheme};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::collections::HashMap;
use std::sync::Arc;
use vendue_auction_core::evidence::message_hash_by;
use vendue_auction_core::wire::{
    Admitted, Body, Bundle, Commit, Header, Kind, Listed, Message, ShownSet, VoteWord, decode, vote_bytes,
};
use vendue_auction_core::{Crypto, KeyError, MarketRecord, Params, proposer, set_digest};
use vendue_market::Digest;

/// A message, by its place in the list of all.
pub(super) type MessageId = u32;
/// Bundles, a bit for each: of the three honest seats, then two versions of the faulty one.
pub(super) type Bundles = u8;

/// The bundles of all honest seats.
pub(super) const OF_HONEST: Bundles = 0b111;
/// The two versions of the faulty seat's bundle.
pub(super) const VERSIONS: [Bundles; 2] = [0b0_1000, 0b1_0000];
/// A set that nobody derives.
pub(super) const JUNK: Bundles = 0xff;
/// Bit of a SET that is known, in a byte of its bundles.
pub(super) const KNOWN: Bundles = 0x80;

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum What {
    Bundle(Bundles),
    Set(Bundles),
    Admit { view: u8, set: Bundles, proposal: MessageId },
    Lock { view: u8, set: Bundles },
    NewView { view: u8, quorum: Option<(u8, Bundles)>, sets: Vec<(u8, Bundles)> },
    Propose { view: u8, set: Bundles, shows: Shows, digest: Digest },
    Commit { set: Bundles },
    Open { set: Bundles },
    Award { root: Digest },
}

/// What a proposal shows: SETs by owner, quorums of ADMITs by view, and whose NEWVIEWs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shows {
    pub sets: Vec<(u8, Bundles)>,
    pub quorums: Vec<(u8, Bundles)>,
    pub seats: Vec<u8>,
}

/// A message with its name.
pub(super) struct Said {
    pub from: u8,
    pub what: What,
    pub message: Message,
    pub bytes: Vec<u8>,
}

/// One round of one market, and every message that was said in it.
pub(super) struct Names {
    pub record: Arc<MarketRecord>,
    /// Seat numbers by place: the honest ones ascending, then the faulty one.
    pub seats: [u16; SEATS],
    crypto: Vec<MockCrypto>,
    /// How many versions of its bundle the faulty seat has.
    pub versions: u8,
    /// Who proposes, by view.
    turns: Vec<u8>,
    /// d of each bundle by its bit.
    digests: Vec<Digest>,
    sets: HashMap<Digest, Bundles>,
    messages: Vec<Said>,
    by_name: HashMap<(u8, What), MessageId>,
    by_bytes: HashMap<Box<[u8]>, MessageId>,
    proposals: HashMap<Digest, MessageId>,
}

/// A clock with rounds far apart, so that no gate keeps a share back.
fn clock() -> Params {
    Params { period_ms: 86_400_000, ..crate::clock() }
}

impl Names {
    /// A market in which the seat that proposes in view `turn` is the faulty one.
    pub fn new(turn: u32, versions: u8) -> Result<Self, KeyError> {
        let keys = MockKeys::deal(&spec(SEATS as u16, clock()), &mut ChaCha20Rng::seed_from_u64(7))?;
        let record = keys.record();
        let faulty = proposer(&record, 0, turn);
        let mut seats = [faulty; SEATS];
        seats.iter_mut().zip((0..record.n()).filter(|s| *s != faulty)).for_each(|(to, seat)| *to = seat);
        let crypto = seats.iter().map(|seat| keys.seat(*seat)).collect::<Result<_, _>>()?;
        let place = |seat: u16| (0u8..).zip(&seats).find(|(_, s)| **s == seat).map(|(place, _)| place);
        let turns = (0..=record.params.last_view()).filter_map(|view| place(proposer(&record, 0, view)));
        let turns = turns.collect();
        Ok(Self {
            record,
            seats,
            crypto,
            turns,
            versions,
            messages: vec![],
            digests: vec![],
            sets: HashMap::new(),
            by_name: HashMap::new(),
            by_bytes: HashMap::new(),
            proposals: HashMap::new(),
        })
    }

    /// The place of the seat that proposes in a view.
    pub fn proposer(&self, view: u8) -> u8 {
        self.turns.get(usize::from(view)).copied().unwrap_or_default()
    }
    /// The honest seat that proposes first.
    pub fn first_honest(&self) -> u8 {
        if self.proposer(1) == FAULTY { self.proposer(2) } else { self.proposer(1) }
    }
    pub fn place(&self, seat: u16) -> Option<u8> {
        self.seats.iter().zip(0u8..).find(|(s, _)| **s == seat).map(|(_, place)| place)
    }
    pub fn crypto(&self, place: u8) -> &MockCrypto {
        &self.crypto[usize::from(place)]
    }
    pub fn seat(&self, place: u8) -> u16 {
        self.seats[usize::from(place)]
    }
    pub fn get(&self, id: MessageId) -> &Said {
        &self.messages[id as usize]
    }
    pub fn header(&self, kind: Kind, place: u8) -> Header {
        let (market, epoch) = (self.record.short_id(), self.record.epoch);
        Header { kind, market, epoch, round: 0, seat: self.seat(place) }
    }
    /// A vote of a seat.
    pub fn vote(&self, place: u8, word: VoteWord, view: u8, digest: &Digest) -> [u8; 48] {
        let (market, epoch) = (&self.record.market, self.record.epoch);
        self.crypto(place).vote(&vote_bytes(word, market, epoch, 0, u32::from(view), digest))
    }
    /// A message signed by a seat.
    pub fn sign(&self, place: u8, body: Body) -> Message {
        let header = self.header(body.kind(), place);
        let signature =
            self.crypto(place).sign(&message_hash_by::<MockScheme>(&self.record.market, &header, &body));
        Message { header, body, signature: Some(signature) }
    }
    /// A version of the faulty seat's bundle.
    pub fn faulty_bundle(&self, version: u8) -> Bundle {
        Bundle { order_view: vec![].into(), u: [version; 48], v: [version; 32], payload: vec![version; 272] }
    }

    /// Makes the bundles known: one of each honest seat, in their order, then the versions of the faulty one.
    pub fn set_bundles(&mut self, digests: Vec<Digest>) {
        self.digests = digests;
        for set in 0..1u8 << self.digests.len() {
            let digest = set_digest(&self.record, 0, &self.list(set));
            self.sets.insert(digest, set);
        }
    }
    fn owner(&self, bit: usize) -> u16 {
        self.seats[bit.min(HONEST)]
    }
    /// The list of bundles in a set.
    pub fn list(&self, set: Bundles) -> Vec<Listed> {
        let listed = |(bit, d): (usize, &Digest)| {
            (set >> bit & 1 == 1).then(|| Listed { seat: self.owner(bit), d: *d })
        };
        let mut list: Vec<Listed> = self.digests.iter().enumerate().filter_map(listed).collect();
        list.sort_unstable();
        list
    }
    /// The digest that names a set.
    pub fn digest(&self, set: Bundles) -> Digest {
        if set == JUNK { [9; 32] } else { set_digest(&self.record, 0, &self.list(set)) }
    }
    pub fn set(&self, digest: &Digest) -> Bundles {
        self.sets.get(digest).copied().unwrap_or(JUNK)
    }
    /// What a SET with these bundles lists, by seat number.
    pub fn held(&self, set: Bundles) -> Vec<Digest> {
        let mut held = vec![[0; 32]; SEATS];
        for listed in self.list(set) {
            held[usize::from(listed.seat)] = listed.d;
        }
        held
    }
    pub fn bundles(&self, held: &[Digest]) -> Bundles {
        let has = |bit: usize, d: &Digest| held.get(usize::from(self.owner(bit))) == Some(d);
        self.digests
            .iter()
            .enumerate()
            .filter(|(bit, d)| has(*bit, d))
            .fold(0, |set, (bit, _)| set | 1 << bit)
    }

    fn shown(&self, sets: &[ShownSet]) -> Vec<(u8, Bundles)> {
        let shown = |s: &ShownSet| Some((self.place(s.seat)?, self.bundles(&s.set.held)));
        sets.iter().filter_map(shown).collect()
    }
    fn quorum(&self, admitted: &Admitted) -> (u8, Bundles) {
        (admitted.view as u8, self.set(&admitted.set))
    }

    fn name(&self, message: &Message) -> Option<What> {
        Some(match &message.body {
            Body::Bundle(bundle) => {
                let d = bundle.digest(&message.header);
                What::Bundle(self.digests.iter().position(|known| *known == d).map_or(0, |bit| 1 << bit))
            }
            Body::Set(set) => What::Set(self.bundles(&set.held)),
            Body::Admit(a) => {
                let proposal = self.proposals.get(&a.proposal).copied().unwrap_or_default();
                What::Admit { view: a.view as u8, set: self.set(&a.set), proposal }
            }
            Body::Lock(l) => What::Lock { view: l.view as u8, set: self.set(&l.set) },
            Body::NewView(v) => What::NewView {
                view: v.view as u8,
                quorum: v.admitted.as_ref().map(|a| self.quorum(a)),
                sets: self.shown(&v.sets),
            },
            Body::Propose(p) => {
                let quorums = p.views.iter().filter_map(|v| v.admitted.as_ref());
                let mut quorums: Vec<_> = quorums.map(|a| self.quorum(a)).collect();
                quorums.sort_unstable();
                quorums.dedup();
                let seats = p.views.iter().filter_map(|v| self.place(v.seat)).collect();
                let shows = Shows { sets: self.shown(&p.sets), quorums, seats };
                let digest =
                    message_hash_by::<MockScheme>(&self.record.market, &message.header, &message.body);
                What::Propose { view: p.view as u8, set: self.set(&p.set), shows, digest }
            }
            Body::Commit(c) => What::Commit { set: self.set(&c.set) },
            Body::Open(o) => What::Open { set: self.set(&o.set) },
            Body::Award(a) => What::Award { root: a.root },
            _ => return None,
        })
    }

    /// The number of a message; none for kinds that the search does not follow.
    pub fn number(&mut self, bytes: &[u8]) -> Option<MessageId> {
        if let Some(id) = self.by_bytes.get(bytes) {
            return Some(*id);
        }
        let id = self.number_new(bytes)?;
        self.by_bytes.insert(bytes.into(), id);
        Some(id)
    }

    fn number_new(&mut self, bytes: &[u8]) -> Option<MessageId> {
        let message = decode(bytes, self.record.n()).ok()?;
        let (from, what) = (self.place(message.header.seat)?, self.name(&message)?);
        let key = (from, what);
        if let Some(id) = self.by_name.get(&key) {
            return Some(*id);
        }
        let id = self.messages.len() as MessageId;
        self.by_name.insert(key.clone(), id);
        if let What::Propose { digest, .. } = &key.1 {
            self.proposals.insert(*digest, id);
        }
        self.messages.push(Said { from: key.0, what: key.1, message, bytes: bytes.to_vec() });
        Some(id)
    }
    /// A message that the faulty seat signs: made when nothing of that name is there.
    pub fn forge(&mut self, what: What, body: impl FnOnce(&Self) -> Option<Body>) -> Option<MessageId> {
        let key = (FAULTY, what);
        if let Some(id) = self.by_name.get(&key) {
            return Some(*id);
        }
        let bytes = self.sign(FAULTY, body(self)?).encode();
        self.number(&bytes)
    }
    /// The digest of the message with this number, as an ADMIT names its proposal.
    pub fn proposal_digest(&self, id: MessageId) -> Digest {
        match self.messages.get(id as usize).map(|said| &said.what) {
            Some(What::Propose { digest, .. }) => *digest,
            _ => [0; 32],
        }
    }

    /// A message in words.
    pub fn words(&self, id: MessageId) -> String {
        let said = self.get(id);
        let commit = |c: &Commit| match c {
            Commit::Fast { .. } => "by FULL".to_string(),
            Commit::Locked { view, .. } => format!("in view {view}"),
        };
        let set = |s: Bundles| if s == JUNK { "?".into() } else { format!("{s:05b}") };
        let text = match (&said.what, &said.message.body) {
            (What::Bundle(b), _) => format!("BUNDLE {b:05b}"),
            (What::Set(b), _) => format!("SET {b:05b}"),
            (What::Admit { view, set: s, .. }, _) => format!("ADMIT view {view} set {}", set(*s)),
            (What::Lock { view, set: s }, _) => format!("LOCK view {view} set {}", set(*s)),
            (What::NewView { view, quorum, sets }, _) => {
                format!("NEWVIEW {view} quorum {quorum:?} sets {sets:?}")
            }
            (What::Propose { view, set: s, shows, .. }, _) => {
                format!("PROPOSE view {view} set {} of {:?}", set(*s), shows.seats)
            }
            (What::Open { set: s }, Body::Open(o)) => format!("OPEN set {} {}", set(*s), commit(&o.commit)),
            (What::Commit { set: s }, Body::Commit(c)) => {
                format!("COMMIT set {} {}", set(*s), commit(&c.commit))
            }
            (other, _) => format!("{other:?}"),
        };
        format!("seat {}: {text}", said.from)
    }
}
