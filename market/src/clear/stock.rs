//! What is left of each seat's capacity while orders are served.
//!
//! Inputs: the book. Invariant: what is left of a seat never becomes less than nothing. It never becomes more either,
//! so an offer that has no room for an order has none for the orders of its class that come later: this is remembered.

use super::book::{Book, Entry, Row, Said, Space};
use super::{Holding, NoBid};
use crate::fit::{Kinds, Models, Need};
use crate::rules::{has_wishes, unservable};
use crate::{BidTerms, Digest, Free, OfferCapacity, Placement, Reason};

/// Most notes about classes and offers; classes beyond are judged anew each time.
const MAX_NOTES: usize = 1 << 22;

/// What is known of a class of orders and an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Note {
    /// There may be room.
    Open,
    /// There was room before others were served, and there is none now.
    Gone,
    /// There has never been room, for this reason as long as nothing of the offer is held.
    Never(Reason),
}

/// What is left of an offer.
struct Left<'a> {
    kinds: Kinds,
    /// In the order of kinds.
    nodes: Vec<Free<'a>>,
    /// What the nodes had before any order held some of it.
    whole: Option<Vec<Free<'a>>>,
}

/// What is left of each seat's capacity.
pub(super) struct Stock<'b, 'a> {
    book: &'b Book<'a>,
    /// The offers of a column follow each other.
    offers: Vec<Left<'a>>,
    /// The first offer of each column, and after the last one the end.
    first: Vec<usize>,
    /// What the orders of a class need.
    needs: Vec<Need<'a>>,
    /// Notes by class, then offer.
    notes: Vec<Note>,
    /// By class, then column, whether no offer of it has room; and how many may have.
    closed: Vec<bool>,
    open: Vec<u16>,
    /// Memory for the keys of an order.
    space: Space,
    /// How often an order was held against the nodes of an offer.
    #[cfg(test)]
    pub tried: usize,
}

impl<'b, 'a> Stock<'b, 'a> {
    pub fn new(book: &'b Book<'a>) -> Self {
        Self::with_notes(book, MAX_NOTES)
    }

    /// With at most so many notes.
    pub fn with_notes(book: &'b Book<'a>, max: usize) -> Self {
        let (mut offers, mut first, mut open) = (vec![], vec![], vec![]);
        let mut models = Models::default();
        for column in &book.columns {
            first.push(offers.len());
            offers.extend(column.bundle.capacity.iter().map(|offer| {
                let kinds = Kinds::of(&mut models, &offer.nodes);
                Left { nodes: kinds.in_order(&offer.nodes), kinds, whole: None }
            }));
            open.push(column.bundle.capacity.len().min(usize::from(u16::MAX)) as u16);
        }
        first.push(offers.len());
        let classes = book.needs.len().min(max / offers.len().max(open.len()).max(1));
        Self {
            book,
            first,
            needs: book.needs.iter().map(|req| models.need(req)).collect(),
            notes: vec![Note::Open; classes * offers.len()],
            closed: vec![false; classes * open.len()],
            open: open.repeat(classes),
            offers,
            space: Space::default(),
            #[cfg(test)]
            tried: 0,
        }
    }

    /// Seats of the market.
    pub fn seats(&self) -> u16 {
        self.book.input.seats
    }

    /// The position of an offer.
    fn offer(&self, bid: &Entry) -> Option<usize> {
        let (from, to) = (self.first.get(bid.column)?, self.first.get(bid.column + 1)?);
        Some(from + usize::from(bid.spec)).filter(|at| at < to)
    }

    /// What is noted of a class and an offer. Classes beyond the last that has notes are beyond the end.
    fn note(&mut self, class: usize, offer: usize) -> Option<&mut Note> {
        self.notes.get_mut(class * self.offers.len() + offer)
    }

    /// What an order needs and what is left of an offer.
    fn against(&mut self, row: &Row<'_>, offer: usize) -> Option<(&Need<'a>, &Left<'a>)> {
        #[cfg(test)]
        {
            self.tried += 1;
        }
        Some((self.needs.get(row.class)?, self.offers.get(offer)?))
    }

    /// Where an order goes on what is left of an offer.
    fn place(&mut self, row: &Row<'_>, offer: usize) -> Result<Placement, Reason> {
        let (need, left) = self.against(row, offer).ok_or(Reason::NoOffer)?;
        left.kinds.fit(need, &left.nodes)
    }

    /// Whether there was room for an order before anything of an offer was held; there is none now.
    fn has_had_room(&mut self, row: &Row<'_>, offer: usize) -> bool {
        if !self.is_held(offer) {
            return false;
        }
        let fits = |(need, Left { kinds, whole, .. }): (&Need<'_>, &Left<'_>)| {
            whole.as_ref().is_some_and(|whole| kinds.fits(need, whole).is_ok())
        };
        self.against(row, offer).is_some_and(fits)
    }

    /// Whether some order holds a part of an offer.
    fn is_held(&self, offer: usize) -> bool {
        self.offers.get(offer).is_some_and(|left| left.whole.is_some())
    }

    /// Notes that an offer has no room, and says why.
    fn refuse(&mut self, row: &Row<'_>, bid: &Entry, offer: usize, reason: Reason) -> Reason {
        let known = self.note(row.class, offer).map(|note| *note);
        let gone = match known {
            Some(Note::Gone) => true,
            Some(Note::Never(_)) => false,
            _ => self.has_had_room(row, offer),
        };
        if known == Some(Note::Open) {
            if let Some(note) = self.note(row.class, offer) {
                *note = if gone { Note::Gone } else { Note::Never(reason) };
            }
            let at = row.class * self.book.columns.len() + bid.column;
            if let (Some(open), Some(closed)) = (self.open.get_mut(at), self.closed.get_mut(at)) {
                *open = open.saturating_sub(1);
                *closed = *open == 0;
            }
        }
        // It would have fitted before others were served: say so rather than name a lack that is not there.
        if gone { Reason::Outbid } else { reason }
    }

