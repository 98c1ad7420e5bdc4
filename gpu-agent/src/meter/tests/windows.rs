//! When windows end, whom they belong to, and what is in them.

use vendue_receipts::{Activity, ActivitySource, AwardId, Body, Clock, Closed, Energy, Opened, Xid};

use super::{A, B, IDLE, Node, SECOND, START_MS, key, name};
use crate::meter::{Meter, Resume, Settings, TickError};

/// Chain time of a second after the start.
fn at(second: u64) -> u64 {
    START_MS + second * SECOND
}

#[test]
fn a_window_ends_at_each_tenth_second_and_has_what_was_between_two_readings() {
    let mut node = Node::new(2);
    node.tick(0);
    node.ticks(35);
    let windows = node.windows(IDLE);
    let of_first: Vec<(u64, u64)> =
        windows.iter().filter(|w| w.device == name(0)).map(|w| (w.t0_ms, w.t1_ms)).collect();
    // The node starts at a tenth second.
    assert_eq!(of_first, [(at(0), at(10)), (at(10), at(20)), (at(20), at(30))]);
    assert_eq!(windows.len(), 6);
    let first = &windows[0];
    assert_eq!(first.wall_ns, 10_000_000_000);
    assert_eq!(first.energy, Some(Energy { used_mj: 3_000_000, counter_mj: 4_000_000 }));
    let half = Activity { source: ActivitySource::Utilization, average_millionths: 500_000 };
    assert_eq!((first.activity, first.memory_peak_bytes), (Some(half), Some(1_000)));
    assert_eq!(first.driver.as_str(), "580.1");
    node.stop();
    assert_eq!(node.windows(IDLE).last().unwrap().t1_ms, at(35));
}

#[test]
fn activity_is_weighted_by_time_and_memory_is_the_peak() {
    let mut node = Node::new(1);
    node.tick(0);
    for (ms, share, memory) in
        [(1_000, 1_000_000, 5), (3_000, 0, 9), (4_000, 500_000, 7), (2_000, 500_000, 1)]
    {
        node.gpus[0].activity = Some((ActivitySource::SmActive, share));
        node.gpus[0].memory = Some(memory);
        node.tick(ms);
    }
    let window = &node.windows(IDLE)[0];
    let average = Activity { source: ActivitySource::SmActive, average_millionths: 400_000 };
    assert_eq!((window.activity, window.memory_peak_bytes), (Some(average), Some(9)));
}

#[test]
fn what_a_device_does_not_offer_is_left_out() {
    let mut node = Node::new(1);
    let gpu = &mut node.gpus[0];
    (gpu.energy_mj, gpu.activity, gpu.memory) = (None, None, None);
    node.ticks(12);
    let window = &node.windows(IDLE)[0];
    assert_eq!((window.energy, window.activity, window.memory_peak_bytes), (None, None, None));
    assert!(node.gaps(IDLE).is_empty());
}

#[test]
fn an_interval_is_an_awards_only_if_it_had_the_device_at_both_ends() {
    let mut node = Node::new(1);
    node.tick(0);
    node.gpus[0].award = A;
    node.ticks(4);
    node.gpus[0].award = B;
    node.ticks(3);
    node.gpus[0].award = IDLE;
    node.ticks(2);
    node.stop();
    let times = |award| node.windows(award).iter().map(|w| (w.t0_ms, w.t1_ms)).collect::<Vec<_>>();
    assert_eq!(times(A), [(at(1), at(4))]);
    assert_eq!(times(B), [(at(5), at(7))]);
    assert_eq!(times(IDLE), [(at(0), at(1)), (at(4), at(5)), (at(7), at(9))]);
    let totals = node.of(0);
    assert_eq!((totals.awards_mj, totals.idle_mj, totals.missing_ms), (1_500_000, 1_200_000, 0));
}

#[test]
fn each_award_has_a_chain_that_opens_at_the_first_tick_and_closes_when_it_ends() {
    let mut node = Node::new(2);
    node.tick(0);
    node.gpus[0].award = A;
    node.gpus[1].award = A;
    node.ticks(3);
    node.ended = vec![A];
    node.ticks(1);
    let (chain, records) = &node.chains[&A];
    let Body::Opened(Opened { public_key, time_ms, .. }) = &records[0].body else { panic!("an opening") };
    assert_eq!((*public_key, *time_ms), (key(1).public(), at(1)));
    // What is between the last look and the end is not charged.
    assert_eq!(node.windows(A).iter().map(|w| w.t1_ms).collect::<Vec<_>>(), [at(3), at(3)]);
    assert_eq!(records.last().unwrap().body, Body::Closed(Closed { time_ms: at(4) }));
    assert!(chain.is_closed());
    // A Pod that is still there serves nobody.
    node.ticks(2);
    assert_eq!(node.meter.counts().refused_awards, 6);
    node.stop();
    assert_eq!(node.chains[&A].1.len(), 4);
    assert_eq!(node.windows(IDLE).last().unwrap().t1_ms, at(6));
}

