//! Bodies of the views after the first: NEWVIEW and PROPOSE, and how the SETs in them are packed.
//!
//! SETs of one round differ little, so those in one message share one list of the bundles that any of them lists; each
//! is then a bitmap over that list. A NEWVIEW is signed over the hashes of its SETs, so that a PROPOSE can show many
//! NEWVIEWs and each SET once. Of an owner that signed several SETs a PROPOSE shows two: such an owner counts for nothing,
//! and must not be able to make proposals longer than a message may be.

use super::SIGNATURE_LEN;
use super::bodies::{Listed, Quorum, SetMsg};
use std::collections::{BTreeMap, BTreeSet};
use vendue_market::Digest;
use vendue_market::encode::{DecodeError, Reader, Writer};

type Decoded<T> = Result<T, DecodeError>;

/// Most bundles that the SETs of one message list together: what fits into a message.
const MAX_LISTED: usize = super::MAX_MESSAGE / 34;

/// A quorum of ADMITs for one set in one view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// The view.
    pub view: u32,
    /// The admitted set.
    pub set: Digest,
    /// The ADMITs.
    pub quorum: Quorum,
}

/// A SET as others show it, with its owner and the owner's evidence signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSet {
    /// The owner.
    pub seat: u16,
    /// The SET.
    pub set: SetMsg,
    /// The owner's signature.
    pub signature: [u8; SIGNATURE_LEN],
}

/// NEWVIEW: what a seat brings into a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewView {
    /// The view.
    pub view: u32,
    /// The quorum of ADMITs of the highest view that the seat knows of.
    pub admitted: Option<Admitted>,
    /// SETs that the seat holds, its own included, ascending by owner.
    pub sets: Vec<ShownSet>,
}

/// A NEWVIEW as a proposer shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownView {
    /// Who sent it.
    pub seat: u16,
    /// Its quorum of ADMITs.
    pub admitted: Option<Admitted>,
    /// Which of the proposal's SETs it carries, ascending.
    pub sets: Vec<u16>,
    /// Which of those that are given by their hash, ascending.
    pub others: Vec<u16>,
    /// Its evidence signature.
    pub signature: [u8; SIGNATURE_LEN],
}

/// A SET of an owner of whom two others are shown, by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct OtherSet {
    /// The owner.
    pub seat: u16,
    /// The hash that the owner's signature is over.
    pub hash: Digest,
}

/// PROPOSE: the set that a view is to admit, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Propose {
    /// The view.
    pub view: u32,
    /// The proposed set.
    pub set: Digest,
    /// The SETs in the NEWVIEWs, at most two of an owner, ascending by owner and content.
    pub sets: Vec<ShownSet>,
    /// Further SETs of owners of whom two are shown, ascending.
    pub others: Vec<OtherSet>,
    /// The NEWVIEWs, ascending by seat.
    pub views: Vec<ShownView>,
}

impl ShownSet {
    fn key(&self) -> (u16, &[Digest]) {
        (self.seat, &self.set.held)
    }
}

/// Most SETs of one owner that a proposal shows whole.
const SHOWN: usize = 2;

/// A NEWVIEW in a proposal: who sent it, its quorum of ADMITs, the hashes of its SETs by owner, its signature.
pub(crate) type Brought<'a> = (u16, Option<&'a Admitted>, Vec<Digest>, &'a [u8; SIGNATURE_LEN]);

impl Propose {
    /// Packs NEWVIEWs of distinct seats.
    pub fn new(
        view: u32,
        set: Digest,
        views: &BTreeMap<u16, (NewView, [u8; SIGNATURE_LEN])>,
        set_hash: impl Fn(&ShownSet) -> Digest,
    ) -> Self {
        let mut by_key: BTreeMap<(u16, &[Digest]), &ShownSet> = BTreeMap::new();
        for shown in views.values().flat_map(|(v, _)| &v.sets) {
            by_key.entry(shown.key()).or_insert(shown);
        }
        let (mut place, mut sets, mut others) = (BTreeMap::new(), vec![], BTreeMap::new());
        for (key, shown) in by_key {
            if sets.iter().rev().take_while(|s: &&ShownSet| s.seat == shown.seat).count() < SHOWN {
                place.insert(key, sets.len() as u16);
                sets.push(shown.clone());
            } else {
                others.insert(OtherSet { seat: shown.seat, hash: set_hash(shown) }, key);
            }
        }
        let place_of_other: BTreeMap<_, u16> = others.values().copied().zip(0u16..).collect();
        let show = |(seat, (v, signature)): (&u16, &(NewView, [u8; SIGNATURE_LEN]))| {
            let mut at_other: Vec<u16> =
                v.sets.iter().filter_map(|s| place_of_other.get(&s.key()).copied()).collect();
            at_other.sort_unstable();
            ShownView {
                seat: *seat,
                admitted: v.admitted.clone(),
                sets: v.sets.iter().filter_map(|s| place.get(&s.key()).copied()).collect(),
                others: at_other,
                signature: *signature,
            }
        };
        let views = views.iter().map(show).collect();
        Self { view, set, sets, others: others.into_keys().collect(), views }
    }

