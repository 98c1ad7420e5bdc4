//! What is not observed, and why; restarts, reboots, and stores that fail.

use vendue_receipts::{Body, Energy, Gap, GapReason, Xid, Xids};

use super::{A, IDLE, Node, SECOND, START_MS, key, name};
use crate::meter::{Meter, Resume, Settings, Unreadable};

fn at(second: u64) -> u64 {
    START_MS + second * SECOND
}

fn gap(t0: u64, t1: u64, reason: GapReason, energy: Option<(u64, u64)>) -> Gap {
    let energy = energy.map(|(used_mj, counter_mj)| Energy { used_mj, counter_mj });
    Gap { device: Some(name(0)), t0_ms: at(t0), t1_ms: at(t1), reason, energy, xids: Xids::default() }
}

#[test]
fn a_device_that_is_lost_leaves_a_gap_with_the_energy_that_was_used_in_it() {
    for (fault, reason) in
        [(Unreadable::Lost, GapReason::DeviceLost), (Unreadable::NotReadable, GapReason::DeviceNotReadable)]
    {
        let mut node = Node::new(1);
        node.gpus[0].award = A;
        node.tick(0);
        node.ticks(3);
        node.gpus[0].fault = Some(fault);
        node.gpus[0].xids = vec![79];
        node.ticks(1);
        node.ticks(2);
        node.gpus[0].fault = None;
        node.ticks(2);
        node.stop();
        let mut first = gap(3, 4, reason, None);
        first.xids.add(79);
        let second = gap(4, 7, reason, Some((1_200_000, 1_000_000 + 7 * 300_000)));
        assert_eq!(node.gaps(A), [first, second]);
        let windows: Vec<(u64, u64)> = node.windows(A).iter().map(|w| (w.t0_ms, w.t1_ms)).collect();
        assert_eq!(windows, [(at(0), at(3)), (at(7), at(8))]);
        assert_eq!(node.of(0).missing_ms, 0);
    }
}

#[test]
fn a_gap_that_lasts_is_recorded_each_minute() {
    let mut node = Node::new(1);
    node.tick(0);
    node.gpus[0].fault = Some(Unreadable::Lost);
    node.ticks(150);
    // The node starts 20 s after a full minute.
    let times: Vec<(u64, u64)> = node.gaps(IDLE).iter().map(|g| (g.t0_ms, g.t1_ms)).collect();
    assert_eq!(times, [(at(0), at(40)), (at(40), at(100))]);
}

#[test]
fn a_counter_that_begins_anew_is_a_gap_without_energy() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(2);
    node.gpus[0].energy_mj = Some(0);
    node.ticks(2);
    node.stop();
    assert_eq!(node.gaps(A), [gap(2, 3, GapReason::CounterReset, None)]);
    assert_eq!(node.of(0).awards_mj, 900_000);
    // Another driver was loaded, however much its counter shows.
    node.gpus[0].driver = "590.1";
    node.ticks(2);
    assert_eq!(node.reasons(A), [GapReason::CounterReset; 2]);
    // While the device was away.
    node.gpus[0].fault = Some(Unreadable::Lost);
    node.ticks(2);
    (node.gpus[0].fault, node.gpus[0].energy_mj) = (None, Some(0));
    node.ticks(2);
    assert_eq!(node.reasons(A)[2..], [GapReason::DeviceLost, GapReason::CounterReset]);
    node.totals();
}

#[test]
fn a_counter_that_is_there_only_at_one_end_is_no_window() {
    let mut node = Node::new(1);
    node.tick(0);
    node.ticks(2);
    let energy_mj = node.gpus[0].energy_mj.take();
    node.ticks(2);
    node.gpus[0].energy_mj = energy_mj.map(|e| e + 600_000);
    node.ticks(2);
    node.stop();
    assert_eq!(node.reasons(IDLE), [GapReason::DeviceNotReadable; 2]);
    let energy = node.of(0);
    assert_eq!(energy.idle_mj + energy.gap_mj, 6 * 300_000);
}

