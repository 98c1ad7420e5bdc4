//! Whole runs as data: who deviates and how, what the network does, how many orders there are.
//!
//! Inputs: a [`Schedule`], by hand, from a seed or from a file. Outputs: a [`Report`] of what came of it. The same
//! schedule gives the same run. A schedule that fails is made smaller while it goes on failing.

use crate::deviation::{Deviation, KindName, all_deviations};
use crate::invariants::Violation;
use crate::keys::{Keys, RealKeys};
use crate::world::{Config, Event, Freeze, Hold, HomeFault, Partition, Stop, World};
use crate::{clock, offer, requirements};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_core::proof::{Fault, Verdict, verify_by};
use vendue_auction_core::wire::{Again, Body, Kind, Proof, Quorum, Signers};
use vendue_auction_core::{
    AwardProof, AwardTable, Certificate, HomeInput, HomeOutput, KeyError, Leaf, NewOrder, OrderLeaf, Params,
    SeatOutput,
};
use vendue_market::{Histogram, Order, Outcome, Unserved};

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Seed of keys, delays and losses.
    pub seed: u64,
    /// Number of seats.
    pub seats: u16,
    /// Shortest and longest delay of a message.
    pub delay_ms: (u64, u64),
    /// Messages lost, out of a thousand.
    pub lost_per_mille: u32,
    /// Time for hand-over after voting has stopped.
    #[serde(default = "handover_ms")]
    pub handover_ms: u64,
    /// Orders, one every 600 ms.
    pub orders: u32,
    /// When the run ends.
    pub until_ms: u64,
    /// Who deviates how.
    pub deviations: Vec<(u16, Deviation)>,
    /// Deviating seats that are taken for honest.
    pub trusted: Vec<u16>,
    /// When the network is cut.
    pub partitions: Vec<Partition>,
    /// What the network holds back.
    pub holds: Vec<Hold>,
    /// When which seat restarts; it loses everything but its keys.
    pub restarts: Vec<(u64, u16)>,
    /// How far clocks are ahead.
    pub skew_ms: BTreeMap<u16, i64>,
    /// When which seat's clock is set to how far ahead.
    #[serde(default)]
    pub clocks_set: Vec<(u64, u16, i64)>,
    /// When clocks stand still.
    #[serde(default)]
    pub freezes: Vec<Freeze>,
    /// When which seat restarts with its log.
    #[serde(default)]
    pub logged_restarts: Vec<(u64, u16)>,
    /// Processes that stop in the middle of what they do.
    #[serde(default)]
    pub stops: Vec<Stop>,
    /// B38: when which seat restarts and speaks at once, as if it had never spoken. Such a seat is faulty.
    #[serde(default)]
    pub careless_restarts: Vec<(u64, u16)>,
    /// What the home does wrong.
    #[serde(default)]
    pub home_faults: BTreeSet<HomeFault>,
    /// B36: everybody asks for one price, so that ties decide.
    #[serde(default)]
    pub one_price: bool,
    /// From when on also what holds in synchronous runs only is checked.
    pub synchronous_from: Option<u64>,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// Orders handed over.
    pub handed_over: usize,
    /// Faults that honest seats proved of others.
    pub proven: BTreeSet<(u16, Fault)>,
    /// Rounds that honest seats certified, with the longest time from their start.
    pub certified: BTreeMap<u64, u64>,
    /// NEWVIEWs that were sent.
    pub new_views: u64,
    /// Rounds in which a seat spoke.
    pub rounds: u64,
    /// Hash over everything delivered.
    pub trace: [u8; 32],
    /// Messages among seats.
    pub messages: u64,
    /// Rounds with two final sets or two certified roots, and who can be proven faulty in them.
    pub splits: BTreeMap<u64, BTreeSet<u16>>,
    /// Processes that were started again.
    pub restarts: u64,
    /// Clocks that were set while their process was down.
    pub set_while_down: u64,
    /// Fault proofs that faulty seats made up.
    pub made_up: u64,
    /// Which seat a job was awarded to first, and in which round.
    winners: BTreeMap<String, (u64, u16)>,
    /// Rounds with a culprit, or with a bundle that not all honest seats got in time.
    explained: BTreeSet<u64>,
}

