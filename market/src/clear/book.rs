//! The bids of a round, by order and in order of preference.
//!
//! Inputs: those of clearing. A round may have hundreds of thousands of bids, of which few are looked at twice. So all
//! that is kept of a bid is one number, its key: price, then the place of its seat among the scores; the lower is the
//! better. An order's keys lie side by side, one for each bundle, and are gone through each time a bid is wanted, and
//! sorted when many are; the hash that decides between equal keys is worked out for those only. Orders that need the
//! same are one class.
//!
//! Invariant: the sequence of bids and of orders depends on their set only.

use super::{ClearingInput, ListedOrder, OpenedBundle, RecordKind};
use crate::{BidTerms, Bidder, Digest, GpuModel, Price, Reason, Requirements, tagged_hash};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The place of an order among those that are served: lowest first.
pub fn rank(beacon: &Digest, order: &Digest) -> Digest {
    tagged_hash("VENDUE-V1-RANK", &[beacon, order])
}

/// What decides between bids of one price and score: the lowest wins.
pub(super) fn tie(beacon: &Digest, order: &Digest, seat: u16) -> Digest {
    tagged_hash("VENDUE-V1-TIE", &[beacon, order, &seat.to_be_bytes()])
}

/// The key of no bid.
const NONE: u64 = u64::MAX;
/// Bits of a key below the price; a price has at most 40.
const SCORE_BITS: u32 = 16;
/// No record.
const NOWHERE: u32 = u32::MAX;

fn key_of(price: Price, place: u16) -> u64 {
    price.micros().unsigned_abs() << SCORE_BITS | u64::from(place)
}

/// A bid for one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Position of the bundle among the columns.
    pub column: usize,
    pub seat: u16,
    pub price: Price,
    pub spec: u16,
    pub terms: BidTerms,
}

/// What a bundle says of an order.
pub(super) enum Said {
    Bid(Entry),
    NoBid(Reason),
    Nothing,
}

/// A bundle that counts.
pub(super) struct Column<'a> {
    pub seat: u16,
    pub bundle: &'a OpenedBundle<'a>,
    /// Which of the orders' lists it has.
    view: usize,
    /// Place of its seat by score, the highest first.
    place: u16,
}

/// An order of the round.
pub(super) struct Row<'a> {
    pub order: &'a ListedOrder<'a>,
    /// Position among the rows, which are ascending by digest.
    pub at: usize,
    /// Orders that need the same have the same class.
    pub class: usize,
}

/// The round's orders and bids.
pub(super) struct Book<'a> {
    pub input: ClearingInput<'a>,
    /// Ascending by digest.
    pub rows: Vec<Row<'a>>,
    /// Ascending by seat.
    pub columns: Vec<Column<'a>>,
    /// What the orders of each class need.
    pub needs: Vec<&'a Requirements>,
    /// Positions of rows in the order in which they are served.
    turns: Vec<usize>,
    /// The place of each row's record in a bundle, by list of orders.
    views: Vec<Vec<u32>>,
    /// A key for each row and column.
    keys: Vec<u64>,
}

/// All that decides whether an order fits on given nodes.
type Need<'a> = (u32, u32, u64, u64, u64, u64, &'a [GpuModel]);

fn need(req: &Requirements) -> Need<'_> {
    let per_worker = (req.cpu_millis_per_worker, req.memory_mib_per_worker, req.disk_mib_per_worker);
    let (cpu, memory, disk) = per_worker;
    (req.workers, req.gpus_per_worker, cpu, memory, disk, req.min_gpu_memory_mib, &req.gpu_models)
}

