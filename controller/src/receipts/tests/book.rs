//! What the book keeps, counts, opens and removes.

use std::fs::{File, FileTimes};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use vendue_controller_core::award::usage::Run;
use vendue_receipts::{Closed, Rotated, SignedHour, Tree, hour_leaves};

use super::*;
use crate::receipts::BookError;

const DAY_MS: u64 = 86_400_000;
const NEW_FILE: u64 = 4 << 10;

fn run(until_s: u64) -> Run {
    Run { price_micros: 3_600_000, from_ms: 0, until_ms: Some(until_s * SECOND) }
}

fn open(dir: &Path) -> Book {
    Book::open(dir, 1 << 30, system_ms).unwrap()
}

fn nodes(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Chains of an award on these nodes.
fn told(book: &Book, award: AwardId, names: &[&str]) -> usize {
    book.of_award(award, &nodes(names)).unwrap().len()
}

fn closed(award: AwardId, windows: u64) -> Vec<Record> {
    let mut records = signed(award, windows, "1");
    let mut chain = verify(award, None, 0, &records).unwrap();
    records.push(chain.sign(Body::Closed(Closed { time_ms: windows * 10 * SECOND }), &key(1)).unwrap());
    records
}

/// Makes all files of a folder so many days old.
fn age(dir: &Path, days: u64) {
    let at = SystemTime::now() - Duration::from_millis(days * DAY_MS);
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path, days);
        } else {
            let file = File::options().append(true).open(path).unwrap();
            file.set_times(FileTimes::new().set_modified(at)).unwrap();
        }
    }
}

#[test]
fn bills_follow_what_comes_and_what_the_run_is() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(AWARD, 6, "1");
    let book = open(dir.path());
    assert_eq!(book.take("n1", name(AWARD), &records[..5]).unwrap(), Some(5));
    let gpu_seconds = |book: &Book, run| {
        let bills = book.bills(AWARD, run, &nodes(&["n1"])).unwrap();
        assert_eq!((bills.len(), bills[0].node.as_str()), (1, "n1"));
        (bills[0].sums.gpu_ns / 1_000_000_000, bills[0].sums.cost_micros)
    };
    let goes_on = Run { until_ms: None, ..run(0) };
    assert_eq!(gpu_seconds(&book, goes_on), (40, 40_000));
    // What was counted is counted on as it comes: the file is not read again.
    let segment = dir.path().join(format!("n1/{}-{:016x}.segment", name(AWARD), 0));
    let bytes = std::fs::read(&segment).unwrap();
    book.take("n1", name(AWARD), &records[3..9]).unwrap();
    let longer = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, [&vec![0; bytes.len()], &longer[bytes.len()..]].concat()).unwrap();
    assert_eq!(gpu_seconds(&book, goes_on), (80, 80_000), "counted on, nothing twice");
    std::fs::write(&segment, longer).unwrap();
    book.take("n1", name(AWARD), &records[9..]).unwrap();
    assert_eq!(gpu_seconds(&book, run(100)), (120, 120_000));
    assert_eq!(gpu_seconds(&book, run(25)), (50, 50_000), "another end, counted anew");
    let bills = book.bills(AWARD, run(25), &nodes(&["n1"])).unwrap();
    assert_eq!(bills[0].devices.values().copied().collect::<Vec<_>>(), [60_000, 60_000]);
    drop(book);
    assert_eq!(gpu_seconds(&open(dir.path()), run(100)), (120, 120_000), "the same after a restart");
    let book = open(dir.path());
    assert_eq!(book.bills(AwardId([2; 8]), run(100), &nodes(&["n1"])).unwrap(), []);
    assert_eq!(book.size().0, 1);
}

#[test]
fn a_record_that_is_told_again_in_another_form_is_not_counted() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(AWARD, 6, "1");
    let book = open(dir.path());
    book.take("n1", name(AWARD), &records[..5]).unwrap();
    book.bills(AWARD, run(100), &nodes(&["n1"])).unwrap();
    let mut forged = records.clone();
    let Body::Used(used) = &mut forged[4].body else { panic!("an opening") };
    used.wall_ns = 9_000_000_000_000;
    book.take("n1", name(AWARD), &forged[4..]).unwrap();
    assert_eq!(book.bills(AWARD, run(100), &nodes(&["n1"])).unwrap()[0].sums.gpu_ns, 120_000_000_000);
}

