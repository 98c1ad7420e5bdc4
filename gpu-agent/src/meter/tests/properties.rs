//! Properties over whatever happens to a node.

use proptest::prelude::*;
use vendue_receipts::{AwardId, Body};

use super::{IDLE, Node, START_MS, name};
use crate::meter::Unreadable;

const GPUS: usize = 2;
const AWARDS: [AwardId; 3] = [AwardId::IDLE, AwardId([1; 8]), AwardId([2; 8])];

/// What happens to a node.
#[derive(Debug, Clone)]
enum Event {
    Ticks(u64, u64),
    Assign(usize, usize),
    End(usize),
    Step(i64),
    Suspend(u64),
    Fault(usize, Option<Unreadable>),
    Xid(usize, u32),
    Silence(u64),
    Watts(usize, u64),
    Reset(usize),
    Restart(u64),
    Reboot(u64),
    FailStore(usize),
    HealStore,
}

fn calm() -> impl Strategy<Value = Event> {
    let fault = prop_oneof![
        2 => Just(None),
        1 => Just(Some(Unreadable::Lost)),
        1 => Just(Some(Unreadable::NotReadable)),
    ];
    prop_oneof![
        8 => (1..25u64, 1..1_500u64).prop_map(|(count, ms)| Event::Ticks(count, ms)),
        4 => (0..GPUS, 0..AWARDS.len()).prop_map(|(gpu, award)| Event::Assign(gpu, award)),
        1 => (1..AWARDS.len()).prop_map(Event::End),
        1 => prop_oneof![Just(3_600_000i64), Just(-3_600_000), -5_000..5_000i64].prop_map(Event::Step),
        1 => (0..9_000u64).prop_map(Event::Suspend),
        2 => (0..GPUS, fault).prop_map(|(gpu, fault)| Event::Fault(gpu, fault)),
        1 => (0..GPUS, 1..120u32).prop_map(|(gpu, code)| Event::Xid(gpu, code)),
        1 => (0..9_000u64).prop_map(Event::Silence),
        1 => (0..GPUS, 0..700u64).prop_map(|(gpu, watts)| Event::Watts(gpu, watts)),
    ]
}

fn restarts() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => calm(),
        1 => (0..90_000u64).prop_map(Event::Restart),
        1 => Just(Event::FailStore(0)),
        2 => Just(Event::HealStore),
    ]
}

/// Chains that cannot be stored while others can.
fn partial_failures() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => calm(),
        1 => (0..AWARDS.len()).prop_map(Event::FailStore),
        1 => Just(Event::HealStore),
    ]
}

fn anything() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => restarts(),
        1 => (0..GPUS).prop_map(Event::Reset),
        1 => (0..90_000u64).prop_map(Event::Reboot),
    ]
}

/// A node, and what is known of it otherwise.
struct World {
    node: Node,
    /// The energy that each device has used.
    used_mj: [u64; GPUS],
    /// What each device was said to serve at each tick, by chain time.
    looks: Vec<(u64, [AwardId; GPUS])>,
}

impl World {
    fn new() -> Self {
        let mut world = Self { node: Node::new(GPUS), used_mj: [0; GPUS], looks: vec![] };
        world.tick(0);
        world
    }

    fn pass(&mut self, ms: u64) {
        self.node.pass(ms);
        for (used, gpu) in self.used_mj.iter_mut().zip(&self.node.gpus) {
            *used += gpu.watts * ms;
        }
    }

    fn tick(&mut self, ms: u64) {
        self.pass(ms);
        self.node.tick(0);
        let awards = std::array::from_fn(|n| self.node.gpus[n].award);
        self.looks.push((self.node.meter.time_ms(), awards));
    }

    fn apply(&mut self, event: Event) {
        let node = &mut self.node;
        match event {
            Event::Ticks(count, ms) => (0..count).for_each(|_| self.tick(ms)),
            Event::Assign(gpu, award) => node.gpus[gpu].award = AWARDS[award],
            Event::End(award) => node.ended.push(AWARDS[award]),
            Event::Step(ms) => node.system_ms += ms,
            Event::Suspend(ms) => {
                node.suspended_ms += ms;
                self.pass(ms);
            }
            Event::Fault(gpu, fault) => node.gpus[gpu].fault = fault,
            Event::Xid(gpu, code) => node.gpus[gpu].xids.push(code),
            Event::Silence(ms) => self.pass(ms),
            Event::Watts(gpu, watts) => node.gpus[gpu].watts = watts,
            Event::Reset(gpu) => node.gpus[gpu].energy_mj = Some(0),
            Event::Restart(ms) => {
                self.pass(ms);
                self.node.restart();
            }
            Event::Reboot(ms) => {
                node.reboot(ms);
                // Time that no record has may come again.
                let end_ms = node.chains.values().map(|(chain, _)| chain.end_ms()).max().unwrap_or_default();
                self.looks.retain(|(time, _)| *time <= end_ms);
            }
            Event::FailStore(award) => _ = node.failing.insert(AWARDS[award]),
            Event::HealStore => node.failing.clear(),
        }
    }

