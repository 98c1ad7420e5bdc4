//! Placeholder.
use crate::error::CliError;
use std::path::Path;
/// Writes.
pub fn write(_out: &Path) -> Result<(), CliError> {
    Ok(())
}