impl<'a> Book<'a> {
    pub fn new(input: &ClearingInput<'a>) -> Self {
        let by_digest: BTreeMap<&Digest, &'a ListedOrder<'a>> =
            input.orders.iter().map(|o| (&o.digest, o)).collect();
        let (mut classes, mut needs): (BTreeMap<Need<'_>, usize>, _) = (BTreeMap::new(), vec![]);
        let row = |(at, order): (usize, &'a ListedOrder<'a>)| {
            let class = *classes.entry(need(order.requirements)).or_insert_with(|| {
                needs.push(order.requirements);
                needs.len() - 1
            });
            Row { order, at, class }
        };
        let rows: Vec<Row<'a>> = by_digest.into_values().enumerate().map(row).collect();
        let mut turns: Vec<usize> = (0..rows.len()).collect();
        turns.sort_by_cached_key(|at| rows.get(*at).map(|r| (rank(input.beacon, &r.order.digest), *at)));
        let mut book =
            Self { input: *input, rows, columns: vec![], needs, turns, views: vec![], keys: vec![] };
        book.enter();
        book
    }

    /// Enters the bundles of the seats that have a readable one.
    fn enter(&mut self) {
        let input = self.input;
        let readable = |b: &&OpenedBundle<'_>| b.seat < input.seats && !input.garbage.contains(&b.seat);
        let bundles: BTreeMap<u16, &OpenedBundle<'_>> =
            input.bundles.iter().filter(readable).map(|b| (b.seat, b)).collect();
        let scores: BTreeSet<Reverse<u64>> =
            bundles.keys().map(|seat| Reverse(input.rules.score(*seat))).collect();
        let places: BTreeMap<Reverse<u64>, u16> = scores.into_iter().zip(0u16..).collect();
        let mut known: BTreeMap<&[u8], usize> = BTreeMap::new();
        for (seat, bundle) in bundles {
            let next = self.views.len();
            let view = *known.entry(bundle.orders.as_flattened()).or_insert(next);
            if view == next {
                self.views.push(self.places_in(bundle.orders));
            }
            let place = places.get(&Reverse(input.rules.score(seat))).copied().unwrap_or_default();
            self.columns.push(Column { seat, bundle, view, place });
        }
        let width = self.columns.len();
        self.keys = vec![NONE; self.rows.len() * width];
        for (at, column) in self.columns.iter().enumerate() {
            let Some(view) = self.views.get(column.view) else { continue };
            // One after the other where the bundle lists the round's orders, which nearly all do.
            let records = view.iter().map(|record| column.bundle.records.get(*record as usize));
            for (key, record) in self.keys.iter_mut().skip(at).step_by(width).zip(records) {
                if let Some(RecordKind::Bid { price, .. }) = record {
                    *key = key_of(*price, column.place);
                }
            }
        }
    }

    /// Where a list of orders has each row; of several places the first counts.
    fn places_in(&self, orders: &[Digest]) -> Vec<u32> {
        let mut places = vec![NOWHERE; self.rows.len()];
        let mut next = 0;
        for (order, record) in orders.iter().zip(0u32..) {
            // Lists are sorted like the rows, so that the next order is nearly always that of the next row.
            if self.rows.get(next).is_none_or(|row| row.order.digest != *order) {
                match self.rows.binary_search_by(|row| row.order.digest.cmp(order)) {
                    Ok(found) => next = found,
                    Err(_) => continue,
                }
            }
            if let Some(place) = places.get_mut(next).filter(|place| **place == NOWHERE) {
                *place = record;
            }
            next += 1;
        }
        places
    }

    /// The rows in the order in which they are served.
    pub fn turns(&self) -> impl Iterator<Item = &Row<'a>> {
        self.turns.iter().filter_map(|at| self.rows.get(*at))
    }

    /// The column of a seat.
    pub fn column(&self, seat: u16) -> Option<usize> {
        self.columns.binary_search_by_key(&seat, |c| c.seat).ok()
    }

    /// What a bundle says of an order.
    pub fn said(&self, row: &Row<'_>, column: usize) -> Said {
        let Some(Column { seat, bundle, view, .. }) = self.columns.get(column) else { return Said::Nothing };
        let place = self.views.get(*view).and_then(|view| view.get(row.at));
        match place.and_then(|place| bundle.records.get(*place as usize)) {
            Some(RecordKind::Bid { price, spec, terms }) => {
                Said::Bid(Entry { column, seat: *seat, price: *price, spec: *spec, terms: *terms })
            }
            Some(RecordKind::NoBid(reason)) => Said::NoBid(*reason),
            None => Said::Nothing,
        }
    }

