//! Chains: what a reader accepts, and what it says of everything else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use vendue_market::encode::Canonical;
use vendue_receipts::*;

fn fault(records: &[Record]) -> (u64, Fault) {
    let error = verify(AWARD, Some(key(1).public()), 0, records).unwrap_err();
    (error.record, error.fault)
}

/// What a chain of these bodies, which no honest writer signs, is refused for. They are signed as they are.
fn refused(bodies: Vec<Body>) -> Fault {
    let mut chain = Chain::new(AWARD, 0);
    let mut last = None;
    for body in bodies {
        match chain.sign(body, &key(1)) {
            Ok(_) => assert!(last.is_none()),
            Err(error) => last = Some(error),
        }
    }
    last.unwrap().fault
}

#[test]
fn totals_follow_from_the_records() {
    let price = 3_600_000; // 0.001 a second
    let records = full_chain();
    let chain = verify(AWARD, None, price, &records).unwrap();
    let expected = Totals {
        records: 8,
        used_ns: 18 * SECOND_NS,
        gpu_ns: 18 * SECOND_NS,
        gap_ns: 6 * SECOND_NS,
        energy_mj: 7_000,
        gap_energy_mj: 3_000,
        cost_micros: 18_000,
    };
    assert_eq!(chain.totals(), expected);
    assert_eq!((chain.head(), chain.next_sequence()), (records[7].digest(), 8));
    assert_eq!((chain.started_ms(), chain.end_ms(), chain.is_closed()), (1_000, 25_000, true));
    assert_eq!(chain.keys(), [key(1).public(), key(2).public()]);
    assert_eq!(chain.clock_offset_ms(), 3_600_000);
}

#[test]
fn time_with_several_devices_is_counted_once_in_used_and_for_each_in_gpu() {
    let bodies = vec![
        opened(&key(1), 0),
        used("GPU-0", 0, 10_000),
        used("GPU-1", 0, 10_000),
        used("GPU-0", 10_000, 20_000),
        used("GPU-1", 15_000, 25_000),
    ];
    let totals = verify(AWARD, None, 0, &chain(AWARD, &key(1), bodies)).unwrap().totals();
    assert_eq!((totals.used_ns, totals.gpu_ns), (25 * SECOND_NS, 40 * SECOND_NS));
}

#[test]
fn every_change_is_found_and_named() {
    let records = full_chain();
    let with = |change: &dyn Fn(&mut Vec<Record>)| {
        let mut changed = records.clone();
        change(&mut changed);
        fault(&changed)
    };
    let other = AwardId([9; 8]);
    assert_eq!(with(&|r| r[1].award = other), (1, Fault::Award { found: other, expected: AWARD }));
    assert_eq!(with(&|r| _ = r.remove(2)), (2, Fault::Sequence { found: 3, expected: 2 }));
    assert_eq!(with(&|r| r.swap(1, 2)), (1, Fault::Sequence { found: 2, expected: 1 }));
    assert_eq!(with(&|r| r[3].previous = [7; 32]), (3, Fault::Previous));
    assert_eq!(with(&|r| r[1].signature = [0xff; 65]), (1, Fault::Signature(SignatureError::Malformed)));
    assert!(matches!(with(&|r| r[1].signature = r[2].signature), (1, Fault::Key { .. })));
    let shift = |r: &mut Vec<Record>| {
        let Body::Used(used) = &mut r[1].body else { panic!("a window") };
        used.wall_ns += 1;
    };
    assert!(matches!(with(&shift), (1, Fault::Key { .. })), "what is signed cannot be changed");
    let again = |r: &mut Vec<Record>| {
        let closed = r[7].clone();
        r.push(Record { sequence: 8, previous: closed.digest(), ..closed });
    };
    assert_eq!(with(&again), (8, Fault::AfterClosed));
    assert_eq!(verify(AWARD, Some(key(2).public()), 0, &records).unwrap_err().record, 0);
    assert_eq!(
        verify(other, None, 0, &records).unwrap_err().fault,
        Fault::Award { found: AWARD, expected: other }
    );
}

#[test]
fn any_flipped_bit_is_found() {
    let records = full_chain();
    let mut chain = Chain::new(AWARD, 0);
    for record in &records {
        let bytes = record.encode();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let Ok(read) = Record::from_bytes(&changed) else { continue };
            let mut chain = chain.clone();
            let before = chain.clone();
            assert!(chain.push(&read).is_err(), "record {}, bit {bit}", record.sequence);
            assert_eq!(chain, before, "a refused record changes nothing");
        }
        chain.push(record).unwrap();
    }
}

#[test]
fn records_in_bytes_are_read_up_to_the_first_that_is_none() {
    let records = full_chain();
    let bytes: Vec<u8> = records.iter().flat_map(Record::encode).collect();
    assert_eq!(read_records(&bytes), Ok(records.clone()));
    assert!(records.iter().all(|r| r.encode().len() <= MAX_ENCODED));
    let first = records[0].encode().len();
    let mut other = bytes.clone();
    other[first] = 2;
    assert_eq!(read_records(&other), Err(ChainError { record: 1, fault: Fault::Version }));
    let cut = &bytes[..bytes.len() - 1];
    let short = ChainError { record: 7, fault: Fault::Malformed(DecodeError::Short) };
    assert_eq!(read_records(cut), Err(short));
}