#[test]
fn nobody_looked_for_long_or_the_machine_was_suspended() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(1);
    node.tick(5_000);
    node.tick(5_001);
    node.suspended_ms += 2_000;
    node.tick(2_500);
    node.stop();
    let gaps = node.gaps(A);
    let said: Vec<_> = gaps.iter().map(|g| (g.t0_ms - at(0), g.t1_ms - at(0), g.reason)).collect();
    let expected = [(6_000, 11_001, GapReason::AgentDown), (11_001, 13_501, GapReason::Suspend)];
    assert_eq!(said, expected);
    assert_eq!(gaps[0].energy, Some(Energy { used_mj: 1_500_300, counter_mj: 1_000_000 + 300 * 11_001 }));
    assert_eq!(node.of(0).missing_ms, 0);
}

#[test]
fn a_steady_clock_that_runs_backwards_is_a_gap_and_time_goes_on() {
    let mut node = Node::new(1);
    node.tick(0);
    node.ticks(3);
    node.steady_ms -= 2_000;
    node.tick(0);
    assert_eq!(node.reasons(IDLE), [GapReason::Clock]);
    assert!(node.meter.time_ms() >= at(3));
    node.ticks(10);
    assert_eq!(node.of(0).missing_ms, 0);
}

#[test]
fn an_agent_that_starts_again_goes_on_where_the_chains_end() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(14);
    node.system_ms += 3_600_000;
    // Four seconds were not recorded yet, six more pass.
    node.pass(6_000);
    node.restart();
    node.tick(0);
    assert_eq!(node.meter.time_ms(), at(20), "within a boot the steady clock counts");
    assert_eq!(node.gaps(A), [gap(10, 20, GapReason::AgentDown, Some((3_000_000, 7_000_000)))]);
    node.ticks(10);
    assert_eq!(node.windows(A)[1].t1_ms, at(30));
    assert_eq!(node.chains[&A].1.len(), 5, "one opening, one clock");
}

#[test]
fn after_a_reboot_time_goes_on_at_the_later_of_the_two_clocks() {
    for (down_ms, clock, resumes) in [(60_000, 0, at(70)), (60_000, -3_600_000, at(10))] {
        let mut node = Node::new(1);
        node.gpus[0].award = A;
        node.tick(0);
        node.ticks(10);
        node.system_ms += clock;
        node.reboot(down_ms);
        node.tick(0);
        node.ticks(1);
        assert_eq!(node.meter.time_ms(), resumes + SECOND);
        let expected = Gap { t1_ms: resumes, ..gap(10, 10, GapReason::Reboot, None) };
        assert_eq!(node.gaps(A), [expected]);
        node.ticks(10);
        assert_eq!(node.of(0).missing_ms, 0);
    }
}

#[test]
fn a_counter_after_a_reboot_says_nothing_about_the_time_before() {
    let mut node = Node::new(1);
    node.tick(0);
    node.ticks(10);
    node.reboot(60_000);
    // However far it has come.
    node.gpus[0].energy_mj = Some(9_000_000_000);
    node.ticks(2);
    node.stop();
    assert_eq!(node.gaps(IDLE)[0].energy, None);
    assert_eq!((node.of(0).idle_mj, node.of(0).gap_mj), (3_300_000, 0));
}

#[test]
fn another_driver_is_a_gap_on_a_device_without_a_counter_too() {
    let mut node = Node::new(1);
    node.gpus[0].energy_mj = None;
    node.ticks(3);
    node.gpus[0].driver = "590.1";
    node.ticks(3);
    assert_eq!(node.reasons(IDLE), [GapReason::CounterReset]);
}

#[test]
fn an_idle_chain_that_is_not_there_yet_takes_earlier_gaps() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(10);
    node.chains.remove(&IDLE);
    node.restart();
    node.gpus[0].award = IDLE;
    node.ticks(5);
    assert_eq!(node.reasons(IDLE), [GapReason::AgentDown]);
    assert_eq!(node.of(0).missing_ms, 0);
}