    /// Whether a seat may serve an order with this bid, but for room and price.
    fn may_serve(&self, row: &Row<'_>, bid: &Entry) -> Result<usize, Reason> {
        let bidder = self.book.bidder(bid.column).ok_or(Reason::Silent)?;
        bidder.admitted(row.order)?;
        let offer = self.offer(bid).ok_or(Reason::NoOffer)?;
        bidder.serves(row.order, &bid.terms)?;
        Ok(offer)
    }

    /// The preferred bids for an order that are feasible on what is left, at most so many, without those of one seat; each
    /// with the place that it would take. Bids are judged as they are reached.
    pub fn best(&mut self, row: &Row<'a>, count: usize, but: Option<u16>) -> Vec<(Entry, Placement)> {
        let (book, mut best) = (self.book, Vec::with_capacity(count));
        if unservable(book.input.rules, row.order).is_some() {
            return best;
        }
        let (wishes, plain) = (has_wishes(row.order), plainly_served(book, row));
        let width = book.columns.len();
        let closed = self.closed.get(row.class * width..).and_then(|closed| closed.get(..width));
        let mut space = std::mem::take(&mut self.space);
        for bid in book.bids(row, closed.unwrap_or_default(), &mut space).filter(|b| Some(b.seat) != but) {
            // What most orders and bids have in common was judged once.
            let offer = match wishes || !bid.terms.is_none() {
                true => self.may_serve(row, &bid).ok(),
                false => self.offer(&bid).filter(|_| plain),
            };
            let Some(offer) = offer else { continue };
            if self.note(row.class, offer).is_some_and(|note| *note != Note::Open) {
                continue;
            }
            match self.place(row, offer) {
                Ok(placement) => best.push((bid, placement)),
                Err(reason) => {
                    self.refuse(row, &bid, offer, reason);
                }
            }
            if best.len() >= count {
                break;
            }
        }
        self.space = space;
        best
    }

    /// Takes the capacity of a bid that was chosen.
    pub fn hold(&mut self, row: &Row<'_>, bid: &Entry, placement: Placement) -> Holding {
        if let Some(left) = self.offer(bid).and_then(|offer| self.offers.get_mut(offer)) {
            left.whole.get_or_insert_with(|| left.nodes.clone());
            left.kinds.take(&mut left.nodes, row.order.requirements, &placement);
        }
        Holding { seat: bid.seat, spec: bid.spec, placement }
    }

    /// Takes the capacity of a bid that is known to have won.
    pub fn hold_again(&mut self, row: &Row<'_>, bid: &Entry) {
        if let Some(Ok(placement)) = self.offer(bid).map(|offer| self.place(row, offer)) {
            self.hold(row, bid, placement);
        }
    }

    /// Whether a bid is feasible on what its seat has left.
    fn judge(&mut self, row: &Row<'_>, bid: &Entry) -> Result<(), Reason> {
        let offer = self.may_serve(row, bid)?;
        match self.note(row.class, offer).map(|note| *note) {
            Some(Note::Gone) => return Err(Reason::Outbid),
            Some(Note::Never(reason)) if !self.is_held(offer) => return Err(reason),
            _ => {}
        }
        let (need, left) = self.against(row, offer).ok_or(Reason::NoOffer)?;
        if let Err(reason) = left.kinds.fits(need, &left.nodes) {
            return Err(self.refuse(row, bid, offer, reason));
        }
        if row.order.ceiling.is_none_or(|ceiling| bid.price > ceiling) { Err(Reason::Price) } else { Ok(()) }
    }

    /// Why each seat does not serve an order, ascending by seat; seats with a feasible bid are left out.
    pub fn refusals(&mut self, row: &Row<'_>) -> Vec<NoBid> {
        let (book, nobody) = (self.book, unservable(self.book.input.rules, row.order));
        let mut columns = book.columns.iter().zip(0usize..).peekable();
        let mut refusals = Vec::with_capacity(usize::from(book.input.seats));
        for seat in 0..book.input.seats {
            let column = columns.next_if(|(column, _)| column.seat == seat).map(|(_, at)| at);
            let reason = match (column, nobody) {
                (None, _) if book.input.garbage.contains(&seat) => Some(Reason::Garbage),
                (None, _) => Some(Reason::Silent),
                (Some(_), Some(nobody)) => Some(nobody),
                (Some(column), None) => match book.said(row, column) {
                    Said::Bid(bid) => self.judge(row, &bid).err(),
                    Said::NoBid(reason) => Some(reason),
                    Said::Nothing => Some(Reason::NotListed),
                },
            };
            refusals.extend(reason.map(|reason| (seat, reason)));
        }
        refusals
    }

    /// What a seat had to offer under one of its specs before anything was held.
    pub fn whole(&self, bid: &Entry) -> Option<&'a OfferCapacity> {
        self.book.columns.get(bid.column)?.bundle.capacity.get(usize::from(bid.spec))
    }

    /// What the offer of a bid binds its devices by.
    pub fn devices(&self, bid: &Entry) -> Option<Digest> {
        self.whole(bid)?.devices
    }
}

/// Whether bids without terms can run an order in its time; this is the same for all seats.
fn plainly_served(book: &Book<'_>, row: &Row<'_>) -> bool {
    book.bidder(0).is_some_and(|any| any.serves(row.order, &BidTerms::default()).is_ok())
}
