//! All runs of one round of four seats, one of them faulty, within stated bounds, with the core's own transition function.
//!
//! Inputs: [`Bounds`]. Output: [`Found`]. The honest seats are [`vendue_auction_core::Round`]s with stand-in cryptography.
//! Time goes in phases of D; a message is said at the end of a phase and is due in the next one.
//!
//! # What is covered
//! - *Network.* Each message between honest seats (SET, ADMIT, LOCK, OPEN, NEWVIEW, PROPOSE; and each honest bundle, which is
//!   in time or not) is on time, one phase late, or never delivered. A run has at most [`Bounds::deviations`] messages that
//!   are not on time. Messages are not sent again, which makes the network worse than it is. What comes in one phase comes in
//!   any order that makes a difference: in the order given and in the reverse, which a test compares with all orders.
//! - *Clocks.* Where a deviation is allowed, the clock of one honest seat may stand still from just before T1 for six D.
//! - *The faulty seat* ([`Conduct`]) hears everything at once and tells each honest seat in each phase something of its own:
//!   no bundle, or one of its versions; up to D after T2, a SET with any of them, with none, without the bundle of the honest
//!   seat that proposes first, or empty; ADMIT, LOCK and COMMIT wherever its own vote completes a quorum; at T2 + D an ADMIT
//!   for nothing, which can only end view 0; NEWVIEW that hides or shows SETs and quorums; and where it proposes, any value
//!   that follows from some NEWVIEWs of q seats.
//! - *Cases.* The faulty seat proposes in the first of the later views, in the second, or in none of the two.
//!
//! # What is left out because it leads to nothing new
//! - Of the faulty seat's words, what changes nothing that the seat says, its view or its commit in that phase: it may say it
//!   later. Bundles, and with two versions SETs at T2, are the exception.
//! - A message that changes nothing on time is not late either.
//! - States are one where all seats have the same facts (`facts.rs`); the search compares two pasts of such a state.
//! - Runs that differ only in the names of honest seats that propose in no explored view, or in which version of the faulty
//!   seat's bundle is which, start as one. Runs in which all honest seats have a commit and have opened end.
//!
//! Checked in each state: I1, I2, I3, I4, I6, I8; in runs with every message on time also I5 and I9.
//!
//! Not covered: messages that are faster than a phase or later than two, NEWVIEWs of a view that is over by the clock in
//! proposals for it, more than two versions of a bundle, what follows the share. The search is breadth-first and written
//! here: a state is three numbers of states of seats and what is late, so that the core's function runs once for each state
//! of one seat and each set of messages, and not once for each state of the whole, as in a general model checker.

mod facts;
mod faulty;
mod names;
mod rules;
mod seats;

pub use rules::Broken;

use facts::Facts;
use faulty::{Offer, Power, hear, offers};
use names::{Bundles, JUNK, MessageId, Names, OF_HONEST, VERSIONS};
use seats::{Seats, StateId, THAW};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use vendue_auction_core::KeyError;
use vendue_auction_core::wire::Kind;

const SEATS: usize = 4;
const HONEST: usize = 3;
const QUORUM: usize = 3;
/// Place of the faulty seat.
const FAULTY: u8 = 3;
/// The phase in which view 1 begins, and how many a view takes.
const FIRST_VIEW: u8 = 5;
const VIEW: u8 = 6;

