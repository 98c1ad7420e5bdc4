//! The rules of clearing as a market record fixes them: their version, and the tables that they may use.
//!
//! Everything that clearing knows about a seat beyond its bundle stands here, so that anybody who has the record can
//! clear again. A table for no seat and version 1 are the default: what records without a word about clearing mean.

use crate::encode::Writer;
use crate::terms::{BidTerms, Terms, is_region};
use crate::{Digest, ListedOrder, Reason, tagged_hash};
use serde::{Deserialize, Serialize};

/// The first rules: lowest price at its own price, no terms.
pub const FIRST_RULES: u32 = 1;
/// Rules with terms of orders and bids, second price, score.
const RULES_WITH_TERMS: u32 = 2;
/// The latest rules: offers may also bind their devices.
pub const LATEST_RULES: u32 = 3;
/// Highest standing of a seat.
pub const MAX_STANDING: u32 = 1_000_000;

/// What the market says of a seat.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SeatFacts {
    /// Where its cluster is; empty when nobody says.
    pub region: String,
    /// How well its devices are attested; 0 not at all.
    pub attestation: u8,
    /// What the market thinks of it; higher is better.
    pub standing: u32,
}

/// What makes one of two bids of the same price the better; 0 for nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreWeights {
    /// Points for each unit of standing.
    pub standing: u16,
    /// Points for each level of attestation.
    pub attestation: u16,
}

/// The rules of clearing and their tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClearingRules {
    /// Version of the rules, 1 to 3.
    pub version: u32,
    /// Facts by seat; empty, or one entry for each.
    #[serde(default)]
    pub seats: Vec<SeatFacts>,
    /// How seats of one price are compared.
    #[serde(default)]
    pub score: ScoreWeights,
}

/// Rules of clearing that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// Rules that this program does not know.
    #[error("rules of clearing have version {0}; accepted is 1 to 3")]
    Version(u32),
    /// Tables or weights under rules that have none.
    #[error("rules of clearing of version 1 have no tables")]
    Tables,
    /// A table that does not cover the seats.
    #[error("rules of clearing know {found} seats; accepted is none or {seats}")]
    Seats {
        /// Seats in the table.
        found: usize,
        /// Seats of the market.
        seats: u16,
    },
    /// A fact outside its range.
    #[error("rules of clearing: {field} of seat {seat} is not accepted")]
    Fact {
        /// The seat.
        seat: usize,
        /// Which fact.
        field: &'static str,
    },
}

impl Default for ClearingRules {
    fn default() -> Self {
        Self { version: FIRST_RULES, seats: vec![], score: ScoreWeights::default() }
    }
}

impl ClearingRules {
    /// The latest rules, without tables.
    pub fn latest() -> Self {
        Self { version: LATEST_RULES, ..Self::default() }
    }
    /// Whether these are the first rules, which a record does not mention.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks version and tables for a market of `seats` seats.
    pub fn check(&self, seats: u16) -> Result<(), RulesError> {
        if !(FIRST_RULES..=LATEST_RULES).contains(&self.version) {
            return Err(RulesError::Version(self.version));
        }
        if self.version == FIRST_RULES && !self.is_default() {
            return Err(RulesError::Tables);
        }
        if !self.seats.is_empty() && self.seats.len() != usize::from(seats) {
            return Err(RulesError::Seats { found: self.seats.len(), seats });
        }
        for (seat, facts) in self.seats.iter().enumerate() {
            if !facts.region.is_empty() && !is_region(&facts.region) {
                return Err(RulesError::Fact { seat, field: "region" });
            }
            if facts.standing > MAX_STANDING {
                return Err(RulesError::Fact { seat, field: "standing" });
            }
        }
        Ok(())
    }

    /// Whether orders may use these terms.
    pub fn know(&self, terms: &Terms) -> bool {
        self.version >= RULES_WITH_TERMS || terms.is_none()
    }
    /// Whether bids may use these terms.
    pub fn know_bid(&self, terms: &BidTerms) -> bool {
        self.version >= RULES_WITH_TERMS || terms.is_none()
    }
    /// Whether offers may bind their devices.
    pub fn know_devices(&self) -> bool {
        self.version >= LATEST_RULES
    }