    /// Everything works again, and is written down.
    fn settle(&mut self) {
        self.node.failing.clear();
        self.node.gpus.iter_mut().for_each(|gpu| gpu.fault = None);
        self.tick(1);
        self.tick(1);
        self.node.stop();
    }

    /// What holds whatever happens.
    fn check(&self) -> Result<(), TestCaseError> {
        let totals = self.node.totals();
        for gpu in 0..GPUS {
            let sums = totals[&name(gpu)];
            prop_assert_eq!(sums.missing_ms, 0, "nothing is left out");
            let ms = (sums.awards_ns + sums.idle_ns) / 1_000_000 + sums.gap_ms;
            let elapsed = self.node.meter.time_ms() - START_MS;
            // Each record's length in milliseconds is cut.
            prop_assert!(ms.abs_diff(elapsed) <= 1 + self.records(), "{} of {}", ms, elapsed);
            let energy = sums.awards_mj + sums.idle_mj + sums.gap_mj;
            prop_assert!(energy <= self.used_mj[gpu], "energy that was not used");
        }
        self.check_awards()
    }

    fn records(&self) -> u64 {
        self.node.chains.values().map(|(_, records)| records.len() as u64).sum()
    }

    /// A window of an award lies where the device was said to serve it at every look.
    fn check_awards(&self) -> Result<(), TestCaseError> {
        for (award, (_, records)) in self.node.chains.iter().filter(|(award, _)| !award.is_idle()) {
            for body in records.iter().map(|r| &r.body) {
                let Body::Used(used) = body else { continue };
                let gpu = (0..GPUS).find(|n| name(*n) == used.device).unwrap();
                let said = |at: u64| self.looks.iter().any(|(time, of)| *time == at && of[gpu] == *award);
                prop_assert!(said(used.t0_ms) && said(used.t1_ms), "{:?}", used);
                for (time, awards) in self.looks.iter().filter(|(t, _)| used.t0_ms < *t && *t < used.t1_ms) {
                    prop_assert_eq!(awards[gpu], *award, "at {}", time);
                }
            }
        }
        Ok(())
    }
}

fn run(events: Vec<Event>) -> World {
    let mut world = World::new();
    events.into_iter().for_each(|event| world.apply(event));
    world.settle();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn energy_of_awards_idle_time_and_gaps_is_what_the_counter_counted(
        events in prop_oneof![
            proptest::collection::vec(restarts(), 1..40),
            proptest::collection::vec(partial_failures(), 1..40),
        ],
    ) {
        let world = run(events);
        world.check()?;
        let totals = world.node.totals();
        for gpu in 0..GPUS {
            let sums = totals[&name(gpu)];
            prop_assert_eq!(sums.awards_mj + sums.idle_mj + sums.gap_mj, world.used_mj[gpu]);
        }
    }

    #[test]
    fn counters_that_begin_anew_and_reboots_invent_nothing(
        events in proptest::collection::vec(anything(), 1..40),
    ) {
        run(events).check()?;
    }

    #[test]
    fn without_faults_all_time_is_use(
        moves in proptest::collection::vec((0..GPUS, 0..AWARDS.len(), 1..30u64), 1..20),
    ) {
        let mut world = World::new();
        for (gpu, award, ticks) in moves {
            world.apply(Event::Assign(gpu, award));
            world.apply(Event::Ticks(ticks, 1_000));
        }
        world.settle();
        world.check()?;
        let gaps = |award: &AwardId| world.node.gaps(*award).len();
        prop_assert_eq!(world.node.chains.keys().map(gaps).sum::<usize>(), 0);
        let idle = world.node.windows(IDLE).iter().map(|w| w.wall_ns).sum::<u64>();
        let awards = world.node.chains.values().map(|(chain, _)| chain.totals().gpu_ns).sum::<u64>() - idle;
        let elapsed = (world.node.meter.time_ms() - START_MS) * 1_000_000 * GPUS as u64;
        prop_assert_eq!(idle + awards, elapsed, "to the nanosecond");
    }
}
