//! A store that ends, or fails, at every one of its writes; and what the receiver makes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use vendue_receipts::{AwardId, GapReason, Record, verify_node};

use super::memory::{Done, Memory};
use super::{A, B, IDLE, Node, SECOND, key, name};
use vendue_receipts_store::Options;

use crate::meter::{Meter, Settings, Store};

/// What arrived, by place. The same place never arrives with two contents.
#[derive(Default)]
struct Receiver(BTreeMap<(AwardId, u64), Record>);

impl Receiver {
    fn take(&mut self, record: Record) {
        let known = self.0.entry((record.award, record.sequence)).or_insert_with(|| record.clone());
        assert_eq!(known.digest(), record.digest(), "two histories");
    }

    fn chains(&self) -> Vec<Vec<Record>> {
        let all: Vec<Record> = self.0.values().cloned().collect();
        all.chunk_by(|a, b| a.award == b.award).map(<[Record]>::to_vec).collect()
    }
}

/// An agent on a simulated node, with a store and a receiver.
struct Agent {
    node: Node,
    files: Memory,
    store: Store<Memory>,
    receiver: Receiver,
    /// The number of records of each chain that were reported stored.
    stored: BTreeMap<AwardId, u64>,
}

fn open(files: &Memory) -> Store<Memory> {
    let dir = PathBuf::from("/receipts");
    // Small files, so that there are many writes of each kind.
    let options = Options { dir, segment_bytes: 1_200, retain_ms: 3_000, max_bytes: 1 << 20, delivers: true };
    Store::open_with(options, key(1), files.clone()).unwrap().0
}

impl Agent {
    fn new() -> Self {
        let files = Memory::default();
        let store = open(&files);
        Self { node: Node::new(2), files, store, receiver: Receiver::default(), stored: BTreeMap::new() }
    }

    fn tick(&mut self) {
        self.node.pass(SECOND);
        let tick = self.node.look();
        let before = self.counts();
        let appended = self.store.step(&mut self.node.meter, &tick).unwrap();
        assert_eq!(appended.failed.is_empty(), appended.errors.is_empty());
        let after = self.counts();
        let more = after.iter().map(|(award, count)| count - before.get(award).copied().unwrap_or_default());
        assert_eq!(more.sum::<u64>(), appended.records);
        self.stored = after;
    }

    /// The number of records of each chain that were reported stored.
    fn counts(&self) -> BTreeMap<AwardId, u64> {
        let mut counts = self.stored.clone();
        counts.extend(self.store.chains().iter().map(|(name, chain)| (name.award, chain.next_sequence())));
        counts
    }

    /// Delivers and cleans up, as far as that works.
    fn deliver(&mut self) {
        let waiting: Vec<_> = self.store.chains().undelivered().collect();
        for (name, from) in waiting {
            let records = self.store.chains().records(name, from, 100).unwrap();
            let Some(next) = records.last().map(|r| r.sequence + 1) else { continue };
            records.into_iter().for_each(|record| self.receiver.take(record));
            // A receiver that has them does not help if that is not noted: they come again.
            drop(self.store.chains_mut().acknowledge(name, next));
        }
        drop(self.store.chains_mut().prune(self.node.meter.time_ms()));
    }

    /// Some work in which every kind of write occurs.
    fn work(&mut self) {
        self.node.gpus[0].award = A;
        (0..3).for_each(|_| self.tick());
        self.node.gpus[1].xids = vec![31];
        self.tick();
        self.deliver();
        self.node.gpus[0].award = B;
        (0..9).for_each(|_| self.tick());
        self.node.ended = vec![A];
        self.tick();
        self.deliver();
        for _ in 0..3 {
            self.node.gpus[0].xids = vec![31];
            (0..4).for_each(|_| self.tick());
            self.deliver();
        }
    }

    /// The process is gone; another one opens the files and goes on.
    fn restart(&mut self) {
        self.files.0.borrow_mut().fail = None;
        self.store = open(&self.files);
        let left = self.files.0.borrow().files.keys().cloned().collect::<Vec<_>>();
        let removed = self.store.resume().removed;
        let is_gone = |path: &PathBuf| {
            let text = path.to_str().unwrap();
            text.ends_with("unfinished") || removed.iter().any(|award| text.contains(&award.to_string()))
        };
        assert!(!left.iter().any(is_gone), "what is not whole and what is removed is cleaned up: {left:?}");
        for (name, chain) in self.store.chains().iter() {
            let reported = self.stored.get(&name.award).copied().unwrap_or_default();
            assert!(chain.next_sequence() >= reported, "{name}: {reported} were reported stored");
        }
        self.node.meter = Meter::new(Settings::new(key(1).public()), self.store.resume());
        self.node.ended = vec![A];
    }

