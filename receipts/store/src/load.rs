//! Reading a store's folder.
//!
//! Inputs: the files. Outputs: the chains in them. Invariants: every record continues its chain; files of a chain follow
//! each other without a hole; the receiver has no more records than are here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use vendue_receipts::{Chain, ChainName};

use crate::chains::{Kept, Part};
use crate::error::{StoreError, io};
use crate::files::Files;
use crate::segment::{self, Segment};

/// The chains of a folder.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub chains: BTreeMap<ChainName, Kept>,
    /// Bytes at ends of files that were never durable.
    pub torn: u64,
    /// Files of chains whose removal was begun.
    pub leftover: Vec<PathBuf>,
}

fn damaged(path: &Path, offset: usize, what: impl ToString) -> StoreError {
    StoreError::Damaged { path: path.to_owned(), offset, what: what.to_string() }
}

/// The chains that are gone.
pub(crate) fn removed(files: &impl Files, path: &Path) -> Result<Vec<ChainName>, StoreError> {
    let bytes = files.read(path).map_err(io("read", path))?.unwrap_or_default();
    let text = std::str::from_utf8(&bytes).map_err(|error| damaged(path, error.valid_up_to(), "not text"))?;
    text.lines().map(|line| line.parse().map_err(|error| damaged(path, 0, error))).collect()
}

/// Chain and first sequence of a file; of a file without records, no sequence.
fn parse(path: &Path) -> Option<(ChainName, Option<u64>)> {
    let text = path.file_name()?.to_str()?;
    match text.strip_suffix(".segment") {
        Some(text) => {
            let (text, first) = text.rsplit_once('-')?;
            Some((text.parse().ok()?, Some(u64::from_str_radix(first, 16).ok()?)))
        }
        None => Some((text.strip_suffix(".delivered")?.parse().ok()?, None)),
    }
}

/// What of a chain is read when its folder is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    /// Everything.
    All,
    /// The last file, and of those before it how the chain stood at their beginning.
    Ends,
}

/// Most bytes of the beginning of a file; longer ones belong to chains of many devices.
const HEAD_BYTES: usize = 8 << 10;

/// All chains.
pub(crate) fn chains(
    files: &impl Files,
    dir: &Path,
    removed: &[ChainName],
    reads: Reads,
) -> Result<Loaded, StoreError> {
    let (mut loaded, mut parts) = (Loaded::default(), BTreeMap::<ChainName, BTreeMap<u64, PathBuf>>::new());
    let mut delivered = BTreeMap::new();
    for path in files.list(dir).map_err(io("list", dir))? {
        let Some((name, first)) = parse(&path) else { continue };
        match first {
            _ if removed.contains(&name) => loaded.leftover.push(path),
            Some(first) => _ = parts.entry(name).or_default().insert(first, path),
            None => _ = delivered.insert(name, read_delivered(files, &path)?),
        }
    }
    for (name, parts) in parts {
        let (mut kept, torn) = match reads {
            Reads::All => chain(files, parts)?,
            Reads::Ends => end(files, parts)?,
        };
        // Files go when the receiver has what is in them.
        let gone = kept.parts.first().map_or(0, |part| part.first);
        kept.delivered = delivered.get(&name).copied().unwrap_or_default().max(gone);
        let there = kept.chain.next_sequence();
        if kept.delivered > there
            && let Some(last) = kept.parts.last()
        {
            let what = format!("the receiver has {} records, here are {there}", kept.delivered);
            return Err(damaged(&last.path, last.bytes as usize, what));
        }
        loaded.torn += torn;
        loaded.chains.insert(name, kept);
    }
    Ok(loaded)
}

fn read_delivered(files: &impl Files, path: &Path) -> Result<u64, StoreError> {
    let bytes = files.read(path).map_err(io("read", path))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.trim_end().parse().map_err(|_| damaged(path, 0, format!("{text:?} is not a number")))
}

/// The chain in these files, and the bytes of it that were never durable.
fn chain(files: &impl Files, paths: BTreeMap<u64, PathBuf>) -> Result<(Kept, u64), StoreError> {
    let (mut kept, mut torn, count): (Option<Kept>, u64, usize) = (None, 0, paths.len());
    for (at, (first, path)) in paths.into_iter().enumerate() {
        let bytes = files.read(&path).map_err(io("read", &path))?.unwrap_or_default();
        let read = segment::read(&bytes, at + 1 == count);
        let segment = read.map_err(|damage| damaged(&path, damage.offset, damage.what))?;
        let Segment { before, records, end, torn: loose } = segment;
        let follows = kept.as_ref().is_none_or(|kept| kept.chain == before);
        if before.next_sequence() != first || !follows {
            return Err(damaged(&path, 0, "does not continue the file before it"));
        }
        let mut chain = before.clone();
        for (offset, record) in &records {
            chain.replay(record).map_err(|error| damaged(&path, *offset, error))?;
        }
        torn += loose as u64;
        let (begins_ms, end_ms) = (before.end_ms(), chain.end_ms());
        let part = Part { path, first, begins_ms, bytes: end as u64, end_ms };
        let new = Kept { chain: before, parts: vec![], delivered: 0 };
        let kept = kept.get_or_insert(new);
        kept.chain = chain;
        kept.parts.push(part);
    }
    let none = StoreError::Damaged { path: PathBuf::new(), offset: 0, what: "no files".to_owned() };
    kept.map(|kept| (kept, torn)).ok_or(none)
}

/// The chain in these files by its last one; those before it are checked when they are read.
fn end(files: &impl Files, mut paths: BTreeMap<u64, PathBuf>) -> Result<(Kept, u64), StoreError> {
    let last = paths.pop_last().into_iter().collect();
    let (mut kept, torn) = chain(files, last)?;
    let first = kept.parts.first().map(|part| part.path.clone()).unwrap_or_default();
    let mut end_ms = head(files, &first)?.0.end_ms();
    for (first, path) in paths.into_iter().rev() {
        let (before, bytes) = head(files, &path)?;
        if before.next_sequence() != first {
            return Err(damaged(&path, 0, "does not begin where its name says"));
        }
        let begins_ms = before.end_ms();
        kept.parts.push(Part { path, first, begins_ms, bytes, end_ms });
        end_ms = begins_ms;
    }
    kept.parts.reverse();
    Ok((kept, torn))
}

/// The chain before the first record of a file, and the file's length.
fn head(files: &impl Files, path: &Path) -> Result<(Chain, u64), StoreError> {
    let start =
        |most: usize| files.start(path, most).map_err(io("read", path)).map(Option::unwrap_or_default);
    let (bytes, length) = start(HEAD_BYTES)?;
    let chain = match segment::head(&bytes) {
        None if length > bytes.len() as u64 => segment::head(&start(usize::MAX)?.0),
        chain => chain,
    };
    let chain = chain.ok_or_else(|| damaged(path, 0, "no head"))?;
    Ok((chain.map_err(|damage| damaged(path, damage.offset, damage.what))?, length))
}

/// The durable part of one file, read again.
pub(crate) fn part(files: &impl Files, path: &Path, bytes: u64) -> Result<Segment, StoreError> {
    let all = files.read(path).map_err(io("read", path))?.unwrap_or_default();
    let durable = all.get(..bytes as usize).ok_or_else(|| damaged(path, all.len(), "is cut"))?;
    segment::read(durable, false).map_err(|damage| damaged(path, damage.offset, damage.what))
}
