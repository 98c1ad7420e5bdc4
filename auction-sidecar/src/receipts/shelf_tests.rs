//! What is kept, what is refused, and what is left of it after a restart.

use vendue_receipts::Fault;

use super::*;
use crate::testing::receipts::{AWARD, T, key, name, signed, signed_at, signed_for};

const MOST: (u64, u64) = (1_000, T);

fn open(dir: &Path) -> Shelf {
    let dir = dir.to_owned();
    Shelf::open(ShelfOptions { dir, segment_bytes: 1, max_bytes: 1 << 20, retain_ms: 5_000 }).unwrap()
}

fn bytes(records: &[Record]) -> Vec<u8> {
    records.iter().flat_map(Record::encode).collect()
}

fn award() -> AwardId {
    AWARD.parse().unwrap()
}

#[test]
fn records_are_kept_with_the_name_of_their_node() {
    let dir = tempfile::tempdir().unwrap();
    let (records, chain) = (signed(&key(1), "GPU-0", 3, "1"), name(&key(1)));
    let shelf = open(dir.path());
    assert_eq!(shelf.take("alpha", (chain, "n1"), &bytes(&records[..2]), MOST).unwrap(), Kept::New(2, 2));
    assert_eq!(shelf.take("alpha", (chain, "n1"), &bytes(&records), MOST).unwrap(), Kept::New(3, 5));
    assert_eq!(shelf.take("alpha", (chain, "n1"), &[], MOST).unwrap(), Kept::New(0, 5));
    drop(shelf);
    let shelf = open(dir.path());
    let entry = ChainEntry { name: chain, node: "n1".into(), next: 5, until_ms: T + 3_000, closed: true };
    assert_eq!(shelf.chains(award()), [entry]);
    assert_eq!(shelf.of_award(award()), (5, 1));
    assert_eq!(shelf.here(chain), (5, false));
    assert_eq!(shelf.records(chain, 0).unwrap(), records[..2], "one file");
    assert_eq!(shelf.records(chain, 2).unwrap(), records[2..]);
}

#[test]
fn what_does_not_verify_is_refused_and_kept_as_evidence_once() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(dir.path());
    let (one, other) = (signed(&key(1), "GPU-0", 3, "1"), signed(&key(1), "GPU-0", 3, "2"));
    let chain = name(&key(1));
    shelf.take("alpha", (chain, "n1"), &bytes(&one[..3]), MOST).unwrap();
    let refused = |records: &[u8]| match shelf.take("alpha", (chain, "n1"), records, MOST).unwrap() {
        Kept::Refused(evidence) => evidence,
        Kept::New(..) => panic!("taken"),
    };
    let not_next = refused(&bytes(&other[3..]));
    let reason = format!("record 3: {}", Fault::Previous);
    assert_eq!(not_next, Evidence::Refused { chain: chain.to_string(), sequence: 3, reason });
    let garbage = refused(b"garbage");
    assert!(
        matches!(&garbage, Evidence::Refused { reason, .. } if reason.contains("another version")),
        "{garbage:?}"
    );
    let both = refused(&bytes(&other));
    let Evidence::Equivocation { records, .. } = &both else { panic!("{both:?}") };
    assert_eq!(records.verify(), Ok(key(1).public()));
    for (evidence, is_new) in [(&both, true), (&both, false), (&not_next, true), (&garbage, false)] {
        assert_eq!(shelf.accuse(chain, evidence).unwrap(), is_new, "{evidence:?}");
    }
    drop(shelf);
    let shelf = open(dir.path());
    assert_eq!(shelf.evidence(award()), [both, not_next]);
    assert_eq!(shelf.here(chain), (3, false), "nothing of it was stored");
}

#[test]
fn a_provider_fills_neither_the_volume_nor_the_list_of_evidence() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(dir.path());
    let take = |n: u8, t: u64, most| {
        let records = bytes(&signed_at(t, &key(n), "GPU-0", 3, "1"));
        shelf.take("alpha", (name(&key(n)), "n1"), &records, most).unwrap()
    };
    assert_eq!(take(1, T, (9, T)), Kept::New(5, 5));
    assert!(matches!(take(2, T, (9, T)), Kept::Refused(_)), "ten records of the award");
    assert_eq!(take(2, T, (10, T)), Kept::New(5, 5));
    let day = 24 * 3_600_000;
    assert!(
        matches!(take(3, T + day, MOST), Kept::Refused(_)),
        "it would be kept for a day longer than others"
    );
    // Chain after chain of one record each.
    (3..=64).for_each(|n| {
        let opening = bytes(&signed(&key(n), "GPU-0", 3, "1")[..1]);
        assert_eq!(
            shelf.take("alpha", (name(&key(n)), "n1"), &opening, MOST).unwrap(),
            Kept::New(1, 1),
            "{n}"
        );
    });
    assert!(matches!(take(65, T, MOST), Kept::Refused(_)), "one chain too many");
    let accusation =
        |sequence| Evidence::Refused { chain: name(&key(1)).to_string(), sequence, reason: "r".into() };
    let taken = (0..20).filter(|n| shelf.accuse(name(&key(1)), &accusation(*n)).unwrap()).count();
    assert_eq!(taken, MAX_OF_AWARD);
}