    /// The NEWVIEWs, with what their signatures are over.
    pub(crate) fn brought(&self, set_hash: impl Fn(&ShownSet) -> Digest) -> Vec<Brought<'_>> {
        let hashes: Vec<(u16, Digest)> = self.sets.iter().map(|s| (s.seat, set_hash(s))).collect();
        let brought = |v: &'_ ShownView| {
            let shown = v.sets.iter().filter_map(|at| hashes.get(usize::from(*at)).copied());
            let others = v.others.iter().filter_map(|at| self.others.get(usize::from(*at)));
            let by_owner: BTreeMap<u16, Digest> =
                shown.chain(others.map(|other| (other.seat, other.hash))).collect();
            by_owner.into_values().collect()
        };
        self.views.iter().map(|v| (v.seat, v.admitted.as_ref(), brought(v), &v.signature)).collect()
    }

    pub(super) fn write(&self, w: &mut Writer) {
        w.u32(self.view).raw(&self.set);
        write_sets(w, &self.sets);
        w.list(&self.others, |w, other| {
            w.u16(other.seat).raw(&other.hash);
        });
        w.list(&self.views, |w, v| {
            w.u16(v.seat);
            write_admitted(w, v.admitted.as_ref());
            write_positions(w, self.sets.len(), &v.sets);
            write_positions(w, self.others.len(), &v.others);
            w.raw(&v.signature);
        });
    }

    pub(super) fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        let (view, set) = (r.u32()?, r.array()?);
        let sets = read_sets(r, n)?;
        let others =
            r.list("other sets", MAX_LISTED, |r| Ok(OtherSet { seat: r.u16()?, hash: r.array()? }))?;
        let index = |at: Vec<usize>| at.into_iter().filter_map(|at| u16::try_from(at).ok()).collect();
        let views = r.list("new views", usize::from(n), |r| {
            let (seat, admitted) = (r.u16()?, read_admitted(r, n)?);
            let (shown, other) = (index(read_bits(r, sets.len())?), index(read_bits(r, others.len())?));
            Ok(ShownView { seat, admitted, sets: shown, others: other, signature: r.array()? })
        })?;
        let propose = Self { view, set, sets, others, views };
        if propose.is_canonical(n) { Ok(propose) } else { Err(DecodeError::Invalid("new views")) }
    }

    /// Whether everything is in order, used, of one owner once in each NEWVIEW, and by hash only where two are shown.
    fn is_canonical(&self, n: u16) -> bool {
        let owners = |v: &ShownView| -> Vec<u16> {
            let shown = v.sets.iter().filter_map(|at| self.sets.get(usize::from(*at)).map(|s| s.seat));
            let others = v.others.iter().filter_map(|at| self.others.get(usize::from(*at)).map(|s| s.seat));
            shown.chain(others).collect()
        };
        let one_each = |v: &ShownView| owners(v).iter().collect::<BTreeSet<_>>().len() == owners(v).len();
        let used: BTreeSet<u16> = self.views.iter().flat_map(|v| v.sets.iter().copied()).collect();
        let used_others: BTreeSet<u16> = self.views.iter().flat_map(|v| v.others.iter().copied()).collect();
        let mut shown: BTreeMap<u16, usize> = BTreeMap::new();
        self.sets.iter().for_each(|s| *shown.entry(s.seat).or_default() += 1);
        self.views.windows(2).all(|w| matches!(w, [a, b] if a.seat < b.seat))
            && self.others.windows(2).all(|w| matches!(w, [a, b] if a < b))
            && self.views.iter().all(|v| v.seat < n && one_each(v))
            && (used.len(), used_others.len()) == (self.sets.len(), self.others.len())
            && shown.values().all(|count| *count <= SHOWN)
            && self.others.iter().all(|s| shown.get(&s.seat) == Some(&SHOWN))
    }
}

impl NewView {
    pub(super) fn write(&self, w: &mut Writer) {
        w.u32(self.view);
        write_admitted(w, self.admitted.as_ref());
        write_sets(w, &self.sets);
    }

    pub(super) fn read(r: &mut Reader<'_>, n: u16) -> Decoded<Self> {
        let (view, admitted, sets) = (r.u32()?, read_admitted(r, n)?, read_sets(r, n)?);
        if !sets.windows(2).all(|w| matches!(w, [a, b] if a.seat < b.seat)) {
            return Err(DecodeError::Invalid("sets of a new view"));
        }
        Ok(Self { view, admitted, sets })
    }
}

