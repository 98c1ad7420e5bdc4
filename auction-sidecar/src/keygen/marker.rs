//! The marker that says in which folder a seat makes the keys of one generation.
//!
//! Two folders would have two sets of secrets, and from the start on the seat would say two things, which is a proven fault. So
//! the first folder leaves its name beside the cluster's keys, and a second one is refused.
//!
//! Inputs: the folder for markers, the generation, the seat, the folder of the generation. Invariants: a marker is whole and
//! durable before the folder has secrets; none is replaced; it goes when the secrets go. It does not see another machine.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vendue_market::Digest;
use vendue_market::encode::hex_array;

use super::GenerateError;
use crate::new_file;

#[derive(Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(with = "hex_array")]
    generation: Digest,
    seat: u16,
    out: PathBuf,
}

/// The place of a marker.
pub(super) struct Marker {
    path: PathBuf,
    generation: Digest,
    seat: u16,
}

fn fail(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> GenerateError {
    let path = path.to_owned();
    move |source| GenerateError::File { operation, path, source }
}

impl Marker {
    pub(super) fn new(dir: &Path, generation: Digest, seat: u16) -> Self {
        let id = hex::encode(generation.first_chunk::<8>().copied().unwrap_or_default());
        Self { path: dir.join(format!("seat-{seat}-{id}.generating")), generation, seat }
    }

    /// Says that the generation is in this folder; refused where it is in another one.
    pub(super) fn claim(&self, out: &Path) -> Result<(), GenerateError> {
        let out = fs::canonicalize(out).map_err(fail("find folder", out))?;
        let content = Content { generation: self.generation, seat: self.seat, out };
        let json = serde_json::to_vec(&content).map_err(GenerateError::Encode)?;
        match new_file::write_new(&self.path, &json, 0o600) {
            Ok(()) => Ok(()),
            Err(error) if error.is_there() => self.check(&content),
            Err(error) => Err(GenerateError::Marker { path: self.path.clone(), source: error.source }),
        }
    }

    fn check(&self, own: &Content) -> Result<(), GenerateError> {
        let text = fs::read_to_string(&self.path).map_err(fail("read", &self.path))?;
        let found: Option<Content> = serde_json::from_str(&text).ok();
        if found.as_ref() == Some(own) {
            return Ok(());
        }
        let other = found.map_or_else(|| PathBuf::from("another folder"), |found| found.out);
        Err(GenerateError::OtherFolder { marker: self.path.clone(), other, out: own.out.clone() })
    }

    /// The generation is over.
    pub(super) fn remove(&self) -> Result<(), GenerateError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fail("remove", &self.path)(error)),
            _ => Ok(()),
        }
    }
}