    /// Everything arrives in the end, and adds up.
    fn check(&mut self, exact: bool) {
        self.files.0.borrow_mut().fail = None;
        (0..3).for_each(|_| self.tick());
        let drafts = self.node.meter.stop().unwrap().to_vec();
        assert!(self.store.append(&drafts).failed.is_empty());
        for _ in 0..20 {
            self.deliver();
        }
        assert_eq!(self.store.chains().undelivered().count(), 0);
        let chains = self.receiver.chains();
        let chains: Vec<&[Record]> = chains.iter().map(Vec::as_slice).collect();
        let totals = verify_node(key(1).public(), &chains).unwrap();
        for gpu in 0..2 {
            let sums = totals[&name(gpu)];
            assert_eq!(sums.missing_ms, 0, "every second is accounted for");
            let energy = sums.awards_mj + sums.idle_mj + sums.gap_mj;
            let used = self.node.gpus[gpu].energy_mj.unwrap() - 1_000_000 - 300 * SECOND;
            assert!(if exact { energy == used } else { energy <= used }, "{energy} of {used}");
        }
        let removed = self.store.resume().removed;
        let is_known = removed.contains(&A) || self.store.chains().iter().any(|(name, _)| name.award == A);
        assert!(is_known || !self.stored.contains_key(&A));
    }
}

/// How many writes the work takes.
fn writes() -> u64 {
    let mut agent = Agent::new();
    agent.work();
    let writes = agent.files.0.borrow().writes;
    agent.check(true);
    writes
}

/// The writes of the work, after those of opening.
fn each_write(mut run: impl FnMut(u64, Done)) {
    let (first, last) = (Agent::new().files.0.borrow().writes + 1, writes());
    assert!(last - first >= 25, "{} writes", last - first);
    for at in first..=last {
        [Done::Nothing, Done::Half, Done::All].into_iter().for_each(|done| run(at, done));
    }
}

#[test]
fn a_process_that_ends_at_any_write_leaves_chains_that_go_on() {
    each_write(|at, done| {
        let mut agent = Agent::new();
        agent.files.0.borrow_mut().fail = Some((at, done, true));
        agent.work();
        agent.restart();
        // What was not stored before the first record is not known to anybody.
        let began = agent.store.chains().iter().next().is_some();
        agent.check(began);
    });
}

#[test]
fn a_write_that_fails_once_costs_a_gap_and_no_more() {
    let mut gaps = 0;
    each_write(|at, done| {
        let mut agent = Agent::new();
        agent.files.0.borrow_mut().fail = Some((at, done, false));
        agent.work();
        agent.check(true);
        let of = |r: &Record| matches!(&r.body, vendue_receipts::Body::Gap(g) if g.reason == GapReason::StoreFailed);
        gaps += agent.receiver.0.values().filter(|r| of(r)).count();
    });
    assert!(gaps >= 20, "{gaps} gaps");
}

#[test]
fn a_full_disk_stops_the_accrual_and_nothing_is_invented() {
    let mut agent = Agent::new();
    agent.work();
    let before = agent.stored.clone();
    let at = agent.files.0.borrow().writes + 1;
    agent.files.0.borrow_mut().fail = Some((at, Done::Half, true));
    (0..60).for_each(|_| agent.tick());
    assert_eq!(agent.stored, before, "no record, no accrual");
    agent.check(true);
    let idle_use = |r: &&Record| r.award == IDLE;
    assert!(agent.receiver.0.values().filter(idle_use).count() > 0);
    let failed = agent.receiver.0.values().filter_map(|r| match &r.body {
        vendue_receipts::Body::Gap(gap) if gap.reason == GapReason::StoreFailed => {
            Some(gap.t1_ms - gap.t0_ms)
        }
        _ => None,
    });
    assert!(failed.sum::<u64>() >= 2 * 50 * SECOND);
}
