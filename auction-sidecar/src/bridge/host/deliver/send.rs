//! One turn of a delivery: manifest, missing pieces, confirmation.
//!
//! Inputs: the courier's log and outputs. Outputs: requests to home. Invariants: memory is bounded by the pieces in
//! flight and one manifest, whatever the log and the outputs are; home says what it has before anything is sent.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::time::MissedTickBehavior;

use crate::bridge::host::courier::{Courier, CourierError};
use crate::net::{CHUNK, Handle, MAX_HANDOVER, MemberId, NetError, Protocol};
use crate::wire::{
    AwardRef, Bulk, BulkReply, FileEntry, FrameError, Handover, HandoverReply, LOG_PATH, MAX_LOG, decode,
    decode_bulk, encode, encode_bulk,
};

const TIMEOUT: Duration = Duration::from_secs(30);
/// Pieces in flight: 2 MiB, which is 20 MiB/s at a round trip of 100 ms.
pub(super) const WINDOW: usize = 8;
/// Between two pieces at least, so that home's limit of requests is never reached.
const PACE: Duration = Duration::from_millis(4);

/// Why a delivery did not work.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliverError {
    /// The courier.
    #[error(transparent)]
    Courier(#[from] CourierError),
    /// The network.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Home's answer does not parse.
    #[error(transparent)]
    Wire(#[from] FrameError),
    /// Home does not want it now.
    #[error("home: {0}")]
    Later(String),
    /// Home does not want it at all.
    #[error("home refuses: {0}")]
    Refused(String),
    /// A file changed while it was sent.
    #[error("output {0:?} changed while it was sent")]
    Changed(String),
    /// Others wait to deliver theirs.
    #[error("other deliveries took the time")]
    TurnOver,
}

/// What home has in the end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// Log and outputs, so many bytes.
    All(u64),
    /// The log; why the outputs cannot be delivered.
    LogOnly(String),
}

/// Brings the outputs of one award to its home.
pub(super) struct Sender<'a> {
    pub(super) net: &'a Handle,
    pub(super) home: MemberId,
    pub(super) award: &'a AwardRef,
    pub(super) courier: &'a Courier,
}

/// A piece of the file at this position of the manifest.
struct Piece<'a> {
    number: u32,
    file: &'a FileEntry,
    offset: u64,
}

impl Piece<'_> {
    fn len(&self) -> usize {
        usize::try_from(self.file.size - self.offset).unwrap_or(usize::MAX).min(CHUNK)
    }
}

/// What is missing at home, in the order in which it is sent.
fn missing<'a>(files: &'a [FileEntry], offsets: &[u64]) -> impl Iterator<Item = Piece<'a>> {
    (0u32..).zip(files).zip(offsets.to_vec()).flat_map(|((number, file), have)| {
        (have..file.size).step_by(CHUNK).map(move |offset| Piece { number, file, offset })
    })
}