#[test]
fn a_folder_is_opened_when_somebody_asks_and_closed_when_nobody_does() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    fn clock() -> u64 {
        system_ms() + NOW.load(Ordering::Relaxed)
    }
    let dir = tempfile::tempdir().unwrap();
    let book = open(dir.path());
    for node in ["n1", "n2", "n3"] {
        book.take(node, name(AWARD), &signed(AWARD, 2, "1")).unwrap();
    }
    let size = book.size();
    drop(book);
    // What cannot be read concerns nobody who does not ask for it.
    std::fs::write(dir.path().join(format!("n3/{}-{:016x}.segment", name(AWARD), 0)), b"rust").unwrap();
    let book = Book::open(dir.path(), 1 << 30, clock).unwrap();
    assert_eq!((book.open_folders(), book.size().0), (0, 3));
    assert_eq!(book.bills(AWARD, run(100), &nodes(&["n1"])).unwrap().len(), 1);
    assert_eq!(told(&book, AWARD, &["n1", "n3"]), 1, "the one that cannot be read is left out");
    assert_eq!(book.open_folders(), 1);
    book.take("n2", name(AWARD), &signed(AWARD, 3, "1")).unwrap();
    assert_eq!(book.open_folders(), 2);
    assert!(book.size().1 > size.1 / 2);
    book.close_idle();
    assert_eq!(book.open_folders(), 2);
    NOW.store(10 * 60_000, Ordering::Relaxed);
    book.open_chains("n2").unwrap();
    NOW.store(16 * 60_000, Ordering::Relaxed);
    book.close_idle();
    assert_eq!(book.open_folders(), 1, "n1 was not asked for");
    assert_eq!(book.bills(AWARD, run(100), &nodes(&["n1"])).unwrap().len(), 1, "and is opened again");
    assert_eq!(book.open_chains("n9").unwrap(), [], "who asks makes no folder");
    assert!(!dir.path().join("n9").exists());
}

#[test]
fn two_stories_are_kept_as_evidence_and_one_bad_node_stops_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (signed(AWARD, 2, "1"), signed(AWARD, 2, "2"));
    let book = open(dir.path());
    book.take("n1", name(AWARD), &one).unwrap();
    let error = book.take("n1", name(AWARD), &other).unwrap_err();
    assert!(matches!(error, BookError::Equivocation { sequence: 1, .. }) && error.is_senders(), "{error}");
    let path = dir.path().join(format!("n1/evidence/{}-1.json", name(AWARD)));
    let both: vendue_receipts::Equivocation = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(both.verify(), Ok(key(1).public()));
    for bad in ["", "..", "a/b", "N1", ".hidden", &"a".repeat(254)] {
        assert!(matches!(book.take(bad, name(AWARD), &one), Err(BookError::Node(_))), "{bad}");
    }
    drop(book);
    let segment = dir.path().join(format!("n1/{}-{:016x}.segment", name(AWARD), 0));
    std::fs::write(&segment, b"rust").unwrap();
    let book = open(dir.path());
    let error = book.take("n1", name(AWARD), &one).unwrap_err();
    assert!(!error.is_senders() && error.to_string().contains("damaged"), "{error}");
    assert_eq!(book.take("n2", name(AWARD), &one).unwrap(), Some(5));
}

#[test]
fn a_node_begins_no_chain_after_chain_for_one_award() {
    let dir = tempfile::tempdir().unwrap();
    let book = open(dir.path());
    let opened = |n: u8| {
        let opened = Opened { public_key: key(n).public(), boot: BootId([1; 16]), time_ms: 0 };
        let record = Chain::new(AWARD, 0).sign(Body::Opened(opened), &key(n)).unwrap();
        (ChainName::new(AWARD, key(n).public()), record)
    };
    for n in 1..=16 {
        let (name, record) = opened(n);
        book.take("n1", name, &[record]).unwrap();
    }
    let (name, record) = opened(17);
    let error = book.take("n1", name, std::slice::from_ref(&record)).unwrap_err();
    assert!(matches!(error, BookError::Keys { max_chains: 16, .. }) && error.is_senders(), "{error}");
    book.take("n2", name, &[record]).unwrap();
}