#[test]
fn an_anchor_that_was_lost_counts_as_a_reboot() {
    let mut node = Node::new(1);
    node.tick(0);
    node.ticks(10);
    let resume = Resume { anchor: None, not_before_ms: at(3_600), ..node.resume() };
    node.meter = Meter::new(Settings::new(key(1).public()), resume);
    node.tick(0);
    assert_eq!(node.reasons(IDLE), [GapReason::Reboot]);
    assert_eq!(node.meter.time_ms(), at(3_600), "chains of another key were there for longer");
}

#[test]
fn a_lost_disk_is_said() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(10);
    node.ticks(2);
    let resume = Resume { anchor: None, disk_lost: true, ..node.resume() };
    node.meter = Meter::new(Settings::new(key(1).public()), resume);
    node.ticks(2);
    assert_eq!(node.reasons(A), [GapReason::DiskLost]);
    assert_eq!(node.of(0).missing_ms, 0);
}

#[test]
fn a_device_that_is_not_named_is_remembered_for_an_hour() {
    let mut node = Node::new(2);
    node.tick(0);
    node.ticks(2);
    node.gpus[0].named = false;
    node.ticks(1);
    assert_eq!(node.windows(IDLE).iter().filter(|w| w.device == name(0)).count(), 1, "its window ended");
    node.ticks(1);
    node.gpus[0].named = true;
    node.ticks(1);
    assert_eq!(node.reasons(IDLE), [GapReason::DeviceLost]);
    assert_eq!(node.of(0).missing_ms, 0);
    node.gpus[0].named = false;
    node.ticks(3_602);
    node.gpus[0].named = true;
    node.ticks(12);
    assert_eq!(node.reasons(IDLE), [GapReason::DeviceLost]);
    assert!(node.of(0).missing_ms > 3_600_000, "a hole that everybody sees");
}

#[test]
fn what_could_not_be_stored_is_a_gap_and_never_use() {
    let mut node = Node::new(1);
    node.gpus[0].award = A;
    node.tick(0);
    node.ticks(5);
    node.failing = [IDLE].into();
    node.ticks(30);
    node.gpus[0].xids = vec![31];
    node.ticks(1);
    assert!(node.windows(A).is_empty());
    node.failing.clear();
    node.ticks(10);
    let mut expected = gap(0, 36, GapReason::StoreFailed, Some((36 * 300_000, 1_000_000 + 36 * 300_000)));
    expected.xids.add(31);
    assert_eq!(node.gaps(A), [expected]);
    assert_eq!(node.gaps(A)[0].xids.as_slice(), [Xid { code: 31, count: 1 }]);
    assert_eq!((node.of(0).awards_ns, node.of(0).missing_ms), (4_000_000_000, 0));
    assert_eq!(node.meter.counts().unrecorded_gaps, 0);
}

#[test]
fn openings_clock_steps_and_closes_come_again_until_they_are_stored() {
    let mut node = Node::new(1);
    node.failing = [IDLE].into();
    node.gpus[0].award = A;
    node.tick(0);
    node.system_ms += 5_000;
    node.ticks(3);
    node.ended = vec![A];
    node.ticks(2);
    assert!(node.chains.is_empty());
    node.failing.clear();
    node.ticks(1);
    let said = node.said(A);
    let [Body::Gap(lost), Body::Clock(_), Body::Closed(_)] = said.as_slice() else { panic!("{said:?}") };
    assert_eq!((lost.t0_ms, lost.t1_ms, lost.reason), (at(0), at(3), GapReason::StoreFailed));
    assert!(node.chains[&A].0.is_closed());
    node.stop();
    assert_eq!(node.of(0).missing_ms, 0);
}

#[test]
fn gaps_wait_in_bounded_room() {
    let mut node = Node::new(1);
    node.failing = [IDLE].into();
    node.tick(0);
    for n in 0..4_200 {
        // Neighbours of different reasons are not one gap.
        node.gpus[0].fault = Some(if n % 2 == 0 { Unreadable::Lost } else { Unreadable::NotReadable });
        node.tick(SECOND);
    }
    node.failing.clear();
    node.gpus[0].fault = None;
    node.ticks(2);
    let lost = node.meter.counts().unrecorded_gaps;
    assert!((100..110).contains(&lost), "{lost}");
    assert!(node.of(0).missing_ms > 0);
}