impl Schedule {
    /// A quiet run of four seats with one order.
    pub fn four(seed: u64) -> Self {
        Self {
            seed,
            seats: 4,
            delay_ms: (5, 30),
            lost_per_mille: 0,
            handover_ms: handover_ms(),
            orders: 1,
            until_ms: 9_000,
            deviations: vec![],
            trusted: vec![],
            partitions: vec![],
            holds: vec![],
            restarts: vec![],
            skew_ms: BTreeMap::new(),
            clocks_set: vec![],
            freezes: vec![],
            logged_restarts: vec![],
            stops: vec![],
            careless_restarts: vec![],
            home_faults: BTreeSet::new(),
            one_price: false,
            synchronous_from: Some(0),
        }
    }

    /// Up to f seats that each deviate in one to three ways, now and then on a bad network.
    pub fn random(seed: u64, seats: u16) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0x5eed);
        let mut below = |n: u64| rng.next_u64() % n.max(1);
        let f = u64::from(seats.saturating_sub(1) / 3);
        let mut schedule = Self { orders: 3, until_ms: 12_000, seats, ..Self::four(seed) };
        let mut faulty = BTreeSet::new();
        for _ in 0..=below(f) {
            faulty.insert(below(u64::from(seats)) as u16);
        }
        for seat in faulty {
            for _ in 0..=below(3) {
                let all = all_deviations(seats);
                if let Some(deviation) = all.get(below(all.len() as u64) as usize) {
                    schedule.deviations.push((seat, *deviation));
                }
            }
        }
        match below(4) {
            0 => {
                let from_ms = 1_000 + 100 * below(20);
                let until_ms = from_ms + 100 * (1 + below(30));
                let side = (0..seats).filter(|_| below(2) == 0).collect();
                schedule.partitions.push(Partition { from_ms, until_ms, side });
                schedule.synchronous_from = Some(until_ms + 1_000);
            }
            1 => {
                schedule.lost_per_mille = 50;
                schedule.delay_ms = (5, 150);
                schedule.synchronous_from = None;
            }
            2 => {
                let skew = 500 - below(1_001) as i64;
                let seat = below(u64::from(seats)) as u16;
                let from_ms = 1_000 + below(3_000);
                match below(3) {
                    0 => schedule.clocks_set.push((from_ms, seat, skew)),
                    1 => {
                        schedule.freezes.push(Freeze { seat, from_ms, until_ms: from_ms + 1 + below(2_000) })
                    }
                    _ => {
                        schedule.skew_ms.insert(seat, skew);
                    }
                }
                schedule.synchronous_from = None;
            }
            _ if below(2) == 0 => schedule.delay_ms = (5, 95),
            _ => {}
        }
        if below(5) == 0 {
            // Who has restarted only looks on for a while: together with the faulty ones that may be too many.
            schedule.restarts.push((1_000 + below(2_000), below(u64::from(seats)) as u16));
            schedule.synchronous_from = None;
        }
        if below(4) == 0 {
            let seat = below(u64::from(seats)) as u16;
            match below(2) {
                0 => schedule.logged_restarts.push((1_000 + below(4_000), seat)),
                _ => {
                    let (records, down_ms) = (1 + below(60), below(1_500));
                    schedule.stops.push(Stop { seat, records, down_ms });
                }
            }
            schedule.synchronous_from = None;
        }
        if below(8) == 0 {
            let all = [HomeFault::OrderToFew(f as u16), HomeFault::TwoBodies, HomeFault::FalseCertificate];
            schedule.home_faults.extend(all.get(below(3) as usize));
            schedule.synchronous_from = None;
        }
        schedule.one_price = below(4) == 0;
        schedule
    }

    /// One seat more than f of those that vote for more than one thing. What then does not hold shows, and who did it.
    pub fn beyond(seed: u64, seats: u16) -> Self {
        use Deviation::*;
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0xbe0d);
        let mut below = |n: u64| rng.next_u64() % n.max(1);
        let mut schedule = Self::adversarial(seed, seats);
        let f = seats.saturating_sub(1) / 3;
        schedule.deviations.clear();
        let first = below(u64::from(seats)) as u16;
        let echo = below(2) == 0;
        if echo {
            // The honest seats are kept apart, and the faulty ones talk to both sides.
            let honest = (f + 1..seats).map(|i| (first + i) % seats);
            let (one, other): (BTreeSet<u16>, BTreeSet<u16>) = honest.partition(|seat| seat % 2 == 0);
            let kinds = [KindName::Set, KindName::Admit, KindName::Lock, KindName::Commit, KindName::Open];
            let until_ms = 2_000 + 100 * below(20);
            for kind in kinds {
                for (from, to) in [(&one, &other), (&other, &one)] {
                    let (from, to) = (from.clone(), to.clone());
                    schedule.holds.push(Hold { kind, from, to, from_ms: 1_000, until_ms });
                }
            }
        }
        for faulty in (0..=f).map(|i| (first + i) % seats) {
            schedule.deviations.extend(echo.then_some((faulty, Echo)));
            let ways =
                [TwoSets, TwoAdmits, TwoLocks, AdmitAll, TwoProposals, TwoAwards, WrongAward, EarlyShare];
            schedule.deviations.push((faulty, PartialBundle(1 + below(u64::from(f)) as u16)));
            schedule.deviations.extend(ways.iter().filter(|_| below(2) == 0).map(|way| (faulty, *way)));
        }
        schedule
    }

    /// f seats that vote for more than one thing, and a network that holds back what it likes for as long as it likes:
    /// made to split the agreement of one round.
    pub fn adversarial(seed: u64, seats: u16) -> Self {
        use Deviation::*;
        let mut rng = ChaCha20Rng::seed_from_u64(seed ^ 0xad5e);
        let mut below = |n: u64| rng.next_u64() % n.max(1);
        let mut schedule = Self { synchronous_from: None, until_ms: 5_200, seats, ..Self::four(seed) };
        let f = seats.saturating_sub(1) / 3;
        let first = below(u64::from(seats)) as u16;
        for faulty in (0..f).map(|i| (first + i) % seats) {
            let ways =
                [TwoBundles, TwoSets, TwoAdmits, TwoLocks, Echo, AdmitAll, TwoProposals, OldView, JunkAdmit];
            schedule.deviations.extend(ways.iter().filter(|_| below(2) == 0).map(|way| (faulty, *way)));
            let partial = [PartialBundle(f), Only(KindName::Set, f), SetToProposer];
            schedule.deviations.extend(partial.iter().filter(|_| below(3) == 0).map(|way| (faulty, *way)));
            let late = [OtherSetInView, LastMoment(KindName::Admit)];
            schedule.deviations.push((faulty, late[below(2) as usize % 2]));
        }
        if below(2) == 0 {
            let lucky = below(u64::from(seats)) as u16;
            let until_ms = 1_500 + 100 * below(30);
            schedule.holds.extend(only_one_sees_the_commit(seats, lucky, until_ms));
        }
        for _ in 0..below(12) {
            let kinds = [
                KindName::Set,
                KindName::Admit,
                KindName::Lock,
                KindName::NewView,
                KindName::Propose,
                KindName::Commit,
                KindName::Open,
            ];
            let kind = kinds[below(kinds.len() as u64) as usize % kinds.len()];
            let mut some = || (0..seats).filter(|_| below(2) == 0).collect();
            let (from, to) = (some(), some());
            let from_ms = 1_000 + 50 * below(60);
            let until_ms = from_ms + 50 * (1 + below(50));
            schedule.holds.push(Hold { kind, from, to, from_ms, until_ms });
        }
        schedule
    }

    /// Runs it with real keys.
    pub fn run(&self) -> Result<Report, KeyError> {
        self.run_with::<RealKeys>()
    }

    /// Runs it.
    pub fn run_with<K: Keys>(&self) -> Result<Report, KeyError> {
        let mut world = self.world::<K>()?;
        for (at, what) in self.steps() {
            world.run_until(at);
            match what {
                Step::Restart(seat) => world.restart(seat)?,
                Step::WithLog(seat) => world.restart_with_log(seat),
                Step::Careless(seat) => world.restart_without_caution(seat)?,
                Step::Clock(seat, skew_ms) => world.set_clock(seat, skew_ms),
                Step::Order(i) => submit(&mut world, i)?,
            }
        }
        world.run_until(self.until_ms);
        let now = world.now;
        world.watch.check_accountability(now);
        Ok(self.report(&mut world))
    }

    fn world<K: Keys>(&self) -> Result<World<K>, KeyError> {
        let config = Config {
            seed: self.seed,
            seats: self.seats,
            params: Params { handover_ms: self.handover_ms, ..clock() },
            delay_ms: self.delay_ms,
            lost_per_mille: self.lost_per_mille,
        };
        let step = if self.one_price { 0 } else { 100_000 };
        let price = |seat: u16| 2_000_000 + step * i64::from(seat);
        let offers = |seat: u16| offer(&format!("p{seat}"), price(seat), 8).into_iter().collect();
        let mut world = World::with_keys(config, (0..self.seats).map(offers).collect())?;
        for (seat, deviation) in &self.deviations {
            world.deviate(*seat, *deviation)?;
        }
        self.stops.iter().for_each(|stop| world.stop_at_record(stop));
        self.careless_restarts.iter().for_each(|(_, seat)| world.watch.set_faulty(*seat));
        self.trusted.iter().for_each(|seat| world.watch.trust(*seat));
        world.partitions.clone_from(&self.partitions);
        world.holds.clone_from(&self.holds);
        world.skew_ms.clone_from(&self.skew_ms);
        world.freezes.clone_from(&self.freezes);
        world.home_faults.clone_from(&self.home_faults);
        world.watch.hold_accountable();
        if let Some(from) = self.synchronous_from {
            world.watch.expect_synchrony(from);
        }
        Ok(world)
    }

    /// I10: where this run gives an order to another seat than the run in which everybody is honest, there is a culprit,
    /// or a bundle that not all honest seats got in time. Only for runs on a good network, with bids as in the other.
    pub fn compare<K: Keys>(&self, report: &Report) -> Result<Vec<Violation>, KeyError> {
        let honest = Self { deviations: vec![], careless_restarts: vec![], ..self.clone() };
        let honest = honest.run_with::<K>()?;
        let mut broken = vec![];
        for (job, (round, winner)) in &report.winners {
            let other = honest.winners.get(job).is_some_and(|(_, expected)| expected != winner);
            if other && !report.explained.contains(round) {
                let what = format!("round {round} gives {job} to seat {winner}, and nobody is to blame");
                broken.push(Violation { at: self.until_ms, invariant: "I10", what });
            }
        }
        Ok(broken)
    }

    /// What is done from outside, by time.
    fn steps(&self) -> Vec<(u64, Step)> {
        let orders = (0..self.orders).map(|i| (500 + 600 * u64::from(i), Step::Order(i)));
        let restarts = self.restarts.iter().map(|(at, seat)| (*at, Step::Restart(*seat)));
        let logged = self.logged_restarts.iter().map(|(at, seat)| (*at, Step::WithLog(*seat)));
        let careless = self.careless_restarts.iter().map(|(at, seat)| (*at, Step::Careless(*seat)));
        let clocks = self.clocks_set.iter().map(|(at, seat, skew)| (*at, Step::Clock(*seat, *skew)));
        let mut steps: Vec<(u64, Step)> =
            orders.chain(restarts).chain(logged).chain(careless).chain(clocks).collect();
        steps.sort_by_key(|(at, _)| *at);
        steps
    }

    fn report<K: Keys>(&self, world: &mut World<K>) -> Report {
        let mut report = Report { violations: world.watch.take_violations(), ..Report::default() };
        let deviating = self.deviations.iter().map(|(seat, _)| *seat);
        let faulty: BTreeSet<u16> = deviating.chain(self.careless_restarts.iter().map(|(_, s)| *s)).collect();
        let mut jobs = BTreeMap::new();
        for (_, event) in &world.events {
            match event {
                Event::Home(HomeOutput::Ordered { digest, order, .. }) => {
                    jobs.insert(*digest, order.job.clone());
                }
                Event::Home(HomeOutput::HandOver { .. }) => report.handed_over += 1,
                Event::Seat(seat, _) if faulty.contains(seat) => {}
                Event::Seat(_, SeatOutput::Evidence(proof)) => {
                    if let Verdict::Guilty { seats, fault } = verify_by::<K::Scheme>(proof, &world.record) {
                        report.proven.extend(seats.into_iter().map(|seat| (seat, fault)));
                    }
                }
                Event::Seat(_, SeatOutput::Decided(d)) => {
                    let took = report.certified.entry(d.certificate.round).or_default();
                    *took = d.took_ms.max(*took);
                    for (order, outcome) in &d.outcomes {
                        if let (Some(job), Outcome::Award(award)) = (jobs.get(order), outcome) {
                            let won = (d.certificate.round, award.seat);
                            report.winners.entry(job.clone()).or_insert(won);
                        }
                    }
                }
                _ => {}
            }
        }
        let views = world.sent.iter().filter(|((kind, _), _)| *kind == Kind::NewView);
        report.new_views = views.map(|(_, count)| count).sum();
        report.messages = world.sent.values().sum();
        (report.restarts, report.set_while_down) = (world.restarts, world.set_while_down);
        report.made_up = world.watch.made_up();
        report.splits = world.watch.splits();
        report.rounds = world.watch.rounds() as u64;
        report.trace = world.trace_hash();
        let blamed = world.watch.provable().keys().copied();
        let won = report.winners.values().map(|(round, _)| *round);
        let starved = won.filter(|r| !world.watch.all_got_all(*r) || !report.proven.is_empty());
        report.explained = blamed.chain(starved).collect();
        report
    }

    /// The smallest schedule that still fails and comes from this one by leaving out one thing after the other.
    pub fn shrink(&self, fails: impl Fn(&Self) -> bool) -> Self {
        let mut smallest = self.clone();
        loop {
            let Some(smaller) = smallest.smaller().into_iter().find(|s| fails(s)) else { return smallest };
            smallest = smaller;
        }
    }

    fn smaller(&self) -> Vec<Self> {
        let mut all = vec![];
        for at in 0..self.deviations.len() {
            let mut less = self.clone();
            less.deviations.remove(at);
            all.push(less);
        }
        for at in 0..self.partitions.len() {
            let mut less = self.clone();
            less.partitions.remove(at);
            all.push(less);
        }
        for at in 0..self.holds.len() {
            let mut less = self.clone();
            less.holds.remove(at);
            all.push(less);
        }
        for at in 0..self.restarts.len() {
            let mut less = self.clone();
            less.restarts.remove(at);
            all.push(less);
        }
        let without = |less: Self, all: &mut Vec<Self>| {
            if less != *self {
                all.push(less)
            }
        };
        for at in 0..self.logged_restarts.len() {
            let mut less = self.clone();
            less.logged_restarts.remove(at);
            all.push(less);
        }
        for at in 0..self.stops.len() {
            let mut less = self.clone();
            less.stops.remove(at);
            all.push(less);
        }
        without(Self { clocks_set: vec![], ..self.clone() }, &mut all);
        without(Self { freezes: vec![], ..self.clone() }, &mut all);
        without(Self { home_faults: BTreeSet::new(), ..self.clone() }, &mut all);
        without(Self { one_price: false, ..self.clone() }, &mut all);
        for at in 0..self.careless_restarts.len() {
            let mut less = self.clone();
            less.careless_restarts.remove(at);
            all.push(less);
        }
        if !self.skew_ms.is_empty() {
            all.push(Self { skew_ms: BTreeMap::new(), ..self.clone() });
        }
        if self.lost_per_mille > 0 {
            all.push(Self { lost_per_mille: 0, ..self.clone() });
        }
        if self.orders > 1 {
            all.push(Self { orders: 1, ..self.clone() });
        }
        if self.until_ms > 3_000 {
            all.push(Self { until_ms: self.until_ms / 2, ..self.clone() });
        }
        all
    }

    /// The file form.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
    /// Reads the file form.
    pub fn from_json(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

fn handover_ms() -> u64 {
    clock().handover_ms
}

/// Something that is done from outside.
enum Step {
    Order(u32),
    Restart(u16),
    WithLog(u16),
    Careless(u16),
    Clock(u16, i64),
}

fn new_order(i: u32, workers: u32) -> Option<HomeInput> {
    Some(HomeInput::Submit(Box::new(NewOrder {
        terms: Box::default(),
        job: format!("job-{i}"),
        attempt: 1,
        requirements: requirements(workers, 5_000_000)?,
        commitment: [9; 32],
        expires_ms: 120_000,
    })))
}

fn submit<K: Keys>(world: &mut World<K>, i: u32) -> Result<(), KeyError> {
    let (Some(order), Some(second)) = (new_order(i, 1), new_order(i, 2)) else { return Ok(()) };
    world.tell_home(order);
    if world.home_faults.contains(&HomeFault::TwoBodies) {
        world.tell_second_home(second)?;
    }
    if world.home_faults.contains(&HomeFault::FalseCertificate) {
        let ordered = world.events.iter().rev().find_map(|(_, event)| match event {
            Event::Home(HomeOutput::Ordered { order, .. }) => Some((**order).clone()),
            _ => None,
        });
        if let Some(again) =
            ordered.and_then(|order| false_again(&order, &world.record.params, world.record.n()))
        {
            world.home_says(Body::Again(Box::new(again)))?;
        }
    }
    Ok(())
}

/// A body that says that a round gave the order to nobody, with a certificate that nobody signed.
fn false_again(before: &Order, params: &Params, n: u16) -> Option<Again> {
    let (order, round) = (before.digest(), before.first_round);
    let leaf = OrderLeaf {
        order,
        outcome: Outcome::None(Histogram::default()),
        bundle: [0; 32],
        expires_ms: params.expiry(round),
    };
    // A tree of one leaf.
    let leaves = AwardTable { leaves: vec![Leaf::Order(leaf.clone())] };
    let path = leaves.path(&Leaf::Order(leaf.clone()))?;
    let quorum = Quorum { signers: Signers::all(n), aggregate: [1; 48] };
    let root = leaves.root();
    let certificate = Certificate { market: before.market, epoch: 0, round, root, quorum };
    let after = Some(Unserved { order, round, root });
    let next = Order { first_round: round + 1, after, ..before.clone() };
    let proof = Proof { certificate, proof: AwardProof { leaf, path } };
    Some(Again { order: next, before: before.clone(), proof })
}

/// Votes that commit reach one seat only, and nothing of what that seat knows leaves it.
fn only_one_sees_the_commit(seats: u16, lucky: u16, until_ms: u64) -> Vec<Hold> {
    let (all, alone) = ((0..seats).collect::<BTreeSet<u16>>(), BTreeSet::from([lucky]));
    let others: BTreeSet<u16> = all.difference(&alone).copied().collect();
    let hold = |kind, from: &BTreeSet<u16>, to: &BTreeSet<u16>| {
        let (from, to) = (from.clone(), to.clone());
        Hold { kind, from, to, from_ms: 1_000, until_ms }
    };
    let mut holds = vec![hold(KindName::Lock, &all, &others)];
    let silent = [KindName::Commit, KindName::Open, KindName::NewView];
    holds.extend(silent.map(|kind| hold(kind, &alone, &others)));
    holds
}