#[test]
fn a_node_has_a_quarter_of_the_room_and_others_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (AwardId([1; 8]), AwardId([2; 8]), AwardId([3; 8]));
    let bytes = |records: &[Record]| records.iter().map(|r| r.encode().len() as u64).sum::<u64>();
    let each = bytes(&signed(first, 60, "1"));
    let book = Book::open(dir.path(), 4 * (2 * each + NEW_FILE), system_ms).unwrap();
    book.take("n1", name(first), &signed(first, 60, "1")).unwrap();
    let full = |award| match book.take("n1", name(award), &signed(award, 60, "1")) {
        Err(BookError::Full { max_bytes, .. }) => assert_eq!(max_bytes, 2 * each + NEW_FILE),
        other => panic!("{other:?}"),
    };
    full(second);
    book.take("n2", name(second), &signed(second, 60, "1")).unwrap();
    assert_eq!(told(&book, first, &["n1"]), 1, "what goes on makes no room");
    drop(book);
    let book = Book::open(dir.path(), 4 * (2 * each + NEW_FILE), system_ms).unwrap();
    let all = closed(first, 60);
    book.take("n1", name(first), &all).unwrap();
    book.take("n1", name(third), &signed(third, 60, "1")).unwrap();
    assert_eq!([first, third].map(|award| told(&book, award, &["n1"])), [0, 1], "its own that is over went");
    assert_eq!(told(&book, second, &["n2"]), 1, "and nothing of another");
}

#[test]
fn without_room_the_oldest_that_is_over_goes_and_what_goes_on_stays() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    fn clock() -> u64 {
        system_ms() + NOW.load(Ordering::Relaxed)
    }
    let dir = tempfile::tempdir().unwrap();
    let award = |n: u8| AwardId([n; 8]);
    let book = open(dir.path());
    for n in 1..=4 {
        book.take(&format!("n{n}"), name(award(n)), &signed(award(n), 100, "1")).unwrap();
    }
    let (_, bytes) = book.size();
    drop(book);
    let book = Book::open(dir.path(), bytes + 4 * NEW_FILE + 4_000, clock).unwrap();
    let fifth = signed(award(5), 100, "1");
    let error = book.take("n5", name(award(5)), &fifth).unwrap_err();
    assert!(matches!(error, BookError::Full { .. }) && !error.is_senders(), "{error}");
    let left = |book: &Book| [1, 2, 3, 4].map(|n| told(book, award(n), &[&format!("n{n}")]));
    assert_eq!(left(&book), [1; 4], "nothing that goes on makes room");
    for n in [2, 3] {
        let end = closed(award(n), 100).pop().unwrap();
        book.take(&format!("n{n}"), name(award(n)), &[end]).unwrap();
    }
    age(&dir.path().join("n2"), 2);
    let error = book.take("n5", name(award(5)), &fifth).unwrap_err();
    assert!(matches!(error, BookError::Full { .. }), "not tried again at once: {error}");
    NOW.store(61_000, Ordering::Relaxed);
    book.take("n5", name(award(5)), &fifth).unwrap();
    assert_eq!(left(&book), [1, 0, 1, 1], "the longest over made room");
}

#[test]
fn what_was_written_long_ago_goes_whatever_its_records_say() {
    let dir = tempfile::tempdir().unwrap();
    let (over, running) = (AwardId([1; 8]), AwardId([2; 8]));
    let book = open(dir.path());
    for node in ["n1", "n2", "n3"] {
        book.take(node, name(over), &closed(over, 2)).unwrap();
        book.take(node, name(running), &signed(running, 2, "1")).unwrap();
        book.note_held(over, &nodes(&[node])).unwrap();
    }
    drop(book);
    for node in ["n1", "n2", "n3"] {
        age(&dir.path().join(node), 31);
    }
    age(&dir.path().join(".held"), 31);
    let book = open(dir.path());
    // Two nodes tell again; what is there of one of them cannot be read.
    for node in ["n1", "n2"] {
        book.take(node, name(running), &signed(running, 3, "1")).unwrap();
    }
    drop(book);
    std::fs::write(dir.path().join(format!("n1/{}-{:016x}.segment", name(running), 0)), b"rust").unwrap();
    let book = open(dir.path());
    assert_eq!(book.prune(system_ms()), 1, "one cannot be read");
    assert_eq!(book.open_folders(), 0, "looked at and closed");
    assert_eq!([over, running].map(|award| told(&book, award, &["n2"])), [0, 1]);
    assert!(!dir.path().join("n3").exists(), "its node is gone");
    assert_eq!(book.size().0, 2);
    assert!(dir.path().join(".held").join(over.to_string()).exists(), "there is a chain of it on n1");
    std::fs::remove_dir_all(dir.path().join("n1")).unwrap();
    assert_eq!(book.prune(system_ms()), 0);
    assert!(!dir.path().join(".held").join(over.to_string()).exists());
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    // A node that was forgotten begins again.
    assert_eq!(book.take("n3", name(over), &closed(over, 2)).unwrap(), Some(6));
}

