use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::*;

fn entry(path: &str, data: &[u8]) -> FileEntry {
    FileEntry { path: path.into(), size: data.len() as u64, sha256: hex::encode(Sha256::digest(data)) }
}

#[test]
fn a_delivery_in_pieces_survives_a_restart_at_every_step() {
    let dir = tempfile::tempdir().unwrap();
    let data = b"0123456789".to_vec();
    let manifest = vec![entry("model.bin", &data), entry(LOG_PATH, b"line\n"), entry("empty", b"")];
    let open = || Store::open(dir.path(), 1000).unwrap();
    assert_eq!(open().begin("job-1", manifest.clone()).unwrap(), [0, 0, 0]);
    assert_eq!(open().put("job-1", 0, 0, &data[..4]).unwrap(), 4);
    assert_eq!(open().begin("job-1", manifest.clone()).unwrap(), [4, 0, 0]);
    assert!(open().complete("job-1").is_err());
    assert_eq!(open().put("job-1", 0, 0, &data[..4]).unwrap(), 4, "a repeat changes nothing");
    assert_eq!(open().put("job-1", 0, 4, &data[4..]).unwrap(), 10);
    assert_eq!(open().put("job-1", 1, 0, b"line\n").unwrap(), 5);
    open().complete("job-1").unwrap();
    let store = open();
    assert!(store.job("job-1").unwrap().complete);
    assert_eq!(store.job("job-1").unwrap().outputs().len(), 2);
    assert_eq!(store.read("job-1", "model.bin", 2, 3).unwrap(), (b"234".to_vec(), 10));
    assert_eq!(store.read("job-1", LOG_PATH, 0, 100).unwrap(), (b"line\n".to_vec(), 5));
    assert_eq!(store.read("job-1", "empty", 0, 100).unwrap(), (vec![], 0));
    assert_eq!(store.read("job-1", "model.bin", u64::MAX, 100).unwrap(), (vec![], 10));
    assert!(matches!(store.read("job-1", "other", 0, 1), Err(StoreError::UnknownFile(_))));
}

#[test]
fn wrong_bytes_are_dropped_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1000).unwrap();
    store.begin("j", vec![entry("a", b"right")]).unwrap();
    assert!(matches!(store.put("j", 0, 0, b"wrong"), Err(StoreError::Digest(_))));
    assert!(matches!(store.put("j", 0, 0, b"too long"), Err(StoreError::Protocol(_))));
    assert!(matches!(store.put("j", 7, 0, b"x"), Err(StoreError::Protocol(_))));
    assert_eq!(store.put("j", 0, 3, b"x").unwrap(), 0, "a gap is not filled");
    assert_eq!(store.put("j", 0, 0, b"right").unwrap(), 5);
    store.complete("j").unwrap();
}

#[test]
fn the_cap_holds_and_counts_every_content_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 10).unwrap();
    store.begin("a", vec![entry("x", b"123456")]).unwrap();
    store.begin("b", vec![entry("y", b"123456")]).unwrap();
    let error = store.begin("c", vec![entry("z", b"abcdef")]).unwrap_err();
    assert_eq!(error.to_string(), "the store is full: 6 bytes are needed, 4 of 10 are free");
    assert!(store.begin("../x", vec![]).is_err());
    assert!(store.begin("d", vec![entry("../x", b"")]).is_err());
    assert_eq!(store.used(), 6);
}

#[test]
fn the_oldest_complete_job_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 12).unwrap();
    for (uid, data, age) in [("older", b"older", 200), ("newer", b"newer", 100)] {
        store.begin(uid, vec![entry("x", data)]).unwrap();
        store.put(uid, 0, 0, data).unwrap();
        store.complete(uid).unwrap();
        let index =
            std::fs::File::options().write(true).open(dir.path().join(format!("jobs/{uid}.json"))).unwrap();
        index.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    assert!(matches!(store.begin("huge", vec![entry("x", &[0; 13])]), Err(StoreError::Full { .. })));
    assert_eq!(store.used(), 10, "what can never fit costs nobody anything");
    store.begin("fresh", vec![entry("x", b"fresh")]).unwrap();
    assert!(store.job("older").is_err() && store.job("newer").is_ok());
    assert!(!store.object(&entry("x", b"older").sha256).exists());
}

#[test]
fn a_whole_file_without_its_name_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 100).unwrap();
    let file = entry("x", b"whole");
    store.begin("j", vec![file.clone()]).unwrap();
    std::fs::write(store.partial(&file.sha256), b"whole").unwrap();
    assert_eq!(store.begin("j", vec![file.clone()]).unwrap(), [5]);
    store.complete("j").unwrap();
    let wrong = entry("y", b"right");
    std::fs::write(store.partial(&wrong.sha256), b"wrong").unwrap();
    assert_eq!(store.begin("k", vec![wrong]).unwrap(), [0], "it is sent again");
}

#[test]
fn the_sweep_forgets_old_jobs_and_keeps_what_others_use() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 100).unwrap();
    for (uid, own) in [("old", b"old!"), ("new", b"new!")] {
        store.begin(uid, vec![entry("shared", b"both"), entry("own", own)]).unwrap();
        store.put(uid, 0, 0, b"both").unwrap();
        store.put(uid, 1, 0, own).unwrap();
        store.complete(uid).unwrap();
    }
    let old = dir.path().join("jobs/old.json");
    let past = SystemTime::now() - Duration::from_secs(1000);
    std::fs::File::options().write(true).open(&old).unwrap().set_modified(past).unwrap();
    assert_eq!(store.sweep(500, SystemTime::now()).unwrap(), 1);
    assert!(store.job("old").is_err());
    assert_eq!(store.read("new", "shared", 0, 9).unwrap().0, b"both");
    assert!(!store.object(&entry("own", b"old!").sha256).exists());
    assert!(store.object(&entry("own", b"new!").sha256).exists());
}

#[test]
fn a_damaged_index_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path(), 100).unwrap().begin("good", vec![]).unwrap();
    std::fs::write(dir.path().join("jobs/bad.json"), b"{").unwrap();
    std::fs::write(dir.path().join("jobs/half.json.tmp"), b"{").unwrap();
    let store = Store::open(dir.path(), 100).unwrap();
    assert!(store.job("good").is_ok());
    assert!(!dir.path().join("jobs/half.json.tmp").exists());
}
