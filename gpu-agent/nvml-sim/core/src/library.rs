//! The library as an older driver would have it: without the symbols that came later.
//!
//! Input: the built library and a driver version. Output: a copy in whose dynamic symbol table the later symbols are no
//! longer defined, so that a program's loader does not find them, as with the real old library. Invariant: nothing but
//! the symbol table's entries changes. Which branch brought which symbol is data: `symbols.json`.

use std::collections::BTreeMap;

use object::elf::{FileHeader64, SHT_DYNSYM};
use object::read::elf::{FileHeader, SectionHeader, Sym};
use object::{Endianness, SectionIndex};
use serde::Deserialize;

/// Why a library cannot be cut down.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// The list of symbols does not parse; a test makes sure that this cannot ship.
    #[error("read list of symbols: {0}")]
    List(#[from] serde_json::Error),
    /// The file is no 64-bit ELF library.
    #[error("read library: {0}")]
    Elf(#[from] object::read::Error),
    /// The version names no driver branch.
    #[error("driver version is {version:?}, accepted is one such as 470.57.02")]
    Version {
        /// The version asked for.
        version: String,
    },
    /// A symbol lies outside the file.
    #[error("read library: symbol {name} lies outside the file")]
    Outside {
        /// Its name.
        name: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Symbols {
    #[serde(rename = "sources")]
    _sources: Vec<String>,
    /// Driver branch, then the symbols that it brought.
    since: BTreeMap<String, Vec<String>>,
}

/// Symbols that a driver of that version does not have.
///
/// # Errors
/// When the version does not begin with a number.
pub fn missing(driver_version: &str) -> Result<Vec<String>, LibraryError> {
    let branch = |text: &str| text.split('.').next().and_then(|n| n.parse::<u32>().ok());
    let wrong = || LibraryError::Version { version: driver_version.to_owned() };
    let wanted = branch(driver_version).ok_or_else(wrong)?;
    let symbols: Symbols = serde_json::from_str(include_str!("../symbols.json"))?;
    let later = symbols.since.into_iter().filter(|(since, _)| branch(since).is_some_and(|s| s > wanted));
    Ok(later.flat_map(|(_, names)| names).collect())
}

/// The library with those symbols undefined.
///
/// # Errors
/// When the bytes are no 64-bit ELF library.
pub fn without(library: &[u8], hidden: &[String]) -> Result<Vec<u8>, LibraryError> {
    let header = FileHeader64::<Endianness>::parse(library)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, library)?;
    let table = sections.symbols(endian, library, SHT_DYNSYM)?;
    let start = match table.section() {
        SectionIndex(0) => return Ok(library.to_vec()),
        section => usize::try_from(sections.section(section)?.sh_offset(endian)).unwrap_or(usize::MAX),
    };
    let mut copy = library.to_vec();
    for (index, symbol) in table.enumerate() {
        let name = String::from_utf8_lossy(symbol.name(endian, table.strings())?).into_owned();
        if !hidden.contains(&name) {
            continue;
        }
        let entry = start.saturating_add(index.0 * size_of_val(symbol));
        // An Elf64_Sym: name 4, info 1, other 1, section 2, value 8, size 8. No section and no value: not defined here.
        let fields = copy.get_mut(entry..).and_then(|rest| rest.get_mut(6..16));
        fields.ok_or(LibraryError::Outside { name })?.fill(0);
    }
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_bring_symbols() {
        let missing = |version| missing(version).expect("list");
        assert_eq!(missing("580.95.05"), Vec::<String>::new());
        assert!(missing("470.57.02").contains(&"nvmlDeviceGetMemoryInfo_v2".to_owned()));
        assert!(!missing("510.39.01").contains(&"nvmlDeviceGetMemoryInfo_v2".to_owned()));
        assert!(missing("535.54").contains(&"nvmlDeviceGetSramEccErrorStatus".to_owned()));
        let error = super::missing("new").expect_err("no version");
        assert_eq!(error.to_string(), r#"driver version is "new", accepted is one such as 470.57.02"#);
        assert!(matches!(without(b"no library", &[]), Err(LibraryError::Elf(_))));
    }
}