/// What the faulty seat does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// Nothing.
    Silent,
    /// Bundles, votes, commits, NEWVIEWs and proposals; no SET, and no vote for what nobody votes for.
    Votes,
    /// Everything.
    Anything,
}

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Views after view 0.
    pub views: u8,
    /// Messages between honest seats that are late or lost, at most; a clock that stands still counts as one.
    pub deviations: u8,
    /// Of which kind these messages are; none for any.
    pub only: Option<Kind>,
    /// What the faulty seat does.
    pub conduct: Conduct,
    /// Versions of its bundle that the faulty seat has, one or two. With one, it shows its SET only to whom that makes a
    /// difference at once, and no two SETs that admit the same.
    pub versions: u8,
    /// States after which to stop.
    pub states: u64,
    /// Takes up to four messages to one seat in one phase in every order, not only in two.
    pub every_order: bool,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether everything within the bounds was explored.
    pub complete: bool,
    /// States of the whole.
    pub states: u64,
    /// Steps from state to state.
    pub transitions: u64,
    /// States of one seat.
    pub local_states: u64,
    /// Transitions of a seat that were made from two pasts and compared.
    pub compared: u64,
    /// Sets of messages to one seat whose order makes a difference.
    pub ordered: u64,
    /// Phases gone through, at most.
    pub depth: u8,
    /// States in which all honest seats have a commit and have opened.
    pub committed: u64,
    /// Last states in which some have not.
    pub undecided: u64,
    /// What did not hold, with the first run in which it did not.
    pub violations: BTreeMap<String, String>,
}

/// The view that it is by the clock at the end of a phase.
fn clock_view(phase: u8) -> u8 {
    if phase < FIRST_VIEW { 0 } else { (phase - FIRST_VIEW) / VIEW + 1 }
}

/// A state of the whole: the seats, and the list of what is late.
type Joint = ([StateId; HONEST], u32);

/// What may happen to one seat in a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice {
    cost: u8,
    to: StateId,
    late: Vec<MessageId>,
}

/// A message that is late, and to whom.
type Late = (u8, MessageId);

/// Explores all cases.
pub fn explore(bounds: &Bounds, mut progress: impl FnMut(&Found)) -> Result<Found, KeyError> {
    explore_rules(bounds, None, &mut progress)
}

/// Explores seats that all break a rule until an invariant of this name does not hold, to show that the checks see it.
pub fn explore_broken(bounds: &Bounds, broken: Broken, invariant: &str) -> Result<Found, KeyError> {
    explore_rules(bounds, Some((broken, invariant)), &mut |_| {})
}