#[test]
fn a_chain_begins_with_one_opening() {
    assert_eq!(refused(vec![used("GPU-0", 0, 1_000)]), Fault::Opening);
    assert_eq!(refused(vec![opened(&key(1), 0), opened(&key(1), 1)]), Fault::Opening);
    assert!(matches!(refused(vec![opened(&key(2), 0)]), Fault::Key { .. }));
}

#[test]
fn windows_that_overlap_or_run_backwards_are_refused() {
    let after = |body| refused(vec![opened(&key(1), 1_000), used("GPU-0", 2_000, 12_000), body]);
    assert_eq!(after(used("GPU-0", 11_999, 20_000)), Fault::Window);
    assert_eq!(after(used("GPU-1", 500, 20_000)), Fault::Window, "before the opening");
    assert_eq!(after(used("GPU-1", 2_000, 11_000)), Fault::Window, "before the record before it");
    assert_eq!(after(gap(Some("GPU-0"), 11_000, 20_000, GapReason::Clock)), Fault::Window);
    assert_eq!(after(gap(None, 11_000, 20_000, GapReason::Clock)), Fault::Window);
    assert_eq!(after(gap(None, 21_000, 20_000, GapReason::Clock)), Fault::Window);
    assert_eq!(after(closed(11_999)), Fault::Window);
    let mut backwards = window("GPU-1", 14_000, 14_000);
    backwards.t1_ms = 13_000;
    assert_eq!(after(Body::Used(backwards)), Fault::Window);
}

#[test]
fn a_gap_of_all_devices_moves_each_of_them_on() {
    let gap = gap(None, 12_000, 20_000, GapReason::AgentDown);
    let bodies = vec![opened(&key(1), 0), used("GPU-0", 2_000, 12_000), gap, used("GPU-0", 19_000, 29_000)];
    assert_eq!(refused(bodies), Fault::Window);
}

#[test]
fn a_window_is_as_long_as_its_times_say() {
    let with = |wall_ns, t1_ms| {
        let used = Used { wall_ns, ..window("GPU-0", 1_000, t1_ms) };
        let mut chain = Chain::new(AWARD, 0);
        chain.sign(opened(&key(1), 1_000), &key(1)).unwrap();
        chain.sign(Body::Used(used), &key(1)).map(drop).map_err(|error| error.fault)
    };
    // Times are cut to milliseconds, so a window is up to a millisecond longer or shorter.
    assert_eq!(with(1_000_999_999, 2_000), Ok(()));
    assert_eq!(with(1_001_000_000, 2_000), Err(Fault::Length));
    assert_eq!(with(999_000_001, 2_000), Ok(()));
    assert_eq!(with(999_000_000, 2_000), Err(Fault::Length));
    assert_eq!(with(0, 1_000), Ok(()));
    assert_eq!(with(0, 1_001), Ok(()));
}

#[test]
fn a_long_window_does_not_use_up_time_in_which_nothing_was_said() {
    let long = Used { wall_ns: 5 * SECOND_NS, ..window("GPU-0", 10_000, 11_000) };
    let bodies = vec![opened(&key(1), 0), used("GPU-0", 0, 1_000), Body::Used(long)];
    assert_eq!(refused(bodies), Fault::Length);
}

#[test]
fn short_windows_do_not_add_up_to_more_than_the_time_that_passed() {
    let short = |_| Body::Used(Used { wall_ns: 600_000, ..window("GPU-0", 1_000, 1_000) });
    let bodies = std::iter::once(opened(&key(1), 1_000)).chain((0..2).map(short));
    assert_eq!(refused(bodies.collect()), Fault::Length);
}

#[test]
fn values_that_nothing_can_have_are_refused() {
    let after = |body| refused(vec![opened(&key(1), 0), body]);
    let activity = Some(Activity { source: ActivitySource::Utilization, average_millionths: 1_000_001 });
    let busy = Used { activity, ..window("GPU-0", 0, 1_000) };
    assert_eq!(after(Body::Used(busy)), Fault::Value("activity average"));
    assert_eq!(after(metered("GPU-0", 0, 1_000, 11, 10)), Fault::Value("energy above its counter"));
    let energy = Some(Energy { used_mj: 1, counter_mj: 1 });
    let all =
        Gap { device: None, t0_ms: 0, t1_ms: 1, reason: GapReason::Clock, energy, xids: Xids::default() };
    assert_eq!(after(Body::Gap(all)), Fault::Value("energy of all devices"));
    let ever = Used { wall_ns: u64::MAX, t1_ms: u64::MAX, ..window("GPU-0", 0, 1_000) };
    assert_eq!(after(Body::Used(ever)), Fault::Overflow);
    let sum = vec![
        opened(&key(1), 0),
        metered("GPU-0", 0, 1_000, u64::MAX, u64::MAX),
        metered("GPU-0", 1_000, 2_000, 1, 1),
    ];
    assert_eq!(refused(sum), Fault::Overflow);
}

