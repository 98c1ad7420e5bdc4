//! What an Xid means for who caused it and what becomes of the device. Pure.
//!
//! Codes and meanings are those of NVIDIA's Xid catalogue
//! (<https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html>, read October 2025). The class is ours and
//! follows from the catalogue's immediate action: what ends with restarting the application is the application's, unless
//! memory or a link failed under it; what needs a reset of the GPU or a restart of the machine is fatal. Operators change
//! single classes ([`Policy`]).

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Serialize;

/// What an Xid says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Class {
    /// Nothing to act on.
    Informational,
    /// The program on the device did something wrong: no fault of the device.
    Application,
    /// The device works, and something about it is wrong.
    Degraded,
    /// The device is of no use before it was reset.
    Fatal,
}

use Class::{Application, Degraded, Fatal, Informational};

/// Names of the classes, as operators write them and metrics show them.
const NAMES: [(Class, &str); 4] = [
    (Informational, "informational"),
    (Application, "application"),
    (Degraded, "degraded"),
    (Fatal, "fatal"),
];

impl Class {
    /// The class in one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(class, _)| *class == self).map_or("", |(_, name)| name)
    }
}

/// Codes that can occur on cards from Turing on: first and last code, class, meaning.
const TABLE: &[(u64, u64, Class, &str)] = &[
    (8, 8, Application, "the GPU stopped processing"),
    (11, 11, Application, "invalid or corrupted push buffer stream"),
    (13, 13, Application, "graphics engine exception"),
    (14, 14, Informational, "robust channel test"),
    (25, 25, Application, "illegal push buffer stream"),
    (31, 31, Application, "GPU memory page fault"),
    (32, 32, Application, "corrupted push buffer stream"),
    (37, 38, Informational, "driver firmware error"),
    (39, 41, Application, "copy engine exception"),
    (43, 43, Application, "the GPU stopped processing a channel"),
    (44, 44, Informational, "graphics engine fault during context switch"),
    (45, 45, Application, "preemptive cleanup after an earlier error"),
    (46, 46, Fatal, "the GPU stopped processing"),
    (48, 48, Fatal, "double bit ECC error"),
    (54, 54, Fatal, "auxiliary power is not connected"),
    (60, 60, Application, "video processor exception"),
    (62, 62, Fatal, "internal micro-controller halt"),
    (63, 63, Degraded, "memory row or page is to be remapped"),
    (64, 64, Fatal, "memory row or page could not be remapped"),
    (66, 67, Informational, "illegal access by the driver"),
    (68, 68, Application, "video decoder exception"),
    (69, 69, Application, "graphics engine class error"),
    (70, 72, Application, "copy engine exception"),
    (74, 74, Fatal, "NVLink error"),
    (75, 77, Application, "copy engine exception"),
    (78, 78, Informational, "vGPU start error"),
    (79, 79, Fatal, "the GPU has fallen off the bus"),
    (80, 80, Application, "corrupted data sent to the GPU"),
    (82, 82, Application, "JPEG decoder error"),
    (83, 84, Application, "video decoder error"),
    (85, 85, Application, "copy engine exception"),
    (86, 86, Application, "optical flow engine exception"),
    (88, 89, Application, "video decoder error"),
    (92, 92, Degraded, "high rate of single bit ECC errors"),
    (93, 93, Informational, "InfoROM wear limit exceeded"),
    (94, 94, Degraded, "contained memory error"),
    (95, 95, Fatal, "uncontained memory error"),
    (96, 98, Application, "video decoder error"),
    (99, 105, Application, "JPEG decoder error"),
    (106, 107, Informational, "test message"),
    (108, 108, Informational, "NVLink remote translation error"),
    // The catalogue asks for a reset. Programs can cause it, and NVIDIA's own device plugin counts it as theirs.
    (109, 109, Application, "context switch timeout"),
    (110, 110, Fatal, "security fault"),
    (119, 119, Fatal, "GSP RPC timeout"),
    (120, 120, Fatal, "GSP error"),
    (121, 121, Degraded, "C2C link error"),
    (126, 135, Application, "copy engine exception"),
    (136, 136, Fatal, "link training failed"),
    (137, 137, Informational, "NVLink privilege error"),
    (139, 139, Application, "optical flow engine error"),
    (140, 140, Fatal, "unrecovered ECC error"),
    (141, 141, Informational, "CUDA fast path error"),
    (143, 143, Fatal, "GPU initialisation error"),
    (144, 150, Degraded, "NVLink error"),
    (151, 151, Fatal, "key rotation error"),
    (152, 153, Informational, "DLA error"),
    (154, 154, Informational, "recovery action changed"),
    (155, 155, Fatal, "NVLink software defined error"),
    (156, 156, Fatal, "resource retired; takes effect at the next reset"),
    (157, 157, Degraded, "resource could not be retired"),
    (158, 158, Fatal, "fatal timeout"),
    (160, 160, Degraded, "memory channel retired"),
    (161, 161, Degraded, "memory channel could not be retired"),
    (162, 165, Informational, "power smoothing changed"),
    (167, 167, Fatal, "PCIe fatal timeout"),
    (168, 168, Degraded, "reduced memory capacity"),
    (169, 169, Fatal, "internal micro-controller halt"),
    (171, 171, Fatal, "uncorrectable DRAM error"),
    (172, 172, Fatal, "uncorrectable SRAM error"),
];