fn explore_rules(
    bounds: &Bounds,
    broken: Option<(Broken, &str)>,
    progress: &mut impl FnMut(&Found),
) -> Result<Found, KeyError> {
    let mut found = Found { complete: true, ..Found::default() };
    for turn in 1..=u32::from(bounds.views) + 1 {
        for frozen in [None, Some(0), Some(1), Some(2)] {
            if frozen.is_some() && (bounds.deviations == 0 || broken.is_some()) {
                continue;
            }
            let rule = broken.map(|(rule, _)| rule);
            let seats = Seats::new(Names::new(turn, bounds.versions)?, frozen, rule, bounds.every_order);
            let until = broken.map(|(_, invariant)| invariant);
            let mut search = Search::new(seats, *bounds, frozen);
            search.run(until, &mut found, progress);
            if until.is_some_and(|until| search.has_seen(until, &found)) {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// Offers, with their number: menus that are alike have one.
type Menu = (u32, Rc<Vec<Offer>>);
/// A seat, what is due for it on time and late, the menu, and the deviations that are left.
type ChoiceKey = (StateId, Vec<MessageId>, Vec<MessageId>, u32, u8);

struct Search {
    seats: Seats,
    bounds: Bounds,
    frozen: Option<u8>,
    bundles: Vec<MessageId>,
    late: Vec<Vec<Late>>,
    late_by_list: HashMap<Vec<Late>, u32>,
    menus: HashMap<Power, Menu>,
    menu_numbers: HashMap<Rc<Vec<Offer>>, u32>,
    choices: HashMap<ChoiceKey, Rc<Vec<Choice>>>,
}

impl Search {
    fn new(seats: Seats, bounds: Bounds, frozen: Option<u8>) -> Self {
        Self {
            seats,
            bounds,
            frozen,
            bundles: vec![],
            late: vec![vec![]],
            late_by_list: HashMap::from([(vec![], 0)]),
            menus: HashMap::new(),
            menu_numbers: HashMap::new(),
            choices: HashMap::new(),
        }
    }

    /// Whether an invariant of this name did not hold.
    fn has_seen(&self, invariant: &str, found: &Found) -> bool {
        let mut all = found.violations.keys().chain(self.seats.violations.keys());
        all.any(|what| what.starts_with(invariant))
    }

    fn run(&mut self, until: Option<&str>, found: &mut Found, progress: &mut impl FnMut(&Found)) {
        let mut layer = self.roots();
        found.states += layer.len() as u64;
        let last = FIRST_VIEW + VIEW * self.bounds.views;
        for phase in 2..=last {
            self.begin(&layer);
            let mut next: HashMap<Joint, u8> = HashMap::new();
            for (joint, cost) in &layer {
                self.check(joint, *cost, phase - 1, found);
                if self.is_over(joint) {
                    found.committed += 1;
                    continue;
                }
                self.step(joint, *cost, phase, &mut next, found);
                found.local_states += self.seats.count();
                progress(found);
                found.local_states -= self.seats.count();
                let enough = until.is_some_and(|until| self.has_seen(until, found));
                if enough || found.states + next.len() as u64 > self.bounds.states {
                    found.complete = false;
                    break;
                }
            }
            found.states += next.len() as u64;
            found.depth = found.depth.max(phase);
            layer = next;
            if !found.complete {
                break;
            }
        }
        for (joint, cost) in &layer {
            self.check(joint, *cost, last, found);
            let over = self.is_over(joint);
            *(if over { &mut found.committed } else { &mut found.undecided }) += 1;
        }
        found.local_states += self.seats.count();
        found.compared += self.seats.compared;
        found.ordered += self.seats.ordered;
        for (what, story) in &self.seats.violations {
            found.violations.entry(what.clone()).or_insert(story.clone());
        }
    }

    fn begin(&mut self, layer: &HashMap<Joint, u8>) {
        self.seats.begin(layer.keys().flat_map(|(seats, _)| *seats));
        self.menus.clear();
        self.menu_numbers.clear();
        self.choices.clear();
    }

    /// The states at T1: who got which bundles in time.
    fn roots(&mut self) -> HashMap<Joint, u8> {
        let (start, bundles) = self.seats.start();
        self.bundles = bundles;
        let held_by = |place: usize| {
            let own = 1u8 << place;
            let honest = (0..=OF_HONEST).filter(move |held| held & own != 0);
            let silent = self.bounds.conduct == Conduct::Silent;
            let versions = if silent { 1 } else { usize::from(self.bounds.versions) + 1 };
            let of_faulty = [0, VERSIONS[0], VERSIONS[1]].into_iter().take(versions);
            honest.flat_map(|held| of_faulty.clone().map(move |v| held | v)).collect::<Vec<_>>()
        };
        let mut layer = HashMap::new();
        for first in held_by(0) {
            for second in held_by(1) {
                for third in held_by(2) {
                    let held = [first, second, third];
                    let missing: u32 = held.iter().map(|h| 3 - (h & OF_HONEST).count_ones()).sum();
                    let cost = missing as u8 + u8::from(self.frozen.is_some());
                    let counts = missing == 0 || self.may_fail(Kind::Bundle);
                    if cost > self.bounds.deviations || !counts || !self.is_least(held) {
                        continue;
                    }
                    let mut seats = start;
                    for ((place, seat), held) in seats.iter_mut().enumerate().zip(held) {
                        let others = held & !(1 << place);
                        let bit = |(bit, _): &(usize, &MessageId)| others >> bit & 1 == 1;
                        let given = self.bundles.iter().enumerate().filter(bit).map(|(_, id)| *id);
                        let given: Vec<MessageId> = given.collect();
                        *seat = self.seats.step(*seat, 1, &given).first().copied().unwrap_or(*seat);
                    }
                    layer.insert((seats, 0), cost);
                }
            }
        }
        layer
    }

    /// Whether no renaming of seats that are alike, or of the two versions, gives a lesser start.
    fn is_least(&self, held: [Bundles; HONEST]) -> bool {
        let proposes = |place: u8| (1..=2).any(|view| self.seats.names.proposer(view) == place);
        let fixed = |place: u8| proposes(place) || self.frozen == Some(place);
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        let good = |order: &&[u8; 3]| order.iter().zip(0u8..).all(|(to, from)| *to == from || !fixed(from));
        orders.iter().filter(good).all(|order| {
            [false, true].iter().all(|swap| {
                let mut image = [0; HONEST];
                for (held, to) in held.iter().zip(order) {
                    let moved = order.iter().enumerate().filter(|(bit, _)| held >> bit & 1 == 1);
                    let honest = moved.fold(0, |set, (_, to)| set | 1 << to);
                    let versions = held & !OF_HONEST;
                    let other = if versions == 0 { 0 } else { versions ^ VERSIONS[0] ^ VERSIONS[1] };
                    image[usize::from(*to)] = honest | if *swap { other } else { versions };
                }
                held <= image
            })
        })
    }

    /// Whether messages of this kind may be late or lost.
    fn may_fail(&self, kind: Kind) -> bool {
        self.bounds.only.is_none_or(|only| only == kind)
    }

    fn is_over(&self, joint: &Joint) -> bool {
        joint.0.iter().all(|seat| self.seats.get(*seat).brief.opened.is_some())
    }

    fn step(&mut self, joint: &Joint, cost: u8, phase: u8, next: &mut HashMap<Joint, u8>, found: &mut Found) {
        let left = self.bounds.deviations - cost;
        let menu = self.menu(joint, phase);
        let late = self.late[joint.1 as usize].clone();
        let mut all = vec![];
        for (place, seat) in joint.0.iter().enumerate() {
            let others = joint.0.iter().enumerate().filter(|(other, _)| *other != place);
            let mut due: Vec<MessageId> =
                others.flat_map(|(_, other)| self.seats.get(*other).facts.fresh.iter().copied()).collect();
            due.sort_unstable();
            let overdue = late.iter().filter(|(to, _)| usize::from(*to) == place).map(|(_, id)| *id);
            let overdue: Vec<MessageId> = overdue.collect();
            all.push(self.choices(*seat, due, overdue, &menu, (phase, left)));
        }
        let [first, second, third] = all.as_slice() else { return };
        for a in first.iter() {
            for b in second.iter().filter(|b| a.cost + b.cost <= left) {
                for c in third.iter().filter(|c| a.cost + b.cost + c.cost <= left) {
                    let late = self.late_list([a, b, c]);
                    let cost = cost + a.cost + b.cost + c.cost;
                    found.transitions += 1;
                    let least = next.entry(([a.to, b.to, c.to], late)).or_insert(cost);
                    *least = cost.min(*least);
                }
            }
        }
    }

    /// The number of the list of what is late after these choices.
    fn late_list(&mut self, choices: [&Choice; HONEST]) -> u32 {
        if choices.iter().all(|choice| choice.late.is_empty()) {
            return 0;
        }
        let late = choices.iter().zip(0u8..).flat_map(|(c, to)| c.late.iter().map(move |id| (to, *id)));
        let late: Vec<Late> = late.collect();
        if let Some(known) = self.late_by_list.get(&late) {
            return *known;
        }
        let id = self.late.len() as u32;
        self.late.push(late.clone());
        self.late_by_list.insert(late, id);
        id
    }

    /// What the faulty seat may say after all that was said.
    fn menu(&mut self, joint: &Joint, phase: u8) -> Menu {
        let last = phase == FIRST_VIEW + VIEW * self.bounds.views;
        let names = &self.seats.names;
        let heard = hear(names, joint.0.iter().flat_map(|seat| &self.seats.get(*seat).facts.said));
        let power = heard.power(names, phase);
        if let Some(known) = self.menus.get(&power) {
            return known.clone();
        }
        let bundles: &[MessageId] =
            if self.frozen.is_some() && phase <= THAW { &self.bundles[HONEST..] } else { &[] };
        let menu = Rc::new(offers(
            &mut self.seats.names,
            phase,
            &heard,
            &power,
            bundles,
            (self.bounds.conduct, last),
        ));
        let number = self.menu_numbers.len() as u32;
        let number = *self.menu_numbers.entry(menu.clone()).or_insert(number);
        self.menus.insert(power, (number, menu.clone()));
        (number, menu)
    }

    /// What may happen to one seat in a phase.
    fn choices(
        &mut self,
        seat: StateId,
        due: Vec<MessageId>,
        overdue: Vec<MessageId>,
        (number, menu): &Menu,
        (phase, left): (u8, u8),
    ) -> Rc<Vec<Choice>> {
        let key = (seat, due, overdue, *number, left);
        if let Some(known) = self.choices.get(&key) {
            return known.clone();
        }
        let (due, overdue) = (&key.1, &key.2);
        let mut found: Vec<Choice> = vec![];
        for (given, late, cost) in self.fates(seat, due, overdue, phase, left) {
            for to in self.with_offers(seat, &given, menu, phase) {
                let same = found.iter_mut().find(|c| (c.to, &c.late) == (to, &late));
                match same {
                    Some(known) => known.cost = known.cost.min(cost),
                    None => found.push(Choice { cost, to, late: late.clone() }),
                }
            }
        }
        found.sort_by_key(|choice| choice.cost);
        let found = Rc::new(found);
        self.choices.insert(key, found.clone());
        found
    }

    /// Which of the messages that are due come now, which come late, and what that costs.
    fn fates(
        &mut self,
        seat: StateId,
        due: &[MessageId],
        overdue: &[MessageId],
        phase: u8,
        left: u8,
    ) -> Vec<(Vec<MessageId>, Vec<MessageId>, u8)> {
        let all: Vec<MessageId> = sorted(overdue.iter().chain(due).copied());
        let on_time = self.seats.step(seat, phase, &all);
        let mut fates = vec![(sorted(overdue.iter().copied()), vec![], 0)];
        for id in due {
            let without = sorted(all.iter().copied().filter(|other| other != id));
            let sure = left == 0 || !self.may_fail(self.seats.names.get(*id).message.header.kind);
            let idle = sure || self.seats.step(seat, phase, &without) == on_time;
            let mut more = vec![];
            for (given, late, cost) in fates {
                if !idle && cost < left {
                    let mut later: Vec<MessageId> = late.clone();
                    later.push(*id);
                    more.push((given.clone(), later, cost + 1));
                    more.push((given.clone(), late.clone(), cost + 1));
                }
                more.push((sorted(given.into_iter().chain([*id])), late, cost));
            }
            fates = more;
        }
        fates
    }

    /// The states that follow with the faulty seat's offers, as far as they make a difference.
    fn with_offers(&mut self, seat: StateId, given: &[MessageId], menu: &[Offer], phase: u8) -> Vec<StateId> {
        let plain = self.seats.step(seat, phase, given);
        let mut all = plain.clone();
        let mut singles: HashMap<MessageId, Vec<StateId>> = HashMap::new();
        let facts = self.seats.get(seat).facts.clone();
        let moves = plain.iter().any(|to| self.seats.get(*to).facts.view != facts.view);
        for offer in menu {
            let names = &self.seats.names;
            let may = |id: &MessageId| facts.may_show(names, given, *id, moves);
            if !offer.lasting && !offer.messages.iter().all(may) {
                continue;
            }
            let with = sorted(given.iter().chain(&offer.messages).copied());
            let outcomes = self.seats.step(seat, phase, &with);
            let mut seen: Vec<StateId> = plain.clone();
            if let [one] = offer.messages.as_slice() {
                singles.insert(*one, outcomes.clone());
            } else {
                seen.extend(offer.messages.iter().filter_map(|id| singles.get(id)).flatten());
            }
            for to in outcomes {
                let is_new = offer.lasting || !seen.iter().any(|known| self.looks_like(*known, to));
                if is_new && !all.contains(&to) {
                    all.push(to);
                }
            }
        }
        all
    }

    /// Whether two states of a seat show the same: what it said now, its view and its commit.
    fn looks_like(&self, one: StateId, other: StateId) -> bool {
        let (a, b) = (&self.seats.get(one).facts, &self.seats.get(other).facts);
        (&a.fresh, a.view, a.commit) == (&b.fresh, b.view, b.commit)
    }

    /// Checks a state of the whole.
    fn check(&self, joint: &Joint, cost: u8, phase: u8, found: &mut Found) {
        let briefs = joint.0.map(|seat| &self.seats.get(seat).brief);
        let mut may_be_final: BTreeSet<Bundles> = BTreeSet::new();
        let locks: BTreeSet<(u8, Bundles)> = briefs.iter().flat_map(|b| b.locks.iter().copied()).collect();
        for lock in locks {
            if briefs.iter().filter(|b| b.locks.contains(&lock)).count() + 1 >= QUORUM {
                may_be_final.insert(lock.1);
            }
        }
        let mut listed = 0;
        let mut in_time = [0; 8];
        for set in briefs.iter().filter_map(|b| b.set) {
            listed |= set;
            in_time.iter_mut().enumerate().for_each(|(bit, count)| *count += set >> bit & 1);
        }
        if let Some(set) = briefs[0].set.filter(|set| set & !OF_HONEST != 0 && set & OF_HONEST == OF_HONEST)
            && briefs.iter().all(|b| b.set == Some(set))
        {
            may_be_final.insert(set);
        }
        let commits: BTreeSet<Bundles> = briefs.iter().filter_map(|b| b.commit).collect();
        let mut broken = vec![];
        if commits.union(&may_be_final).count() > 1 {
            broken.push("I1: two sets can be final");
        }
        if briefs.iter().filter_map(|b| b.opened).any(|set| !may_be_final.contains(&set)) {
            broken.push("I2: a share for a set that is not final");
        }
        if may_be_final.is_empty() && briefs.iter().filter(|b| b.opened.is_some()).count() + 1 >= QUORUM {
            broken.push("I8: q shares can be had and nothing is final");
        }
        if commits.iter().any(|set| *set == JUNK || set & !listed != 0) {
            broken.push("I4: a bundle is admitted that no honest SET lists");
        }
        let owed = in_time.iter().enumerate().filter(|(_, count)| **count >= 2);
        let owed = owed.fold(0, |set, (bit, _)| set | 1 << bit);
        if cost == 0 && commits.iter().any(|set| owed & !set != 0) {
            broken.push("I5: a bundle that f + 1 honest seats had in time is left out");
        }
        let honest_view = if self.seats.names.proposer(1) == FAULTY { 2 } else { 1 };
        let due = phase >= FIRST_VIEW + VIEW * honest_view;
        if cost == 0 && due && briefs.iter().any(|b| b.commit.is_none()) {
            broken.push("I9: no commit in a view with an honest proposer");
        }
        for what in broken {
            if !found.violations.contains_key(what) {
                let story: Vec<String> = joint.0.iter().flat_map(|seat| self.seats.story(*seat)).collect();
                found.violations.insert(what.into(), story.join("\n"));
            }
        }
    }
}

fn sorted(ids: impl Iterator<Item = MessageId>) -> Vec<MessageId> {
    let mut ids: Vec<MessageId> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}
