//! What is told first, what an answer changes, and that no chain ends the others.

use std::path::PathBuf;

use vendue_receipts::delivery::{Answer, Answered, Batch, BookId, MAX_RECORDS};
use vendue_receipts::{AwardId, Body, BootId, Chain, ChainName, Closed, Opened};
use vendue_receipts_store::Options;

use super::memory::Memory;
use super::{A, B, IDLE, key, used};
use crate::meter::hours::Hours;
use crate::meter::{Draft, Store, Telling, options};

fn name_of(award: AwardId) -> ChainName {
    ChainName::new(award, key(1).public())
}

/// A store with an opening and so many windows of a millisecond for each of these awards.
fn store(options: Options, awards: &[(AwardId, u64)]) -> Store<Memory> {
    let mut store = Store::open_with(options, key(1), Memory::default()).unwrap().0;
    for (award, count) in awards {
        let opened = Opened { public_key: key(1).public(), boot: BootId([1; 16]), time_ms: 0 };
        let opening = Draft { award: *award, body: Body::Opened(opened) };
        let windows = (0..*count).map(|n| used(*award, 0, n, n + 1));
        let drafts: Vec<Draft> = [opening].into_iter().chain(windows).collect();
        assert!(store.append(&drafts).failed.is_empty());
    }
    store
}

fn in_memory() -> Options {
    options(PathBuf::from("/receipts"))
}

/// Files of one batch each.
fn in_small_files(max_bytes: u64) -> Options {
    Options { segment_bytes: 1, max_bytes, ..in_memory() }
}

fn batch(telling: &mut Telling, store: &mut Store<Memory>, now_ms: u64) -> Batch {
    telling.batch(store.chains_mut(), &Hours::default(), now_ms)
}

fn sizes(batch: &Batch) -> Vec<(AwardId, usize)> {
    batch.chains.iter().map(|piece| (piece.name.award, piece.records.len())).collect()
}

fn next(award: AwardId, next: u64) -> Answered {
    Answered { name: name_of(award), next: Some(next), error: None, later: false }
}

fn answer(chains: Vec<Answered>, book: u8) -> Answer {
    Answer { chains, book: Some(BookId([book; 16])), ..Answer::default() }
}

fn hear(telling: &mut Telling, store: &mut Store<Memory>, chains: Vec<Answered>) {
    telling.answered(answer(chains, 1), store.chains_mut(), 0);
}

#[test]
fn awards_come_before_idle_time_and_none_holds_up_another() {
    let mut store = store(in_memory(), &[(IDLE, 700), (A, 1_100), (B, 4)]);
    let mut telling = Telling::default();
    let first = batch(&mut telling, &mut store, 0);
    let half = MAX_RECORDS / 2;
    assert_eq!(sizes(&first), [(A, half), (B, 5), (IDLE, MAX_RECORDS - half - 5)]);
    hear(&mut telling, &mut store, vec![next(A, 500), next(B, 5), next(IDLE, 495)]);
    let second = batch(&mut telling, &mut store, 0);
    assert_eq!(sizes(&second)[..2], [(A, 601), (IDLE, 206)], "alone it has all the room");
    // Both wait again: the one whose turn was last comes last.
    hear(&mut telling, &mut store, vec![next(A, 1_000)]);
    assert!(store.append(&[used(B, 0, 4, 5)]).failed.is_empty());
    let third = batch(&mut telling, &mut store, 0);
    assert_eq!(sizes(&third)[..2], [(B, 1), (A, 101)]);
}

#[test]
fn a_chain_whose_beginning_nobody_has_counts_as_told_and_comes_back_with_a_backup() {
    let mut store = store(in_small_files(1 << 20), &[(IDLE, 0), (A, 0)]);
    for n in 0..3 {
        assert!(store.append(&[used(IDLE, 0, n, n + 1), used(A, 0, n, n + 1)]).failed.is_empty());
    }
    let mut telling = Telling::default();
    hear(&mut telling, &mut store, vec![next(IDLE, 4), next(A, 4)]);
    // Of idle time the oldest files go; of an award that goes on all stay.
    store.chains_mut().prune(1 << 40).unwrap();
    let kept = |store: &Store<Memory>, award| store.chains().first_kept(name_of(award));
    assert_eq!((kept(&store, IDLE), kept(&store, A)), (Some(3), Some(0)));

    hear(&mut telling, &mut store, vec![next(IDLE, 0), next(A, 0)]);
    let waiting: Vec<_> = store.chains().undelivered().collect();
    assert_eq!(waiting, [(name_of(A), 0)], "what is here is told again, the rest not for ever");
    assert_eq!(telling.counts(), (0, 1));
    // What comes after it is asked after and let go in the same way.
    assert!(store.append(&[used(IDLE, 0, 3, 4)]).failed.is_empty());
    assert_eq!(sizes(&batch(&mut telling, &mut store, 0))[1], (IDLE, 1));
    hear(&mut telling, &mut store, vec![next(IDLE, 0), next(A, 4)]);
    assert_eq!((store.chains().undelivered().count(), telling.counts()), (0, (0, 1)));
    // The receiver was restored from a backup.
    hear(&mut telling, &mut store, vec![next(IDLE, 3)]);
    assert_eq!(store.chains().undelivered().collect::<Vec<_>>(), [(name_of(IDLE), 3)]);
    assert_eq!(telling.counts(), (0, 0));
}

