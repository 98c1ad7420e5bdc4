//! The receipts of a Job as one JSON file, written one piece after another.
//!
//! Inputs: the Job's awards, the shelf. Outputs: bytes that parse as a [`vendue_receipts::ReceiptsFile`]. Invariant: memory
//! holds one file of one chain, however many records there are; what comes while it is written is not in it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use serde::Serialize;
use vendue_receipts::{
    AwardHeads, ChainHeads, ChainName, FILE_VERSION, FileAward, FileChain, FileJob, ReceiptsFile,
    ReceiptsHeads,
};

use super::status::ApiStatus;
use crate::receipts::{ChainEntry, Shelf, ShelfError};

/// How an object ends whose last field is an empty list.
const CLOSE: &str = "]}";

/// A part of the file.
enum Part {
    Text(String),
    /// Records of a chain from here up to there.
    Records {
        name: ChainName,
        from: u64,
        to: u64,
    },
}

/// The file. What is there is looked up once, at the beginning.
pub(super) async fn stream(
    shelf: Arc<Shelf>,
    job: FileJob,
    awards: Vec<FileAward>,
) -> Result<impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static, ApiStatus> {
    let parts = on_disk(shelf.clone(), move |shelf| parts(shelf, job, awards)).await?;
    Ok(futures::stream::try_unfold((shelf, parts), |(shelf, mut parts)| async move {
        let Some(part) = parts.pop_front() else { return Ok(None) };
        let written = on_disk(shelf.clone(), move |shelf| write(shelf, part)).await;
        let (text, rest) = written.map_err(std::io::Error::other)?;
        if let Some(rest) = rest {
            parts.push_front(rest);
        }
        Ok(Some((Bytes::from(text), (shelf, parts))))
    }))
}

async fn on_disk<T: Send + 'static>(
    shelf: Arc<Shelf>,
    work: impl FnOnce(&Shelf) -> Result<T, ShelfError> + Send + 'static,
) -> Result<T, ShelfError> {
    let done = tokio::task::spawn_blocking(move || work(&shelf)).await;
    done.unwrap_or_else(|error| Err(ShelfError::Task(error.to_string())))
}

fn json(value: &impl Serialize) -> Result<String, ShelfError> {
    serde_json::to_string(value).map_err(|error| ShelfError::Task(error.to_string()))
}

/// An object up to its last field, an empty list, with what parts it from the one before.
fn open(value: &impl Serialize, is_first: bool) -> Result<Part, ShelfError> {
    let text = json(value)?;
    let text = text.strip_suffix(CLOSE).unwrap_or(&text);
    Ok(Part::Text(format!("{}{text}", if is_first { "" } else { "," })))
}

fn parts(shelf: &Shelf, job: FileJob, awards: Vec<FileAward>) -> Result<VecDeque<Part>, ShelfError> {
    let close = || Part::Text(CLOSE.to_owned());
    let file = ReceiptsFile { version: FILE_VERSION, job, awards: vec![] };
    let mut parts = VecDeque::from([open(&file, true)?]);
    for (at, award) in awards.into_iter().enumerate() {
        let id = award.id.parse().ok();
        let evidence = id.map(|id| shelf.evidence(id)).unwrap_or_default();
        parts.push_back(open(&FileAward { evidence, chains: vec![], ..award }, at == 0)?);
        let chains = id.map(|id| shelf.chains(id)).unwrap_or_default();
        for (at, ChainEntry { name, node, next, .. }) in chains.into_iter().enumerate() {
            parts.push_back(open(&FileChain { node, records: vec![] }, at == 0)?);
            parts.push_back(Part::Records { name, from: 0, to: next });
            parts.push_back(close());
        }
        parts.push_back(close());
    }
    parts.push_back(close());
    Ok(parts)
}

/// How far the receipts are, for who waits for the rest.
pub(super) async fn heads(
    shelf: Arc<Shelf>,
    job: FileJob,
    awards: Vec<FileAward>,
) -> Result<ReceiptsHeads, ApiStatus> {
    let heads = |shelf: &Shelf, award: FileAward| {
        let chains = award.id.parse().map(|id| shelf.chains(id)).unwrap_or_default();
        let head = |ChainEntry { name, node, next, until_ms, closed }| ChainHeads {
            name: name.to_string(),
            node,
            records: next,
            until_ms,
            closed,
        };
        AwardHeads { id: award.id, ended_at: award.ended_at, chains: chains.into_iter().map(head).collect() }
    };
    let awards = on_disk(shelf, move |shelf| Ok(awards.into_iter().map(|a| heads(shelf, a)).collect()));
    Ok(ReceiptsHeads { version: FILE_VERSION, job, awards: awards.await? })
}

/// The text of a part, and what is left of it.
fn write(shelf: &Shelf, part: Part) -> Result<(String, Option<Part>), ShelfError> {
    let (name, from, to) = match part {
        Part::Text(text) => return Ok((text, None)),
        Part::Records { name, from, to } => (name, from, to),
    };
    if from >= to {
        return Ok((String::new(), None));
    }
    let records = shelf.records(name, from)?;
    let Some(next) = records.last().map(|record| record.sequence + 1) else {
        return Err(ShelfError::Task(format!("chain {name} was removed while it was read")));
    };
    let mut text = String::new();
    for record in records.iter().filter(|record| record.sequence < to) {
        if record.sequence > 0 {
            text.push(',');
        }
        text.push_str(&json(record)?);
    }
    Ok((text, Some(Part::Records { name, from: next, to })))
}