/// What a code means; `None` for one that the table lacks.
#[must_use]
pub fn meaning(code: u64) -> Option<&'static str> {
    row(code).map(|(_, text)| text)
}

fn row(code: u64) -> Option<(Class, &'static str)> {
    let at = TABLE.partition_point(|(first, ..)| *first <= code);
    let (_, last, class, text) = TABLE.get(at.checked_sub(1)?)?;
    (code <= *last).then_some((*class, *text))
}

/// Classes of codes: the table's, but for those that an operator has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    changed: BTreeMap<u64, Class>,
}

impl Policy {
    /// The class of a code. One that nobody knows is `Degraded`: nothing new is sold until it is quiet again.
    #[must_use]
    pub fn class(&self, code: u64) -> Class {
        self.changed.get(&code).copied().or_else(|| row(code).map(|(class, _)| class)).unwrap_or(Degraded)
    }
}

/// Why text is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not `CODE=CLASS`.
    #[error("{0:?} is not CODE=CLASS, for example 109=degraded")]
    Form(String),
    /// Not a number.
    #[error("{0:?} is no Xid: a whole number from 1 to 65535")]
    Code(String),
    /// Not a class.
    #[error("{0:?} is no class; the classes are informational, application, degraded, fatal")]
    Class(String),
    /// A code twice.
    #[error("Xid {0} is given twice")]
    Twice(u64),
}

impl FromStr for Policy {
    type Err = PolicyError;

    /// Reads `CODE=CLASS,CODE=CLASS`; an empty text changes nothing.
    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let mut policy = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (code, name) = part.split_once('=').ok_or_else(|| PolicyError::Form(part.to_owned()))?;
            let number = code.parse().ok().filter(|code| (1..=65_535).contains(code));
            let code = number.ok_or_else(|| PolicyError::Code(code.to_owned()))?;
            let class = NAMES.iter().find(|(_, known)| *known == name).map(|(class, _)| *class);
            let class = class.ok_or_else(|| PolicyError::Class(name.to_owned()))?;
            if policy.changed.insert(code, class).is_some() {
                return Err(PolicyError::Twice(code));
            }
        }
        Ok(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_without_overlap() {
        for window in TABLE.windows(2) {
            assert!(window[0].0 <= window[0].1 && window[0].1 < window[1].0, "{window:?}");
        }
    }

    #[test]
    fn classes_of_codes_that_matter() {
        let policy = Policy::default();
        for (code, class) in [
            (13, Application),
            (31, Application),
            (40, Application),
            (45, Application),
            (109, Application),
            (48, Fatal),
            (63, Degraded),
            (64, Fatal),
            (74, Fatal),
            (79, Fatal),
            (92, Degraded),
            (94, Degraded),
            (95, Fatal),
            (119, Fatal),
            (120, Fatal),
            (135, Application),
            (145, Degraded),
            (154, Informational),
        ] {
            assert_eq!(policy.class(code), class, "Xid {code}");
        }
        // Between rows, before the first and after the last.
        for code in [0, 7, 9, 42, 73, 138, 173, u64::MAX] {
            assert_eq!((policy.class(code), meaning(code)), (Degraded, None), "Xid {code}");
        }
        assert_eq!(meaning(79), Some("the GPU has fallen off the bus"));
    }

    #[test]
    fn operators_change_single_classes_and_hear_what_is_wrong() {
        let policy: Policy = "109=fatal, 900=informational".parse().expect("policy");
        assert_eq!([109, 900, 79].map(|code| policy.class(code)), [Fatal, Informational, Fatal]);
        assert_eq!("".parse(), Ok(Policy::default()));
        for (text, error) in [
            ("109", PolicyError::Form("109".to_owned())),
            ("x=fatal", PolicyError::Code("x".to_owned())),
            ("0=fatal", PolicyError::Code("0".to_owned())),
            ("65536=fatal", PolicyError::Code("65536".to_owned())),
            ("1=bad", PolicyError::Class("bad".to_owned())),
            ("1=fatal,1=fatal", PolicyError::Twice(1)),
        ] {
            assert_eq!(text.parse::<Policy>(), Err(error), "{text}");
        }
        assert_eq!(
            NAMES.map(|(class, _)| class.name()),
            ["informational", "application", "degraded", "fatal"]
        );
    }
}
