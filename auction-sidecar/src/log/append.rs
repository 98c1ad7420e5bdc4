//! Appending to the log: batches, segments, and the check that the log is still this process's.
//!
//! A process begins a segment of its own before it reads the others, and a process that appends looks for segments of a
//! higher generation after it has synced and before it reports. So of two processes either the newer one reads what the
//! older one wrote, or the older one notices and reports nothing. What nobody needs goes before that segment is made, so
//! that a log which has filled its volume can be opened again once its records have expired. Records that are there for
//! replay only have the room that those for a restart leave, and no more.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendue_auction_core::log::{FRAME_LEN, LogRecord, SEED_LEN, Segment, SegmentHead, encode_frame};
use vendue_auction_core::{MarketRecord, Params};

use super::files::{self, LogDirError, Named, fail};
use super::read::{Found, read_at, read_segments};

/// A segment ends when it is longer than this.
pub const SEGMENT_BYTES: u64 = 4 << 20;

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The folder.
    pub dir: PathBuf,
    /// Generation of this process, from its lease; one more than the highest found when there is no lease.
    pub generation: Option<u64>,
    /// How long records are kept that no restart needs any more, to replay rounds.
    pub retain: Duration,
    /// A log that is longer keeps no such records.
    pub max_bytes: u64,
    /// A segment ends when it is longer than this.
    pub segment_bytes: u64,
    /// Makes the seed of each segment.
    pub random: Random,
}

/// Fills a buffer with random bytes.
pub type Random = fn(&mut [u8]) -> Result<(), getrandom::Error>;

impl LogOptions {
    /// Nothing is kept longer than a restart needs it.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            generation: None,
            retain: Duration::ZERO,
            max_bytes: 256 << 20,
            segment_bytes: SEGMENT_BYTES,
            random: getrandom::fill,
        }
    }
}

/// For how long records matter.
#[derive(Debug, Default, Clone, Copy)]
struct Until {
    /// A restart needs one of them.
    needed_ms: u64,
    /// What they are about goes on.
    over_ms: u64,
}

impl Until {
    fn add(&mut self, record: &LogRecord, params: &Params) {
        self.needed_ms = self.needed_ms.max(record.needed_until_ms(params));
        self.over_ms = self.over_ms.max(record.goes_on_until_ms(params));
    }
}

struct Old {
    path: PathBuf,
    until: Until,
    bytes: u64,
}

impl Old {
    fn of(path: PathBuf, segment: &Segment, params: &Params) -> Self {
        let mut until = Until::default();
        segment.records.iter().for_each(|r| until.add(r, params));
        let bytes = size(&path);
        Self { path, until, bytes }
    }

    /// Whether anybody needs it, or it is kept for replay in a log of `bytes` bytes.
    fn matters(&self, options: &LogOptions, bytes: u64, now_ms: u64) -> bool {
        let retain = u64::try_from(options.retain.as_millis()).unwrap_or(u64::MAX);
        let has_room = bytes <= options.max_bytes;
        now_ms <= self.until.needed_ms || (has_room && now_ms <= self.until.over_ms.saturating_add(retain))
    }
}