    /// Names the version, tables and weights.
    pub fn digest(&self) -> Digest {
        let mut w = Writer::new();
        w.u32(self.version).list(&self.seats, |w, facts| {
            w.str(&facts.region).u8(facts.attestation).u32(facts.standing);
        });
        w.u16(self.score.standing).u16(self.score.attestation);
        tagged_hash("VENDUE-V1-CLEARING", &[&w.finish()])
    }

    /// What is known of a seat.
    pub fn facts(&self, seat: u16) -> &SeatFacts {
        static UNKNOWN: SeatFacts = SeatFacts { region: String::new(), attestation: 0, standing: 0 };
        self.seats.get(usize::from(seat)).unwrap_or(&UNKNOWN)
    }
    /// A seat's score; of two bids of one price the higher goes first.
    pub fn score(&self, seat: u16) -> u64 {
        let facts = self.facts(seat);
        let standing = u64::from(self.score.standing).saturating_mul(u64::from(facts.standing));
        let attestation = u64::from(self.score.attestation).saturating_mul(u64::from(facts.attestation));
        standing.saturating_add(attestation)
    }
}

/// A seat as orders see it.
#[derive(Debug, Clone, Copy)]
pub struct Bidder<'a> {
    /// The seat.
    pub seat: u16,
    /// The provider's name in the market record.
    pub provider: &'a str,
    /// The market's rules, which hold what is known of the seat.
    pub rules: &'a ClearingRules,
    /// The latest time at which a run that is awarded now starts, in milliseconds since 1970: when awards expire.
    pub from_ms: u64,
}

impl Bidder<'_> {
    /// The order's own wishes about who serves it.
    pub fn admitted(&self, order: &ListedOrder<'_>) -> Result<(), Reason> {
        let (req, terms, facts) = (order.requirements, order.terms, self.rules.facts(self.seat));
        let named = |list: &[String]| list.iter().any(|p| p == self.provider);
        let refused = [
            (terms.pinned.as_deref().is_some_and(|p| p != self.provider), Reason::Pinned),
            (named(&req.exclude_providers), Reason::Excluded),
            (!req.include_providers.is_empty() && !named(&req.include_providers), Reason::NotIncluded),
            (!terms.regions.is_empty() && !terms.regions.contains(&facts.region), Reason::Region),
            (facts.attestation < terms.min_attestation, Reason::Attestation),
            (facts.standing < terms.min_standing, Reason::Standing),
        ];
        refused.into_iter().find(|(is, _)| *is).map_or(Ok(()), |(_, reason)| Err(reason))
    }

    /// Whether a bid on these terms can run the order: no interruption that it does not allow, and in its time.
    pub fn serves(&self, order: &ListedOrder<'_>, bid: &BidTerms) -> Result<(), Reason> {
        let terms = order.terms;
        if bid.may_interrupt && !terms.interruptible {
            return Err(Reason::Interruption);
        }
        let after = |start_ms: u64, seconds: u32| start_ms.saturating_add(u64::from(seconds) * 1000);
        let there_from = bid.start_ms.max(self.from_ms);
        let start = there_from.max(terms.start_ms);
        let end = after(start, order.requirements.run_seconds);
        // What is promised from a time that has passed ends no later for that.
        let promised = match (bid.duration_s, bid.start_ms) {
            (0, _) => u64::MAX,
            (seconds, 0) => after(self.from_ms, seconds),
            (seconds, start_ms) => after(start_ms, seconds),
        };
        let wanted = if terms.end_ms == 0 { u64::MAX } else { terms.end_ms };
        if end > promised.min(wanted) { Err(Reason::Window) } else { Ok(()) }
    }
}

