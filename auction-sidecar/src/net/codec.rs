//! One codec for every protocol: a length in four bytes, then the message.
//!
//! Inputs: streams of a peer. Outputs: whole messages of at most the protocol's limit. Invariant: never more than the
//! limit is held in memory, whatever the peer sends; what is too long is counted and the stream is dropped; a stream
//! that breaks off is an error, not a shorter message.

use std::io;

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;
use prometheus::IntCounter;

/// Reads and writes whole streams of bounded size.
#[derive(Clone)]
pub struct BoundedCodec {
    max: usize,
    oversize: IntCounter,
}

impl BoundedCodec {
    /// A codec that accepts at most `max` bytes per message and counts what is longer.
    pub fn new(max: usize, oversize: IntCounter) -> Self {
        Self { max, oversize }
    }

    async fn read<T: AsyncRead + Unpin + Send>(&self, io: &mut T) -> io::Result<Bytes> {
        let mut prefix = [0u8; 4];
        io.read_exact(&mut prefix).await?;
        let len = u32::from_be_bytes(prefix);
        if len as usize > self.max {
            self.oversize.inc();
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message above the size limit"));
        }
        // Grows with what arrives: a lying length must not cost memory.
        let mut buffer = Vec::new();
        io.take(u64::from(len)).read_to_end(&mut buffer).await?;
        if buffer.len() < len as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Bytes::from(buffer))
    }

    async fn write<T: AsyncWrite + Unpin + Send>(&self, io: &mut T, body: &[u8]) -> io::Result<()> {
        let len = u32::try_from(body.len()).ok().filter(|len| *len as usize <= self.max);
        let len = len
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "own message above the size limit"))?;
        io.write_all(&len.to_be_bytes()).await?;
        io.write_all(body).await?;
        io.flush().await
    }
}

impl Codec for BoundedCodec {
    type Protocol = StreamProtocol;
    type Request = Bytes;
    type Response = Bytes;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
    ) -> io::Result<Bytes> {
        self.read(io).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
    ) -> io::Result<Bytes> {
        self.read(io).await
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        request: Bytes,
    ) -> io::Result<()> {
        self.write(io, &request).await
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &Self::Protocol,
        io: &mut T,
        response: Bytes,
    ) -> io::Result<()> {
        self.write(io, &response).await
    }
}