#[test]
fn an_award_that_ended_stays_ended_over_restarts() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.ticks(2);
    node.ended = vec![A];
    node.ticks(1);
    node.restart();
    node.ticks(2);
    assert_eq!(node.meter.counts().refused_awards, 2);
    let resume = Resume { removed: [A].into(), ..Resume::default() };
    node.meter = Meter::new(Settings::new(key(1).public()), resume);
    node.chains.clear();
    node.ticks(1);
    assert_eq!(node.meter.counts().refused_awards, 1, "whose chain is gone, too");
}

#[test]
fn one_award_too_many_counts_as_idle() {
    let mut node = Node::new(3);
    let settings = Settings { max_awards: 2, ..Settings::new(key(1).public()) };
    node.meter = Meter::new(settings, Resume::default());
    for (n, gpu) in node.gpus.iter_mut().enumerate() {
        gpu.award = AwardId([n as u8 + 1; 8]);
    }
    node.ticks(2);
    assert_eq!(node.chains.len(), 3, "idle and two awards");
    assert_eq!(node.meter.counts().refused_awards, 2);
}

#[test]
fn an_xid_ends_the_window_and_is_in_it() {
    let mut node = Node::new(1);
    node.tick(0);
    node.ticks(2);
    node.gpus[0].xids = vec![31, 31];
    node.ticks(1);
    let window = &node.windows(IDLE)[0];
    assert_eq!((window.t1_ms, window.xids.as_slice()), (at(3), &[Xid { code: 31, count: 2 }][..]));
}

#[test]
fn observation_begins_with_a_gap_of_no_length_that_has_the_counter_and_earlier_xids() {
    let mut node = Node::new(1);
    node.gpus[0].xids = vec![48];
    node.tick(0);
    let gap = &node.gaps(IDLE)[0];
    assert_eq!(
        (gap.t0_ms, gap.t1_ms, gap.xids.as_slice()),
        (at(0), at(0), &[Xid { code: 48, count: 1 }][..])
    );
    assert_eq!(gap.energy, Some(Energy { used_mj: 0, counter_mj: 1_000_000 }));
    // So nothing is lost when the agent dies before the first window ends.
    node.pass(7 * SECOND);
    node.restart();
    node.ticks(1);
    assert_eq!((node.of(0).gap_ms, node.of(0).gap_mj), (8 * SECOND, 8 * 300_000));
}

#[test]
fn a_step_of_the_system_clock_is_recorded_in_each_chain_and_moves_no_window() {
    for step in [3_600_000, -3_600_000] {
        let mut node = Node::new(1);
        node.tick(0);
        node.gpus[0].award = A;
        node.ticks(1);
        node.system_ms += 999;
        node.ticks(1);
        node.system_ms += step - 999;
        node.ticks(10);
        let clock = Body::Clock(Clock { time_ms: at(3), system_ms: at(3).saturating_add_signed(step) });
        for award in [IDLE, A] {
            let clocks = node.said(award).into_iter().filter(|b| matches!(b, Body::Clock(_)));
            assert_eq!(clocks.collect::<Vec<_>>(), std::slice::from_ref(&clock), "once");
        }
        // A chain that opens later says so at once.
        node.gpus[0].award = B;
        node.ticks(2);
        assert!(matches!(node.said(B)[0], Body::Clock(_)));
        assert_eq!(node.of(0).missing_ms, 0);
        assert_eq!(node.meter.time_ms(), at(14));
    }
}

#[test]
fn a_step_is_a_second_since_it_was_recorded_last() {
    let mut node = Node::new(1);
    node.tick(0);
    let steps = [999, 1, 999, -1_998, -1].map(|ms| {
        node.system_ms += ms;
        let is_clock = |draft: &&crate::meter::Draft| matches!(draft.body, Body::Clock(_));
        node.tick(SECOND).iter().filter(is_clock).count()
    });
    assert_eq!(steps, [0, 1, 0, 0, 1]);
}

#[test]
fn a_device_that_is_named_twice_is_taken_once() {
    let mut node = Node::new(1);
    node.tick(0);
    node.pass(SECOND);
    let mut tick = node.look();
    tick.devices.push(tick.devices[0].clone());
    node.meter.tick(&tick).unwrap();
    node.meter.settle(&[].into());
    assert_eq!(node.meter.counts().duplicate_devices, 1);
    node.ticks(10);
    assert_eq!(node.windows(IDLE)[0].wall_ns, 10_000_000_000);
}

#[test]
fn a_tick_that_cannot_be_taken_changes_nothing() {
    let mut node = Node::new(1);
    let tick = node.look();
    node.meter.tick(&tick).unwrap();
    assert_eq!(node.meter.tick(&tick).unwrap_err(), TickError::Unsettled);
    assert_eq!(node.meter.stop().unwrap_err(), TickError::Unsettled);
    node.meter.settle(&[IDLE].into());
    let late = crate::meter::Tick { system_ms: u64::MAX, ..tick.clone() };
    assert_eq!(node.meter.tick(&late).unwrap_err(), TickError::SystemClock(u64::MAX));
    assert!(node.meter.tick(&tick).is_ok());
}