/// Whether an order wishes anything of who serves it: without, [`Bidder::admitted`] admits everybody.
pub(crate) fn has_wishes(order: &ListedOrder<'_>) -> bool {
    let (req, terms) = (order.requirements, order.terms);
    let lists = !req.exclude_providers.is_empty() || !req.include_providers.is_empty();
    let named = terms.pinned.is_some() || !terms.regions.is_empty();
    lists || named || terms.min_attestation > 0 || terms.min_standing > 0
}

/// Why nobody at all can serve an order under these rules.
pub(crate) fn unservable(rules: &ClearingRules, order: &ListedOrder<'_>) -> Option<Reason> {
    if !rules.know(order.terms) {
        return Some(Reason::Rules);
    }
    order.ceiling.is_none().then_some(Reason::Ceiling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clear::tests::OwnedOrder;
    use crate::requirements::tests::mk_requirements;

    fn mk_order(terms: Terms) -> OwnedOrder {
        OwnedOrder::new(mk_requirements(1, 1), terms)
    }

    fn mk_rules() -> ClearingRules {
        let facts =
            |region: &str, attestation, standing| SeatFacts { region: region.into(), attestation, standing };
        ClearingRules {
            seats: vec![facts("eu-north", 2, 70), facts("", 0, 10)],
            score: ScoreWeights { standing: 3, attestation: 100 },
            ..ClearingRules::latest()
        }
    }

    fn mk_bidder(rules: &ClearingRules, seat: u16) -> Bidder<'_> {
        Bidder { seat, provider: ["alpha", "bravo"][usize::from(seat)], rules, from_ms: 1_000_000 }
    }

    #[test]
    fn wishes_are_judged_by_the_record_alone() {
        let rules = mk_rules();
        let judged = |seat, terms| mk_bidder(&rules, seat).admitted(&mk_order(terms).listed());
        for (terms, reason) in [
            (Terms { pinned: Some("alpha".into()), ..Terms::default() }, Reason::Pinned),
            (Terms { regions: vec!["us".into(), "eu-north".into()], ..Terms::default() }, Reason::Region),
            (Terms { min_attestation: 2, ..Terms::default() }, Reason::Attestation),
            (Terms { min_standing: 70, ..Terms::default() }, Reason::Standing),
        ] {
            assert_eq!(judged(0, terms.clone()), Ok(()), "{reason}");
            assert_eq!(judged(1, terms), Err(reason));
        }
        assert_eq!(judged(0, Terms { min_attestation: 3, ..Terms::default() }), Err(Reason::Attestation));
        assert_eq!(judged(0, Terms { min_standing: 71, ..Terms::default() }), Err(Reason::Standing));
    }

    #[test]
    fn without_a_table_nothing_is_known_of_a_seat() {
        let rules = ClearingRules::latest();
        let judged = |terms| mk_bidder(&rules, 0).admitted(&mk_order(terms).listed());
        assert_eq!(judged(Terms::default()), Ok(()));
        assert_eq!(judged(Terms { regions: vec!["us".into()], ..Terms::default() }), Err(Reason::Region));
        assert_eq!(judged(Terms { min_standing: 1, ..Terms::default() }), Err(Reason::Standing));
    }

    #[test]
    fn a_run_is_in_the_time_of_order_and_bid() {
        // Awards expire at 1000 s, and the order runs for 600 s.
        let rules = mk_rules();
        let judged = |start_ms, end_ms, bid: BidTerms| {
            mk_bidder(&rules, 0)
                .serves(&mk_order(Terms { start_ms, end_ms, ..Terms::default() }).listed(), &bid)
        };
        let bid = |start_ms, duration_s| BidTerms { start_ms, duration_s, may_interrupt: false };
        assert_eq!(judged(0, 0, bid(0, 0)), Ok(()));
        assert_eq!(judged(0, 1_600_000, bid(0, 600)), Ok(()));
        for (start, end, bid) in [
            (0, 1_599_999, bid(0, 0)),
            (0, 1_600_000, bid(1_000_001, 0)),
            (1_000_001, 0, bid(0, 600)),
            (0, 0, bid(0, 599)),
            (0, 0, bid(999_999, 600)),
            (u64::MAX, 0, bid(0, 600)),
        ] {
            assert_eq!(judged(start, end, bid), Err(Reason::Window), "{start} {end} {bid:?}");
        }
        assert_eq!(judged(2_000_000, 2_600_000, bid(1_900_000, 700)), Ok(()));
    }

    #[test]
    fn only_orders_that_allow_it_are_interrupted() {
        let rules = mk_rules();
        let bid = BidTerms { may_interrupt: true, ..BidTerms::default() };
        let judged = |interruptible| {
            mk_bidder(&rules, 0).serves(&mk_order(Terms { interruptible, ..Terms::default() }).listed(), &bid)
        };
        assert_eq!((judged(true), judged(false)), (Ok(()), Err(Reason::Interruption)));
    }

    #[test]
    fn the_first_rules_know_no_terms_and_no_tables() {
        let first = ClearingRules::default();
        let terms = Terms { second_price: true, ..Terms::default() };
        assert_eq!(unservable(&first, &mk_order(terms.clone()).listed()), Some(Reason::Rules));
        assert_eq!(unservable(&first, &mk_order(Terms::default()).listed()), None);
        assert_eq!(unservable(&ClearingRules::latest(), &mk_order(terms).listed()), None);
        let unread = OwnedOrder { ceiling: None, ..mk_order(Terms::default()) };
        assert_eq!(unservable(&ClearingRules::latest(), &unread.listed()), Some(Reason::Ceiling));
        assert!(!first.know_bid(&BidTerms { duration_s: 1, ..BidTerms::default() }));
        assert_eq!(ClearingRules { version: FIRST_RULES, ..mk_rules() }.check(2), Err(RulesError::Tables));
    }

    #[test]
    fn each_version_knows_what_came_with_it() {
        let knows = |version| {
            let rules = ClearingRules { version, ..ClearingRules::default() };
            let terms = Terms { second_price: true, ..Terms::default() };
            let bid = BidTerms { duration_s: 1, ..BidTerms::default() };
            (rules.know(&terms), rules.know_bid(&bid), rules.know_devices())
        };
        let known = [FIRST_RULES, RULES_WITH_TERMS, LATEST_RULES].map(knows);
        assert_eq!(known, [(false, false, false), (true, true, false), (true, true, true)]);
    }

    #[test]
    fn every_entry_of_the_tables_has_a_part_in_the_digest() {
        let rules = mk_rules();
        let changes: [fn(&mut ClearingRules); 7] = [
            |r| r.version = FIRST_RULES,
            |r| r.seats[1].region = "eu".into(),
            |r| r.seats[1].attestation = 1,
            |r| r.seats[1].standing = 11,
            |r| r.score.standing = 4,
            |r| r.score.attestation = 101,
            |r| r.seats.clear(),
        ];
        for change in changes {
            let mut other = rules.clone();
            change(&mut other);
            assert_ne!(other.digest(), rules.digest(), "{other:?}");
        }
    }

    #[test]
    fn tables_are_checked_and_scored() {
        let rules = mk_rules();
        assert_eq!(rules.check(2), Ok(()));
        assert_eq!(rules.check(3), Err(RulesError::Seats { found: 2, seats: 3 }));
        assert_eq!((rules.score(0), rules.score(1), rules.score(9)), (410, 30, 0));
        let wrong = |change: fn(&mut ClearingRules)| {
            let mut rules = mk_rules();
            change(&mut rules);
            rules.check(2).unwrap_err()
        };
        assert_eq!(wrong(|r| r.version = 4), RulesError::Version(4));
        assert_eq!(wrong(|r| r.seats[1].region = "EU".into()), RulesError::Fact { seat: 1, field: "region" });
        let standing = wrong(|r| r.seats[0].standing = MAX_STANDING + 1);
        assert_eq!(standing, RulesError::Fact { seat: 0, field: "standing" });
    }
}