/// What the evidence signature of a NEWVIEW is over: the SETs stand as their own hashes, ascending by owner.
pub(crate) fn signed_view(view: u32, admitted: Option<&Admitted>, hashes: &[Digest]) -> Vec<u8> {
    let mut w = Writer::new();
    w.u32(view);
    write_admitted(&mut w, admitted);
    w.list(hashes, |w, hash| {
        w.raw(hash);
    });
    w.finish()
}

fn write_admitted(w: &mut Writer, admitted: Option<&Admitted>) {
    match admitted {
        None => {
            w.u8(0);
        }
        Some(a) => {
            w.u8(1).u32(a.view).raw(&a.set);
            a.quorum.write(w);
        }
    }
}

fn read_admitted(r: &mut Reader<'_>, n: u16) -> Decoded<Option<Admitted>> {
    match r.u8()? {
        0 => Ok(None),
        1 => Ok(Some(Admitted { view: r.u32()?, set: r.array()?, quorum: Quorum::read(r, n)? })),
        _ => Err(DecodeError::Invalid("quorum of a new view")),
    }
}

fn write_bits(w: &mut Writer, len: usize, set: impl Fn(usize) -> bool) {
    for byte in 0..len.div_ceil(8) {
        let bits = (0..8).filter(|bit| byte * 8 + bit < len && set(byte * 8 + bit));
        w.u8(bits.fold(0, |byte, bit| byte | 1 << bit));
    }
}

/// Bits at these positions. Each is visited once: what others can make a seat encode must cost no more than it is long.
fn write_positions(w: &mut Writer, len: usize, positions: &[u16]) {
    let mut bytes = vec![0u8; len.div_ceil(8)];
    for at in positions.iter().map(|at| usize::from(*at)).filter(|at| *at < len) {
        if let Some(byte) = bytes.get_mut(at / 8) {
            *byte |= 1 << (at % 8);
        }
    }
    w.raw(&bytes);
}

/// The positions of the bits that are set.
fn read_bits(r: &mut Reader<'_>, len: usize) -> Decoded<Vec<usize>> {
    let bytes = r.take(len.div_ceil(8))?;
    let at: Vec<usize> = bytes
        .iter()
        .enumerate()
        .flat_map(|(i, byte)| (0..8).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| i * 8 + bit))
        .collect();
    if at.last().is_some_and(|last| *last >= len) {
        return Err(DecodeError::Invalid("bitmap"));
    }
    Ok(at)
}

/// The entries of a SET that are not zero.
pub(crate) fn listed_of(held: &[Digest]) -> Vec<Listed> {
    held.iter().zip(0u16..).filter(|(d, _)| **d != [0; 32]).map(|(d, seat)| Listed { seat, d: *d }).collect()
}

fn write_sets(w: &mut Writer, sets: &[ShownSet]) {
    let all: BTreeSet<Listed> = sets.iter().flat_map(|s| listed_of(&s.set.held)).collect();
    let all: Vec<Listed> = all.into_iter().collect();
    w.list(&all, |w, l| l.write(w));
    w.list(sets, |w, s| {
        let lists = |at: usize| {
            all.get(at).is_some_and(|l| s.set.held.get(usize::from(l.seat)).is_some_and(|d| *d == l.d))
        };
        w.u16(s.seat);
        write_bits(w, all.len(), lists);
        if let Some(full) = &s.set.full {
            w.raw(full);
        }
        w.raw(&s.signature);
    });
}

fn read_sets(r: &mut Reader<'_>, n: u16) -> Decoded<Vec<ShownSet>> {
    let all = r.list("bundles of sets", MAX_LISTED, Listed::read)?;
    let ascending = all.windows(2).all(|w| matches!(w, [a, b] if a < b));
    if !ascending || all.iter().any(|l| l.seat >= n || l.d == [0; 32]) {
        return Err(DecodeError::Invalid("bundles of sets"));
    }
    let mut used = BTreeSet::new();
    let sets = r.list("sets", SHOWN * usize::from(n), |r| {
        let seat = r.u16()?;
        let mut held = vec![[0; 32]; usize::from(n)];
        for at in read_bits(r, all.len())? {
            let listed = all.get(at).ok_or(DecodeError::Invalid("sets"))?;
            let slot = held.get_mut(usize::from(listed.seat)).ok_or(DecodeError::Invalid("sets"))?;
            if *slot != [0; 32] {
                return Err(DecodeError::Invalid("sets"));
            }
            *slot = listed.d;
            used.insert(at);
        }
        let full = if held.contains(&[0; 32]) { None } else { Some(r.array()?) };
        Ok(ShownSet { seat, set: SetMsg { held, full }, signature: r.array()? })
    })?;
    let sorted = sets.windows(2).all(|w| matches!(w, [a, b] if a.key() < b.key()));
    if !sorted || used.len() != all.len() || sets.iter().any(|s| s.seat >= n) {
        return Err(DecodeError::Invalid("sets"));
    }
    Ok(sets)
}
