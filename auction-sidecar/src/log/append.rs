//! Appending to the log: batches, segments, and the check that the log is still this process's.
//!
//! A process begins a segment of its own before it reads the others, and a process that appends looks for segments of a
//! higher generation after it has synced and before it reports. So of two processes either the newer one reads what the
//! older one wrote, or the older one notices and reports nothing. What nobody needs goes before that segment is made, so
//! that a log which has filled its volume can be opened again once its records have expired.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vendue_auction_core::log::{LogRecord, SEED_LEN, Segment, SegmentHead, encode_frame};
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
    /// Most bytes of such records.
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

struct Old {
    path: PathBuf,
    needed_until_ms: u64,
    bytes: u64,
}

impl Old {
    fn of(path: PathBuf, segment: &Segment, params: &Params) -> Self {
        let needed = segment.records.iter().map(|r| r.needed_until_ms(params)).max();
        let bytes = size(&path);
        Self { path, needed_until_ms: needed.unwrap_or_default(), bytes }
    }

    /// Whether anybody needs it, or it is kept for replay in a log of `bytes` bytes.
    fn matters(&self, options: &LogOptions, bytes: u64, now_ms: u64) -> bool {
        let retain = u64::try_from(options.retain.as_millis()).unwrap_or(u64::MAX);
        let kept_for = if bytes > options.max_bytes { 0 } else { retain };
        now_ms <= self.needed_until_ms.saturating_add(kept_for)
    }
}

/// The seed of a new segment.
fn seed(options: &LogOptions) -> Result<[u8; SEED_LEN], LogDirError> {
    let mut seed = [0; SEED_LEN];
    (options.random)(&mut seed).map_err(|source| LogDirError::Random { dir: options.dir.clone(), source })?;
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
    needed_until_ms: u64,
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
            needed_until_ms: 0,
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
        let written = self.write(records)?;
        if self.synced >= self.options.segment_bytes {
            self.rotate()?;
        }
        self.forget(now_ms)?;
        self.broken = false;
        Ok(written)
    }

    fn write(&mut self, records: &[LogRecord]) -> Result<u64, LogDirError> {
        let mut batch = Vec::new();
        for record in records {
            let bytes = record.encode();
            batch.extend(encode_frame(&bytes, &self.head, self.synced));
            self.needed_until_ms = self.needed_until_ms.max(record.needed_until_ms(&self.params));
            if shows(record) {
                self.observed = Some(bytes);
                self.shows = true;
            }
        }
        self.file.write_all(&batch).map_err(fail("append to", &self.path))?;
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
            needed_until_ms: std::mem::take(&mut self.needed_until_ms),
            bytes: std::mem::replace(&mut self.synced, content.len() as u64),
        });
        (self.file, self.head) = (file, head);
        Ok(())
    }

    /// Removes the oldest segments that nobody needs.
    fn forget(&mut self, now_ms: u64) -> Result<(), LogDirError> {
        // What shows that there is a log goes last.
        if !self.shows {
            return Ok(());
        }
        while let Some(first) = self.old.front() {
            if first.matters(&self.options, self.bytes(), now_ms) {
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