#[test]
fn a_cost_above_all_numbers_is_a_fault_not_a_small_cost() {
    let hour = used("GPU-0", 0, 3_600_000);
    let next = used("GPU-0", 3_600_000, 7_200_000);
    let records = chain(AWARD, &key(1), vec![opened(&key(1), 0), hour, next]);
    let error = verify(AWARD, None, u64::MAX, &records).unwrap_err();
    assert_eq!(error, ChainError { record: 2, fault: Fault::Overflow });
}

#[test]
fn only_the_key_in_force_signs() {
    let rotate = |to: &NodeKey| Body::Rotated(Rotated { time_ms: 0, next_key: to.public() });
    let mut chain = Chain::new(AWARD, 0);
    chain.sign(opened(&key(1), 0), &key(1)).unwrap();
    assert!(matches!(chain.clone().sign(closed(1), &key(2)).unwrap_err().fault, Fault::Key { .. }));
    assert_eq!(chain.clone().sign(rotate(&key(1)), &key(1)).unwrap_err().fault, Fault::Rotation);
    let nobody = Body::Rotated(Rotated { time_ms: 0, next_key: PublicKey([0; 33]) });
    assert_eq!(chain.clone().sign(nobody, &key(1)).unwrap_err().fault, Fault::Rotation);
    chain.sign(rotate(&key(2)), &key(1)).unwrap();
    assert!(matches!(chain.clone().sign(closed(1), &key(1)).unwrap_err().fault, Fault::Key { .. }));
    assert_eq!(chain.clone().sign(rotate(&key(1)), &key(2)).unwrap_err().fault, Fault::Rotation);
    chain.sign(closed(1), &key(2)).unwrap();
}

#[test]
fn there_is_a_bound_on_keys() {
    let number = |n: usize| {
        let mut secret = [1; 32];
        secret[..2].copy_from_slice(&(n as u16).to_be_bytes());
        NodeKey::from_bytes(&secret).unwrap()
    };
    let mut chain = Chain::new(AWARD, 0);
    chain.sign(opened(&number(0), 0), &number(0)).unwrap();
    for n in 1..=MAX_KEYS {
        let rotate = Body::Rotated(Rotated { time_ms: 0, next_key: number(n).public() });
        let signed = chain.sign(rotate, &number(n - 1)).map(drop).map_err(|error| error.fault);
        assert_eq!(signed, if n < MAX_KEYS { Ok(()) } else { Err(Fault::Rotation) });
    }
}

#[test]
fn of_many_devices_those_that_ended_last_are_kept_in_mind_and_none_overlaps() {
    let mut chain = Chain::new(AWARD, 0);
    chain.sign(opened(&key(1), 0), &key(1)).unwrap();
    for n in 0..MAX_DEVICES as u64 + 2 {
        chain.sign(used(&format!("GPU-{n}"), n, 1_000 + n), &key(1)).unwrap();
    }
    assert_eq!(chain.devices().len(), MAX_DEVICES);
    assert!(
        !chain.devices().contains_key(&device("GPU-1")) && chain.devices().contains_key(&device("GPU-2"))
    );
    let next = |name: &str, t0_ms| {
        let signed = chain.clone().sign(used(name, t0_ms, 9_000), &key(1));
        signed.map(drop).map_err(|error| error.fault)
    };
    // GPU-1 ended at 1001 and is not in mind, like one that was never there.
    for name in ["GPU-0", "GPU-1", "GPU-new"] {
        assert_eq!((next(name, 1_000), next(name, 1_001)), (Err(Fault::Window), Ok(())), "{name}");
    }
    assert_eq!((next("GPU-2", 1_001), next("GPU-2", 1_002)), (Err(Fault::Window), Ok(())));
}

#[test]
fn judging_goes_on_from_json() {
    let records = full_chain();
    for cut in 0..records.len() {
        let (before, after) = records.split_at(cut);
        let chain = verify(AWARD, None, 5, before).unwrap();
        let text = serde_json::to_string(&chain).unwrap();
        let mut again: Chain = serde_json::from_str(&text).unwrap();
        assert_eq!(again, chain);
        after.iter().for_each(|record| again.push(record).unwrap());
        assert_eq!(again, verify(AWARD, None, 5, &records).unwrap());
    }
}

#[test]
fn replay_checks_all_but_the_signer() {
    let mut records = full_chain();
    records[1].signature = [0; 65];
    let mut chain = Chain::new(AWARD, 0);
    records.iter().for_each(|record| chain.replay(record).unwrap());
    assert_eq!(chain.head(), records[7].digest());
    let mut chain = Chain::new(AWARD, 0);
    chain.replay(&records[0]).unwrap();
    assert_eq!(chain.replay(&records[2]).unwrap_err().fault, Fault::Sequence { found: 2, expected: 1 });
}
