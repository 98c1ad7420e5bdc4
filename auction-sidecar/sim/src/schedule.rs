//! Whole runs as data: who deviates and how, what the network does, how many orders there are.
//!
//! Inputs: a [`Schedule`], by hand, from a seed or from a file. Outputs: a [`Report`] of what came of it. The same
//! schedule gives the same run. A schedule that fails is made smaller while it goes on failing.

use crate::deviation::{Deviation, KindName};
use crate::invariants::Violation;
use crate::world::{Config, Event, Hold, Partition, World};
use crate::{clock, offer, requirements};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use vendue_auction_core::proof::{Fault, Verdict, verify};
use vendue_auction_core::wire::Kind;
use vendue_auction_core::{HomeInput, HomeOutput, KeyError, NewOrder, SeatOutput};

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
}

impl Schedule {
    /// A quiet run of four seats with one order.
    pub fn four(seed: u64) -> Self {
        Self {
            seed,
            seats: 4,
            delay_ms: (5, 30),
            lost_per_mille: 0,
            orders: 1,
            until_ms: 9_000,
            deviations: vec![],
            trusted: vec![],
            partitions: vec![],
            holds: vec![],
            restarts: vec![],
            skew_ms: BTreeMap::new(),
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
                schedule.skew_ms.insert(below(u64::from(seats)) as u16, skew);
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
            let ways = [TwoBundles, TwoSets, TwoAdmits, TwoLocks, AdmitAll, TwoProposals, OldView, JunkAdmit];
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

    /// Runs it.
    pub fn run(&self) -> Result<Report, KeyError> {
        let config = Config {
            seed: self.seed,
            seats: self.seats,
            params: clock(),
            delay_ms: self.delay_ms,
            lost_per_mille: self.lost_per_mille,
        };
        let price = |seat: u16| 2_000_000 + 100_000 * i64::from(seat);
        let offers = |seat: u16| offer(&format!("p{seat}"), price(seat), 8).into_iter().collect();
        let mut world = World::new(config, (0..self.seats).map(offers).collect())?;
        for (seat, deviation) in &self.deviations {
            world.deviate(*seat, *deviation)?;
        }
        self.trusted.iter().for_each(|seat| world.watch.trust(*seat));
        world.partitions.clone_from(&self.partitions);
        world.holds.clone_from(&self.holds);
        world.skew_ms.clone_from(&self.skew_ms);
        if let Some(from) = self.synchronous_from {
            world.watch.expect_synchrony(from);
        }
        for (at, what) in self.steps() {
            world.run_until(at);
            match what {
                Step::Restart(seat) => world.restart(seat)?,
                Step::Order(i) => submit(&mut world, i),
            }
        }
        world.run_until(self.until_ms);
        Ok(self.report(&mut world))
    }

    /// What is done from outside, by time.
    fn steps(&self) -> Vec<(u64, Step)> {
        let orders = (0..self.orders).map(|i| (500 + 600 * u64::from(i), Step::Order(i)));
        let restarts = self.restarts.iter().map(|(at, seat)| (*at, Step::Restart(*seat)));
        let mut steps: Vec<(u64, Step)> = orders.chain(restarts).collect();
        steps.sort_by_key(|(at, _)| *at);
        steps
    }

    fn report(&self, world: &mut World) -> Report {
        let mut report = Report { violations: world.watch.take_violations(), ..Report::default() };
        let faulty: BTreeSet<u16> = self.deviations.iter().map(|(seat, _)| *seat).collect();
        for (_, event) in &world.events {
            match event {
                Event::Home(HomeOutput::HandOver { .. }) => report.handed_over += 1,
                Event::Seat(seat, _) if faulty.contains(seat) => {}
                Event::Seat(_, SeatOutput::Evidence(proof)) => {
                    if let Verdict::Guilty { seats, fault } = verify(proof, &world.record) {
                        report.proven.extend(seats.into_iter().map(|seat| (seat, fault)));
                    }
                }
                Event::Seat(_, SeatOutput::Decided(d)) => {
                    let took = report.certified.entry(d.certificate.round).or_default();
                    *took = d.took_ms.max(*took);
                }
                _ => {}
            }
        }
        let views = world.sent.iter().filter(|((kind, _), _)| *kind == Kind::NewView);
        report.new_views = views.map(|(_, count)| count).sum();
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

/// Something that is done from outside.
enum Step {
    Order(u32),
    Restart(u16),
}

fn submit(world: &mut World, i: u32) {
    if let Some(requirements) = requirements(1, 5_000_000) {
        world.tell_home(HomeInput::Submit(Box::new(NewOrder {
            job: format!("job-{i}"),
            attempt: 1,
            requirements,
            commitment: [9; 32],
            expires_ms: 120_000,
        })));
    }
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

/// Every deviation once, for a market of so many seats.
pub fn all_deviations(seats: u16) -> Vec<Deviation> {
    use Deviation::*;
    let f = seats.saturating_sub(1) / 3;
    let mut all = vec![
        Silent,
        PartialBundle(1),
        PartialBundle(f),
        TwoBundles,
        ManyBundles,
        LateBundle(75),
        LateBundle(100),
        CopiedBundle,
        TwoSets,
        Omit(0),
        Omit(seats - 1),
        ClaimAll,
        StarvedSet,
        FalseFull,
        SetToProposer,
        TwoAdmits,
        TwoLocks,
        LastMoment(KindName::Admit),
        LastMoment(KindName::Lock),
        ForgedCommit,
        EarlyShare,
        WrongShare,
        AdmitAll,
        TwoAwards,
        WrongAward,
        TwoProposals,
        FalseProposal,
        JunkAdmit,
        OldView,
        ForgedNewView,
        OtherSetInView,
        Replay,
    ];
    let kinds = [
        KindName::Bundle,
        KindName::Set,
        KindName::Admit,
        KindName::Lock,
        KindName::Open,
        KindName::Commit,
        KindName::Award,
        KindName::NewView,
        KindName::Propose,
        KindName::Reply,
    ];
    all.extend((0..5).map(MauledBundle));
    all.extend(kinds.map(Mute));
    all.extend(kinds.map(|kind| Only(kind, f)));
    all.push(Only(KindName::Bundle, f + 1));
    all
}