#[test]
fn what_is_old_goes_closed_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let shelf = open(dir.path());
    let (closed, open_ended) = (signed(&key(1), "GPU-0", 3, "1"), signed(&key(2), "GPU-1", 3, "1"));
    shelf.take("alpha", (name(&key(1)), "n1"), &bytes(&closed), MOST).unwrap();
    shelf.take("alpha", (name(&key(2)), "n2"), &bytes(&open_ended[..4]), MOST).unwrap();
    let refused = Evidence::Refused { chain: name(&key(1)).to_string(), sequence: 1, reason: "r".into() };
    assert!(shelf.accuse(name(&key(1)), &refused).unwrap());
    shelf.prune(T + 7_999).unwrap();
    assert_eq!(shelf.chains(award()).len(), 2, "not old yet");
    shelf.prune(T + 8_000).unwrap();
    assert_eq!(shelf.chains(award()), []);
    assert_eq!(shelf.here(name(&key(2))), (0, true));
    assert_eq!(
        shelf.take("alpha", (name(&key(2)), "n2"), &bytes(&open_ended), MOST).unwrap(),
        Kept::New(0, u64::MAX)
    );
    // Far beyond whatever the clock of this machine says.
    shelf.prune(u64::MAX).unwrap();
    assert_eq!(shelf.evidence(award()), []);
    drop(shelf);
    assert_eq!(open(dir.path()).evidence(award()), []);
}

/// A shelf in this folder with room for so much.
fn with_room(dir: &Path, max_bytes: u64) -> Shelf {
    let dir = dir.to_owned();
    Shelf::open(ShelfOptions { dir, segment_bytes: 1, max_bytes, retain_ms: 1 << 40 }).unwrap()
}

fn chain_of(award: u8) -> ChainName {
    ChainName::new(AwardId([award; 8]), key(1).public())
}

/// A chain that is closed.
fn closed_of(award: u8) -> Vec<u8> {
    bytes(&signed_for(AwardId([award; 8]), &key(1), "GPU-0", 3, "1"))
}

#[test]
fn the_oldest_chains_that_are_over_make_room_and_those_that_go_on_stay() {
    let dir = tempfile::tempdir().unwrap();
    let first = with_room(dir.path(), 1 << 20);
    let take = |shelf: &Shelf, award: u8, records: &[u8], now_ms| {
        shelf.take(&format!("p{award}"), (chain_of(award), "n1"), records, (MOST.0, now_ms))
    };
    take(&first, 1, &open_ended_of(1), T).unwrap();
    (2..=8).for_each(|award| _ = take(&first, award, &closed_of(award), T).unwrap());
    let full = first.bytes();
    drop(first);
    let shelf = with_room(dir.path(), full);
    assert_eq!(take(&shelf, 9, &closed_of(9), T).unwrap(), Kept::New(5, 5));
    assert_eq!([2, 3].map(|award| shelf.here(chain_of(award)).1), [true, false], "one goes, not all");
    assert_eq!(shelf.here(chain_of(1)), (4, false));
    let failed =
        (10..30).find_map(|award| Some((award, take(&shelf, award, &open_ended_of(award), T).err()?)));
    let (late, error) = failed.unwrap();
    assert!(matches!(error, ShelfError::Full { .. }), "only chains that go on are left: {error}");
    assert!((2..=9).all(|award| shelf.here(chain_of(award)).1));
    take(&shelf, late, &open_ended_of(late), T + 4_000 + SILENT_MS).unwrap();
}

#[test]
fn neither_an_award_nor_a_provider_takes_more_than_its_share() {
    let dir = tempfile::tempdir().unwrap();
    let first = with_room(dir.path(), 1 << 20);
    first.take("alpha", (chain_of(1), "n1"), &open_ended_of(1), MOST).unwrap();
    let each = first.bytes();
    drop(first);
    // Room for twelve: three of an award, six of a provider.
    let shelf = with_room(dir.path(), 12 * each + 8);
    let take = |provider: &str, award: u8, key_of: u8| {
        let by = key(key_of);
        let records = bytes(&signed_for(AwardId([award; 8]), &by, "GPU-0", 3, "1")[..4]);
        shelf.take(provider, (ChainName::new(AwardId([award; 8]), by.public()), "n1"), &records, MOST)
    };
    let share = |result: Result<Kept, ShelfError>| match result {
        Err(ShelfError::Share { of, .. }) => of,
        other => panic!("{other:?}"),
    };
    assert_eq!([2, 3].map(|by| take("alpha", 1, by).unwrap()), [Kept::New(4, 4), Kept::New(4, 4)]);
    assert_eq!(share(take("alpha", 1, 4)), format!("award {}", AwardId([1; 8])));
    (2..=4).for_each(|award| _ = take("alpha", award, 1).unwrap());
    assert_eq!(share(take("alpha", 5, 1)), "provider alpha");
    take("beta", 6, 1).unwrap();
    // What is over of the provider itself makes room for it, and nothing of others.
    shelf.take("alpha", (chain_of(3), "n1"), &closed_of(3), MOST).unwrap_err();
    drop(shelf);
    let shelf = with_room(dir.path(), 12 * each + 2_048);
    shelf.take("alpha", (chain_of(3), "n1"), &closed_of(3), MOST).unwrap();
    shelf.take("alpha", (chain_of(5), "n1"), &open_ended_of(5), MOST).unwrap();
    assert_eq!([3, 6].map(|award| shelf.here(chain_of(award)).1), [true, false]);
}

/// A chain that is not closed.
fn open_ended_of(award: u8) -> Vec<u8> {
    bytes(&signed_for(AwardId([award; 8]), &key(1), "GPU-0", 3, "1")[..4])
}