    /// A seat's bid for an order.
    pub fn bid(&self, row: &Row<'_>, seat: u16) -> Option<Entry> {
        match self.said(row, self.column(seat)?) {
            Said::Bid(entry) => Some(entry),
            _ => None,
        }
    }

    /// How an order sees the seat of a column.
    pub fn bidder(&self, column: usize) -> Option<Bidder<'a>> {
        let Column { seat, bundle, .. } = self.columns.get(column)?;
        let ClearingInput { rules, expires_ms, .. } = self.input;
        Some(Bidder { seat: *seat, provider: bundle.provider, rules, from_ms: expires_ms })
    }

    /// The bids for an order up to its ceiling, the preferred first, without those of columns that are `closed`.
    pub fn bids<'b>(&'b self, row: &'b Row<'a>, closed: &[bool], space: &'b mut Space) -> Bids<'b, 'a> {
        let width = self.columns.len();
        let last = row.order.ceiling.map_or(0, |ceiling| key_of(ceiling, u16::MAX));
        let keys = self.keys.get(row.at * width..).unwrap_or_default().iter().take(width);
        let closed = closed.iter().chain(std::iter::repeat(&false));
        space.keys.clear();
        space
            .keys
            .extend(keys.zip(closed).map(|(key, closed)| if *closed || *key > last { NONE } else { *key }));
        space.sorted.clear();
        Bids { book: self, row, space, passes: 0, tied: vec![] }
    }
}

/// So many times the least of an order's keys is looked for; then the rest is sorted.
const PASSES: u32 = 4;

/// Memory for the keys of an order.
#[derive(Default)]
pub(super) struct Space {
    /// By column; [`NONE`] where nothing was bid, and for bids that were given.
    keys: Vec<u64>,
    /// With their columns the keys that were left after [`PASSES`], the least last.
    sorted: Vec<(u64, usize)>,
}

/// The bids for an order, the preferred first.
pub(super) struct Bids<'b, 'a> {
    book: &'b Book<'a>,
    row: &'b Row<'a>,
    space: &'b mut Space,
    /// How often the least key was looked for.
    passes: u32,
    /// Columns with one key that are to be given next, the last first.
    tied: Vec<usize>,
}

impl Bids<'_, '_> {
    fn entry(&self, column: usize) -> Option<Entry> {
        match self.book.said(self.row, column) {
            Said::Bid(entry) => Some(entry),
            _ => None,
        }
    }

    /// Takes the least key: gives one of its columns and leaves the others in `tied`.
    fn least(&mut self) -> Option<usize> {
        if self.passes == PASSES {
            let (least, first) = self.space.sorted.pop()?;
            while let Some((_, column)) = self.space.sorted.pop_if(|(key, _)| *key == least) {
                self.tied.push(column);
            }
            return Some(first);
        }
        let least = self.space.keys.iter().copied().min().filter(|key| *key != NONE)?;
        let mut first = None;
        for (column, key) in self.space.keys.iter_mut().enumerate().filter(|(_, key)| **key == least) {
            *key = NONE;
            match first {
                None => first = Some(column),
                Some(_) => self.tied.push(column),
            }
        }
        self.passes += 1;
        if self.passes == PASSES {
            let left = self.space.keys.iter().copied().zip(0usize..).filter(|(key, _)| *key != NONE);
            self.space.sorted.extend(left);
            self.space.sorted.sort_unstable_by_key(|left| Reverse(*left));
        }
        first
    }
}

impl Iterator for Bids<'_, '_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        if let Some(column) = self.tied.pop() {
            return self.entry(column);
        }
        let first = self.least()?;
        if self.tied.is_empty() {
            return self.entry(first);
        }
        self.tied.push(first);
        let (beacon, order) = (self.book.input.beacon, &self.row.order.digest);
        let seat = |column: usize| self.book.columns.get(column).map_or(u16::MAX, |c| c.seat);
        self.tied.sort_by_cached_key(|column| {
            let seat = seat(*column);
            Reverse((tie(beacon, order, seat), seat))
        });
        self.tied.pop().and_then(|column| self.entry(column))
    }
}