#[test]
fn another_book_is_asked_after_every_chain() {
    let mut store = store(in_memory(), &[(IDLE, 1), (A, 1), (B, 1)]);
    let mut telling = Telling::default();
    let all = vec![next(A, 2), next(B, 2), next(IDLE, 2)];
    let asked: Vec<(AwardId, usize)> = [IDLE, A, B].map(|award| (award, 0)).to_vec();
    hear(&mut telling, &mut store, all.clone());
    assert_eq!(batch(&mut telling, &mut store, 0), Batch::default(), "they were just answered");
    telling.answered(answer(vec![], 2), store.chains_mut(), 0);
    assert_eq!(sizes(&batch(&mut telling, &mut store, 0)), asked);
    let later = Answered { later: true, error: Some("full".to_owned()), ..next(A, 0) };
    telling.answered(answer(vec![next(IDLE, 2), next(B, 0), later], 2), store.chains_mut(), 0);
    // One is there, one was lost, one is asked after again.
    assert_eq!(sizes(&batch(&mut telling, &mut store, 0)), [(B, 2), (A, 0)]);
    hear(&mut telling, &mut store, vec![]);
    assert_eq!(sizes(&batch(&mut telling, &mut store, 0)).len(), 3, "the first book again");
}

#[test]
fn a_refused_chain_waits_and_one_for_which_there_is_no_room_at_the_receiver_does_not() {
    let mut store = store(in_memory(), &[(A, 1), (B, 1)]);
    let mut telling = Telling::default();
    let failed =
        |award, later| Answered { next: None, error: Some("why".to_owned()), later, ..next(award, 0) };
    hear(&mut telling, &mut store, vec![failed(A, false), failed(B, true)]);
    assert_eq!(telling.counts(), (1, 0));
    assert_eq!(sizes(&batch(&mut telling, &mut store, 299_999))[0], (B, 2));
    hear(&mut telling, &mut store, vec![next(B, 2)]);
    assert_eq!(sizes(&batch(&mut telling, &mut store, 299_999)), []);
    assert_eq!(sizes(&batch(&mut telling, &mut store, 300_000)), [(A, 2)]);
    hear(&mut telling, &mut store, vec![next(A, 2)]);
    assert_eq!(telling.counts(), (0, 0));
}

#[test]
fn a_chain_that_the_receiver_refuses_makes_room_for_the_others_at_last() {
    let mut store = store(in_small_files(40_000), &[(A, 0), (B, 0), (IDLE, 0)]);
    let mut telling = Telling::default();
    let refused = Answered { next: None, error: Some("two stories".to_owned()), ..next(IDLE, 0) };
    hear(&mut telling, &mut store, vec![refused, next(A, 1)]);
    let full = |store: &mut Store<Memory>, award, n| {
        let appended = store.append(&[used(award, 0, n, n + 1)]);
        !appended.failed.is_empty()
    };
    for n in 0..200 {
        assert!(!full(&mut store, IDLE, n), "window {n}: a refused chain does not end metering");
        if n % 10 == 0 {
            assert!(!full(&mut store, A, n), "nor that of another");
            hear(&mut telling, &mut store, vec![next(A, 2 + n / 10)]);
        }
    }
    assert!(store.chains().bytes() <= 40_000);
    assert!(store.chains().first_kept(name_of(IDLE)) > Some(100), "its oldest records went");
    assert_eq!(store.chains().first_kept(name_of(B)), Some(0), "what was not told to anybody stays");
    let ended = (0..).find(|n| full(&mut store, B, *n)).unwrap();
    assert!(ended > 3, "{ended}: with nothing left that may go, nothing more is stored");
    assert_eq!(store.chains().get(name_of(B)).unwrap().next_sequence(), ended + 1);
}

#[test]
fn an_hour_of_which_records_are_gone_is_not_stated() {
    let mut whole = store(in_memory(), &[(IDLE, 3)]);
    let mut hours = Hours::default();
    whole.state(&mut hours, 0).unwrap();
    assert_eq!(hours.waiting().len(), 1);

    // The same chain as it goes on after a lost disk: only its head is here.
    let mut chain = Chain::new(IDLE, 0);
    whole.chains().records(name_of(IDLE), 0, 9).unwrap().iter().for_each(|r| chain.push(r).unwrap());
    let mut lost = store(in_memory(), &[]);
    lost.adopt(chain).unwrap();
    let closed = Draft { award: IDLE, body: Body::Closed(Closed { time_ms: 3_600_001 }) };
    assert!(lost.append(&[used(IDLE, 0, 3, 4), closed]).failed.is_empty());
    let mut hours = Hours::default();
    lost.state(&mut hours, 0).unwrap();
    assert_eq!(
        (hours.waiting().len(), hours.due(2 * 3_600_000)),
        (0, None),
        "said to be less, it would accuse"
    );
    lost.state(&mut hours, 1).unwrap();
    assert_eq!(hours.waiting().len(), 1);
    let mut forgone = Hours::default();
    forgone.forgo(5, lost.chains_mut()).unwrap();
    assert_eq!((forgone.due(7 * 3_600_000), forgone.due(8 * 3_600_000)), (None, Some(6)));
    assert_eq!(Hours::open(lost.chains()).unwrap(), forgone);
}