/// The seed of a new segment.
fn seed(options: &LogOptions) -> Result<[u8; SEED_LEN], LogDirError> {
    let mut seed = [0; SEED_LEN];
    (options.random)(&mut seed).map_err(|error| LogDirError::Random { dir: options.dir.clone(), error })?;
    Ok(seed)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

/// Whether a record shows that there is a log.
fn shows(record: &LogRecord) -> bool {
    matches!(record, LogRecord::Observe { .. })
}

/// The log of one seat, open for appending.
pub struct Appender {
    options: LogOptions,
    params: Params,
    head: SegmentHead,
    file: File,
    path: PathBuf,
    /// Bytes of the segment that are durable.
    synced: u64,
    until: Until,
    /// Rounds of which something was left out because there was no room for it, until they are over.
    omitted: BTreeSet<u64>,
    /// What shows that there is a log, for the beginning of each segment.
    observed: Option<Vec<u8>>,
    /// Whether a segment of this process shows it.
    shows: bool,
    old: VecDeque<Old>,
    broken: bool,
    _lock: File,
}

impl Appender {
    /// Opens the log of a seat, and gives what it holds.
    pub fn open(
        options: LogOptions,
        record: &MarketRecord,
        seat: u16,
        now_ms: u64,
    ) -> Result<(Self, Found), LogDirError> {
        Self::open_by(options, record, seat, now_ms, files::create)
    }

    /// Opens a log whose own segment is made by `create`.
    pub(super) fn open_by(
        options: LogOptions,
        record: &MarketRecord,
        seat: u16,
        now_ms: u64,
        create: impl FnOnce(&Path, &Path, &[u8]) -> Result<File, LogDirError>,
    ) -> Result<(Self, Found), LogDirError> {
        let dir = options.dir.clone();
        let lock = files::lock(&dir)?;
        let known = files::segments(&dir)?;
        let highest = known.iter().map(|s| s.generation).max().unwrap_or_default();
        let generation = options.generation.unwrap_or(highest + 1);
        if highest > generation {
            return Err(LogDirError::Fenced { path: dir, ours: generation, found: highest });
        }
        // A process of the same generation that crashed before may have left a tail; there is none within a generation.
        if let Some(last) = known.last().filter(|last| last.generation == generation) {
            cut_tail(&dir, &last.path, record, seat)?;
        }
        prune(&options, record, seat, now_ms)?;
        let number = files::segments(&dir)?.last().map_or(0, |last| last.number + 1);
        let head = SegmentHead { market: record.market, seat, generation, number, seed: seed(&options)? };
        let path = files::segment_path(&dir, number, generation);
        let file = create(&dir, &path, &head.encode())?;
        let segments = read_segments(&dir, record, seat).inspect_err(|_| {
            // Who tries again and again leaves no heap of empty segments.
            let _ = files::remove(&path);
        })?;
        let (mut found, mut old, mut observed) = (Found::default(), VecDeque::new(), None);
        for (named, segment) in segments.into_iter().filter(|(named, _)| named.number < number) {
            found.torn += segment.torn;
            old.push_back(Old::of(named.path, &segment, &record.params));
            let shown = segment.records.iter().rfind(|r| shows(r));
            observed = shown.map(LogRecord::encode).or(observed);
            found.records.extend(segment.records);
        }
        let appender = Self {
            params: record.params,
            synced: head.encode().len() as u64,
            head,
            file,
            path,
            until: Until::default(),
            omitted: BTreeSet::new(),
            observed,
            shows: false,
            old,
            broken: false,
            _lock: lock,
            options,
        };
        Ok((appender, found))
    }

    /// Generation of this process.
    pub fn generation(&self) -> u64 {
        self.head.generation
    }

    /// The clock of the market's rounds.
    pub fn params(&self) -> Params {
        self.params
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.synced + self.old.iter().map(|old| old.bytes).sum::<u64>()
    }

    /// Writes records and makes them durable. Gives the bytes written. After a failure nothing is written any more: what
    /// the file holds then is not known.
    pub fn append(&mut self, records: &[LogRecord], now_ms: u64) -> Result<u64, LogDirError> {
        if self.broken {
            return Err(LogDirError::Broken(self.options.dir.clone()));
        }
        self.broken = true;
        let batch = self.batch(records, now_ms)?;
        let written = self.write(&batch)?;
        if self.synced >= self.options.segment_bytes {
            self.rotate()?;
        }
        self.forget(0, now_ms)?;
        self.broken = false;
        Ok(written)
    }

    /// The frames of records. Those for replay are written only as far as the log has room when the oldest that nobody
    /// needs are gone: of a round that does not fit, no more.
    fn batch(&mut self, records: &[LogRecord], now_ms: u64) -> Result<Vec<u8>, LogDirError> {
        self.omitted.retain(|round| now_ms < self.params.expiry(*round));
        let encoded: Vec<Vec<u8>> = records.iter().map(LogRecord::encode).collect();
        let coming = encoded.iter().map(|bytes| (bytes.len() + FRAME_LEN) as u64).sum();
        self.forget(coming, now_ms)?;
        let (mut batch, before) = (Vec::new(), self.bytes());
        for (record, bytes) in records.iter().zip(encoded) {
            let round = record.round().filter(|_| record.is_for_replay());
            if round.is_some_and(|round| self.omitted.contains(&round)) {
                continue;
            }
            let after = before + (batch.len() + bytes.len() + FRAME_LEN) as u64;
            match round.filter(|_| after > self.options.max_bytes) {
                Some(round) => {
                    self.omitted.insert(round);
                    let omitted = LogRecord::Omitted { at_ms: now_ms, round };
                    self.put(&omitted, omitted.encode(), &mut batch);
                }
                None => self.put(record, bytes, &mut batch),
            }
        }
        Ok(batch)
    }

    fn put(&mut self, record: &LogRecord, bytes: Vec<u8>, batch: &mut Vec<u8>) {
        batch.extend(encode_frame(&bytes, &self.head, self.synced));
        self.until.add(record, &self.params);
        if shows(record) {
            self.observed = Some(bytes);
            self.shows = true;
        }
    }

    fn write(&mut self, batch: &[u8]) -> Result<u64, LogDirError> {
        self.file.write_all(batch).map_err(fail("append to", &self.path))?;
        self.file.sync_data().map_err(fail("sync", &self.path))?;
        self.synced += batch.len() as u64;
        self.check_fence()?;
        Ok(batch.len() as u64)
    }

    fn check_fence(&self) -> Result<(), LogDirError> {
        let highest = files::segments(&self.options.dir)?.iter().map(|s| s.generation).max();
        match highest {
            Some(found) if found > self.head.generation => {
                Err(LogDirError::Fenced { path: self.options.dir.clone(), ours: self.head.generation, found })
            }
            _ => Ok(()),
        }
    }

    fn rotate(&mut self) -> Result<(), LogDirError> {
        let head = SegmentHead { number: self.head.number + 1, seed: seed(&self.options)?, ..self.head };
        let mut content = head.encode();
        if let Some(observed) = &self.observed {
            content.extend(encode_frame(observed, &head, content.len() as u64));
            self.shows = true;
        }
        let path = files::segment_path(&self.options.dir, head.number, head.generation);
        let file = files::create(&self.options.dir, &path, &content)?;
        self.old.push_back(Old {
            path: std::mem::replace(&mut self.path, path),
            until: std::mem::take(&mut self.until),
            bytes: std::mem::replace(&mut self.synced, content.len() as u64),
        });
        (self.file, self.head) = (file, head);
        Ok(())
    }

    /// Removes the oldest segments that nobody needs when so many bytes come.
    fn forget(&mut self, coming: u64, now_ms: u64) -> Result<(), LogDirError> {
        // What shows that there is a log goes last.
        if !self.shows {
            return Ok(());
        }
        while let Some(first) = self.old.front() {
            if first.matters(&self.options, self.bytes().saturating_add(coming), now_ms) {
                break;
            }
            files::remove(&first.path)?;
            self.old.pop_front();
        }
        Ok(())
    }
}

/// Removes the oldest segments that nobody needs, as long as a later one shows that there is a log.
fn prune(options: &LogOptions, record: &MarketRecord, seat: u16, now_ms: u64) -> Result<(), LogDirError> {
    let named = files::segments(&options.dir)?;
    let mut bytes: u64 = named.iter().map(|n| size(&n.path)).sum();
    for (at, first) in named.iter().enumerate() {
        let Some(segment) = read_at(&named, at, record, seat)? else { break };
        let old = Old::of(first.path.clone(), &segment, &record.params);
        if old.matters(options, bytes, now_ms) || !is_shown_after(&named, at, record, seat)? {
            break;
        }
        files::remove(&old.path)?;
        bytes = bytes.saturating_sub(old.bytes);
    }
    Ok(())
}

/// Whether a later segment shows that there is a log; nearly always the next one does.
fn is_shown_after(named: &[Named], at: usize, record: &MarketRecord, seat: u16) -> Result<bool, LogDirError> {
    for later in at + 1..named.len() {
        if read_at(named, later, record, seat)?.is_some_and(|s| s.records.iter().any(shows)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Cuts what a crash left at the end of a segment.
fn cut_tail(dir: &Path, path: &Path, record: &MarketRecord, seat: u16) -> Result<(), LogDirError> {
    let all = read_segments(dir, record, seat)?;
    let Some((_, segment)) = all.into_iter().find(|(named, _)| named.path == path) else { return Ok(()) };
    if segment.head.is_none() {
        // Nothing was ever written behind a head that was not durable.
        files::remove(path)?;
        return files::sync_dir(dir);
    }
    if segment.torn == 0 {
        return Ok(());
    }
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(fail("open", path))?;
    let len = file.metadata().map_err(fail("inspect", path))?.len();
    file.set_len(len - segment.torn as u64).map_err(fail("cut", path))?;
    file.sync_all().map_err(fail("sync", path))
}
