//! Receipts of awards for the homes that placed them: the controller has them, this process passes them on.
//!
//! Inputs: requests of homes, the controller's answers. Outputs: lists of chains, encoded records. Invariants: a home is
//! answered only about orders that it signed; nothing is read here, the home verifies what it gets; no proxy is used and
//! no redirection followed, since the token would go along.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::Certificate;
use vendue_auction_core::MarketRecord;
use vendue_crds::names;
use vendue_market::Order;
use vendue_market::encode::{Canonical, to_hex};
use vendue_receipts::ChainName;

use super::HostContext;
use crate::args::ReceiptsArgs;
use crate::net::{CHUNK, MemberId};
use crate::wire::{AwardRef, Bulk, BulkReply, encode_bulk};

/// Why the receipts cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptsError {
    /// A file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The HTTP client cannot be built.
    #[error("build the HTTPS client with the authority in {path}: {source}")]
    Build {
        /// The file of the authority.
        path: PathBuf,
        /// Why.
        source: reqwest::Error,
    },
    /// The controller did not answer.
    #[error("ask the controller for receipts: {0}")]
    Http(reqwest::Error),
    /// It refused.
    #[error("the controller answers {0} when asked for receipts")]
    Status(u16),
    /// It said more than it may.
    #[error("the controller's answer is longer than {CHUNK} bytes")]
    TooLong,
}

/// Where the controller serves receipts, and how this process proves who it is.
#[derive(Debug, Clone)]
pub struct ReceiptsOptions {
    /// Address, for example <https://vendue-receipts.vendue-system.svc:9473>.
    pub url: String,
    /// File of the authority that signed the controller's certificate, PEM.
    pub ca: PathBuf,
    /// File of the token. The kubelet replaces it from time to time.
    pub token: PathBuf,
}

/// Client of the controller.
pub struct ReceiptsClient {
    options: ReceiptsOptions,
    /// With the authority that it was made for: the file changes when certificates are made anew.
    http: Mutex<Option<(Vec<u8>, reqwest::Client)>>,
}

impl ReceiptsOptions {
    /// What the command line says; `None` without an address.
    pub fn given(args: &ReceiptsArgs) -> Option<Self> {
        let ReceiptsArgs { receipts_url, receipts_ca, receipts_token, receipts_max_mib: _ } = args;
        Some(Self { url: receipts_url.clone()?, ca: receipts_ca.clone()?, token: receipts_token.clone()? })
    }
}

impl ReceiptsClient {
    /// A client. Files are read when it is used.
    pub fn new(options: ReceiptsOptions) -> Self {
        Self { options, http: Mutex::default() }
    }

    fn client(&self, ca: Vec<u8>) -> Result<reqwest::Client, ReceiptsError> {
        let mut http = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = http.as_ref().filter(|(of, _)| *of == ca) {
            return Ok(client.clone());
        }
        let built = Certificate::from_pem_bundle(&ca).and_then(|authorities| {
            reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .https_only(true)
                .tls_certs_only(authorities)
                .connect_timeout(Duration::from_secs(3))
                .timeout(Duration::from_secs(20))
                .build()
        });
        let path = || self.options.ca.clone();
        let client = built.map_err(|source| ReceiptsError::Build { path: path(), source })?;
        *http = Some((ca, client.clone()));
        Ok(client)
    }

    /// A GET; `None` when the controller knows nothing of the award.
    async fn get(&self, path: &str) -> Result<Option<Bytes>, ReceiptsError> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|source| ReceiptsError::Read { path: path.clone(), source })
        };
        let client = self.client(read(&self.options.ca).await?)?;
        let token = read(&self.options.token).await?;
        let url = format!("{}{path}", self.options.url.trim_end_matches('/'));
        let request = client.get(url).bearer_auth(String::from_utf8_lossy(&token).trim());
        let mut response = request.send().await.map_err(ReceiptsError::Http)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            status => return Err(ReceiptsError::Status(status)),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(ReceiptsError::Http)? {
            if body.len() + chunk.len() > CHUNK {
                return Err(ReceiptsError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body.into()))
    }
}

/// Whether a home placed the order that this award is of. Names are made from what they name, so that this can be told
/// when the Award is gone; the last receipts come after it.
pub(in crate::bridge) fn is_of(
    record: &MarketRecord,
    from: MemberId,
    (award, round): (&AwardRef, u64),
    order: &[u8],
) -> bool {
    let Ok(order) = Order::from_bytes(order) else { return false };
    let (market, digest) = (to_hex(&record.market), to_hex(&order.digest()));
    let id = |winner: u16| names::award_id(&market, round, &digest, u32::from(winner));
    let is_user =
        super::server::home_behind(record, from).is_some_and(|home| home.user_key == order.user_key);
    // A stand-by serves the award of the seat that won.
    is_user
        && award.is_sound()
        && (award.order == digest && award.job == order.job && award.attempt == order.attempt)
        && record.seats.iter().any(|seat| id(seat.index) == award.id)
}

/// The path of what a request asks for.
fn path_of(request: &Bulk) -> Option<(&AwardRef, u64, String)> {
    match request {
        Bulk::ListReceipts { award, round } => {
            Some((award, *round, format!("/v1/awards/{}/chains", award.id)))
        }
        Bulk::ReadReceipts { award, round, chain, from } => {
            let name: ChainName = chain.parse().ok()?;
            let path = format!("/v1/awards/{}/chains/{name}/records?from={from}", award.id);
            (name.award.to_string() == award.id).then_some((award, *round, path))
        }
        Bulk::ReadLog { .. } | Bulk::Put { .. } => None,
    }
}

/// Answers a request for receipts.
pub(super) async fn serve(context: &Arc<HostContext>, from: MemberId, request: &Bulk, order: &[u8]) -> Bytes {
    let failed =
        |reason: &str, retry| encode_bulk(&BulkReply::Failed { reason: reason.to_owned(), retry }, &[]);
    let found =
        path_of(request).filter(|(award, round, _)| is_of(&context.record, from, (award, *round), order));
    let Some((award, _, path)) = found else {
        tracing::warn!(%from, "a home asks for receipts of an award that is not its own");
        context.metrics.dropped("foreign_award");
        return encode_bulk(&BulkReply::Unknown, &[]);
    };
    let Some(client) = &context.receipts else {
        return failed("the provider keeps no receipts", false);
    };
    match client.get(&path).await {
        Ok(Some(body)) => encode_bulk(&BulkReply::Receipts, &body),
        Ok(None) => encode_bulk(&BulkReply::Unknown, &[]),
        Err(error) => {
            tracing::warn!(award = award.id, %error, "receipts not read");
            failed("the provider's controller does not answer", true)
        }
    }
}

#[cfg(test)]
#[path = "receipts_tests.rs"]
mod tests;