impl Sender<'_> {
    /// One turn; after each piece `is_over` says whether it ends there.
    pub(super) async fn deliver(&self, is_over: impl Fn() -> bool) -> Result<Delivered, DeliverError> {
        let log = self.log_entry().await?;
        let (files, unsaid) = self.files(log).await?;
        let offsets = self.announce(&files).await?;
        let pieces = self.send(missing(&files, &offsets));
        let mut pieces = std::pin::pin!(pieces);
        while let Some(sent) = pieces.next().await {
            sent?;
            if is_over() {
                return Err(DeliverError::TurnOver);
            }
        }
        match self.ask(&Handover::Delivered { award: self.award.clone() }).await? {
            HandoverReply::Ok => {}
            other => return Err(unexpected(other)),
        }
        Ok(unsaid.map_or_else(|| Delivered::All(files.iter().map(|f| f.size).sum()), Delivered::LogOnly))
    }

    /// The log as the manifest has it. It is read twice, here for its digest, and is never held as a whole.
    async fn log_entry(&self) -> Result<FileEntry, DeliverError> {
        let (mut size, mut sha256) = (0u64, Sha256::new());
        loop {
            let (data, whole) = self.courier.log(size).await?;
            let room = usize::try_from(whole.min(MAX_LOG).saturating_sub(size)).unwrap_or(usize::MAX);
            let data = data.slice(..data.len().min(room));
            if data.is_empty() {
                break;
            }
            sha256.update(&data);
            size += data.len() as u64;
        }
        Ok(FileEntry { path: LOG_PATH.to_owned(), size, sha256: hex::encode(sha256.finalize()) })
    }

    /// Everything that is to be sent, and why the outputs are not among it if they cannot be.
    async fn files(&self, log: FileEntry) -> Result<(Vec<FileEntry>, Option<String>), DeliverError> {
        let mut files = match self.courier.manifest().await {
            Err(CourierError::Outputs(why)) => return Ok((vec![log], Some(why.to_string()))),
            other => other?,
        };
        files.push(log);
        if encode(&self.manifest(&files)).len() > MAX_HANDOVER {
            let why = FrameError::TooMany { what: "bytes of paths and digests", max: MAX_HANDOVER };
            files.drain(..files.len() - 1);
            return Ok((files, Some(why.to_string())));
        }
        Ok((files, None))
    }

    fn manifest(&self, files: &[FileEntry]) -> Handover {
        Handover::Manifest { award: self.award.clone(), files: files.to_vec() }
    }

    async fn announce(&self, files: &[FileEntry]) -> Result<Vec<u64>, DeliverError> {
        match self.ask(&self.manifest(files)).await? {
            HandoverReply::Have { offsets } if offsets.len() == files.len() => Ok(offsets),
            other => Err(unexpected(other)),
        }
    }

    /// Sends pieces, a few at a time; the results are in order.
    fn send<'p>(
        &self,
        pieces: impl Iterator<Item = Piece<'p>>,
    ) -> impl Stream<Item = Result<(), DeliverError>> {
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let paced = futures::stream::unfold((pieces, pace), |(mut pieces, mut pace)| async move {
            let piece = pieces.next()?;
            pace.tick().await;
            Some((piece, (pieces, pace)))
        });
        paced.map(|piece| self.send_piece(piece)).buffered(WINDOW)
    }

    async fn send_piece(&self, piece: Piece<'_>) -> Result<(), DeliverError> {
        let data = self.read(&piece).await?;
        let header = Bulk::Put { award: self.award.clone(), file: piece.number, offset: piece.offset };
        let request = encode_bulk(&header, &data);
        let answer = self.net.request(self.home, Protocol::Bulk, request, TIMEOUT).await?;
        match decode_bulk::<BulkReply>("reply", &answer)?.0 {
            BulkReply::Stored { offset } if offset >= piece.offset + data.len() as u64 => Ok(()),
            // A piece before it was lost: home says again what it has.
            BulkReply::Stored { offset } => {
                Err(DeliverError::Later(format!("{offset} bytes of {:?} have arrived", piece.file.path)))
            }
            BulkReply::Failed { reason, retry: false } => Err(DeliverError::Refused(reason)),
            BulkReply::Failed { reason, .. } => Err(DeliverError::Later(reason)),
            BulkReply::Unknown | BulkReply::Log { .. } | BulkReply::Receipts => {
                Err(DeliverError::Later(UNKNOWN.to_owned()))
            }
        }
    }

    async fn read(&self, piece: &Piece<'_>) -> Result<Bytes, DeliverError> {
        let path = &piece.file.path;
        let data = match path.as_str() {
            LOG_PATH => self.courier.log(piece.offset).await?.0,
            path => self.courier.file(path, piece.offset).await?,
        };
        if data.len() < piece.len() {
            return Err(DeliverError::Changed(path.clone()));
        }
        Ok(data.slice(..piece.len()))
    }

    async fn ask(&self, request: &Handover) -> Result<HandoverReply, DeliverError> {
        let answer = self.net.request(self.home, Protocol::Handover, encode(request), TIMEOUT).await?;
        Ok(decode::<HandoverReply>("reply", &answer)?)
    }
}

const UNKNOWN: &str = "the award is not known there";

fn unexpected(reply: HandoverReply) -> DeliverError {
    match reply {
        HandoverReply::Later { reason } => DeliverError::Later(reason),
        HandoverReply::Refused { reason } => DeliverError::Refused(reason),
        // Its watch may be behind; the deadline bounds how long it is asked.
        HandoverReply::Unknown => DeliverError::Later(UNKNOWN.to_owned()),
        HandoverReply::Ok | HandoverReply::Have { .. } => {
            DeliverError::Later("an answer of another kind".to_owned())
        }
    }
}