#[test]
fn files_that_seem_to_come_from_the_future_grow_old_from_now_on() {
    let dir = tempfile::tempdir().unwrap();
    let book = open(dir.path());
    book.take("n1", name(AWARD), &closed(AWARD, 2)).unwrap();
    let path = dir.path().join(format!("n1/{}-{:016x}.segment", name(AWARD), 0));
    let far = SystemTime::now() + Duration::from_millis(400 * DAY_MS);
    File::options().append(true).open(&path).unwrap().set_modified(far).unwrap();
    assert_eq!(book.prune(system_ms()), 0);
    assert!(std::fs::metadata(&path).unwrap().modified().unwrap() <= SystemTime::now());
    assert_eq!(book.prune(system_ms() + 31 * DAY_MS), 0);
    assert!(!path.exists());
}

#[test]
fn only_nodes_that_held_devices_of_an_award_are_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let book = open(dir.path());
    for node in ["n1", "n2", "n3"] {
        book.take(node, name(AWARD), &signed(AWARD, 2, "1")).unwrap();
    }
    assert_eq!(told(&book, AWARD, &[]), 0);
    book.note_held(AWARD, &nodes(&["n1"])).unwrap();
    book.note_held(AWARD, &nodes(&["n2"])).unwrap();
    assert!(book.knows(AWARD, &nodes(&["n1", "n2"])) && !book.knows(AWARD, &nodes(&["n3"])));
    drop(book);
    let book = open(dir.path());
    let told: Vec<String> = book.of_award(AWARD, &[]).unwrap().into_iter().map(|told| told.node).collect();
    assert_eq!(told, ["n1", "n2"], "also when the Award is gone");
    assert_eq!(book.of_award(AWARD, &nodes(&["n1", "n3"])).unwrap().len(), 3);
    assert!(!book.records(name(AWARD), &[], 0).unwrap().is_empty());
    let stranger = AwardId([7; 8]);
    book.take("n3", name(stranger), &signed(stranger, 2, "1")).unwrap();
    assert!(book.records(name(stranger), &[], 0).unwrap().is_empty());
}

#[test]
fn statements_of_hours_are_kept_when_they_are_true_and_as_evidence_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let records = signed(AWARD, 2, "1");
    let book = open(dir.path());
    book.take("n1", name(AWARD), &records).unwrap();
    let tree = Tree::new(&hour_leaves(0, records.iter()));
    let said = SignedHour::sign(0, tree.count(), tree.root(), &key(1));
    let wrong = SignedHour::sign(0, tree.count() - 1, tree.root(), &key(1));
    let strangers = SignedHour::sign(0, tree.count(), tree.root(), &key(2));
    // Of records that did not come, or went for want of room, nothing is known: nobody is accused.
    let of_lost = SignedHour::sign(1, 9, tree.root(), &key(1));
    let far = system_ms() / 3_600_000 + 48;
    let empty = Tree::new(&[]);
    let ahead = SignedHour::sign(far, empty.count(), empty.root(), &key(1));
    assert_eq!(
        book.take_hours("n1", &[said, wrong, strangers, of_lost, ahead]).unwrap(),
        [0, 0, 0, 1, far],
        "none is wanted again"
    );
    let files = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(dir.path().join("n1").join(folder)).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let public_key = key(1).public();
    assert_eq!(files("hours"), [format!("0-{public_key}.json")]);
    assert_eq!(files("evidence"), [format!("0-{public_key}.json")]);
    age(&dir.path().join("n1/hours"), 29);
    assert_eq!((book.prune(system_ms()), files("hours").len()), (0, 1));
    age(&dir.path().join("n1/hours"), 30);
    assert_eq!((book.prune(system_ms()), files("hours").len(), files("evidence").len()), (0, 0, 1));
}

#[test]
fn the_hour_of_a_rotation_is_true_with_what_the_key_before_closed() {
    let dir = tempfile::tempdir().unwrap();
    let book = open(dir.path());
    let closed = signed(AWARD, 2, "1");
    let mut idle = signed(AwardId::IDLE, 2, "1");
    let mut chain = verify(AwardId::IDLE, None, 0, &idle).unwrap();
    let (time_ms, next_key) = (30 * SECOND, key(2).public());
    idle.push(chain.sign(Body::Rotated(Rotated { time_ms, next_key }), &key(1)).unwrap());
    for (award, records) in [(AWARD, &closed), (AwardId::IDLE, &idle)] {
        book.take("n1", name(award), records).unwrap();
    }
    let tree = Tree::new(&hour_leaves(0, closed.iter().chain(&idle)));
    let said = SignedHour::sign(0, tree.count(), tree.root(), &key(2));
    book.take_hours("n1", &[said]).unwrap();
    assert!(dir.path().join("n1/hours").join(format!("0-{next_key}.json")).exists());
    assert!(!dir.path().join("n1/evidence").exists(), "nobody is accused");
}
