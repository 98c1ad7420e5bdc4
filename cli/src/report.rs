//! A list of checks, for people and for programs.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::args::Output;
use crate::error::CliError;

/// How a check came out.
#[derive(Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// In order.
    Ok,
    /// Worth knowing.
    Warn,
    /// Not in order.
    Fail,
    /// Could not be looked at.
    Skip,
}

/// One check.
#[derive(Serialize, Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub level: Level,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Check {
    /// A check that came out as `level`.
    pub fn new(level: Level, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), level, detail: detail.into(), next: None }
    }

    /// In order.
    pub fn ok(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Level::Ok, name, detail)
    }

    /// Not in order.
    pub fn fail(name: impl Into<String>, detail: impl Into<String>, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..Self::new(Level::Fail, name, detail) }
    }

    /// Worth knowing.
    pub fn warn(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(Level::Warn, name, detail)
    }
}

/// Whether nothing failed.
pub fn passed(checks: &[Check]) -> bool {
    checks.iter().all(|c| c.level != Level::Fail)
}

/// The checks as text, one line each, with the next step below what failed.
pub fn text(checks: &[Check], colour: bool) -> String {
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let mut out = String::new();
    for check in checks {
        let (word, code) = match check.level {
            Level::Ok => ("ok  ", "32"),
            Level::Warn => ("warn", "33"),
            Level::Fail => ("FAIL", "31"),
            Level::Skip => ("skip", "90"),
        };
        let word = if colour { format!("\x1b[{code}m{word}\x1b[0m") } else { word.to_owned() };
        out.push_str(&format!("{word}  {:width$}  {}\n", check.name, check.detail));
        if let Some(next) = &check.next {
            out.push_str(&format!("      {:width$}  next: {next}\n", ""));
        }
    }
    out
}

/// Whether standard output is a terminal that wants colours.
pub fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Prints text, or a value as JSON. A reader that went away is no error.
pub fn print(output: Output, text: &str, value: &impl Serialize) -> Result<(), CliError> {
    let body = match output {
        Output::Text => text.to_owned(),
        Output::Json => {
            let json = serde_json::to_string_pretty(value);
            format!("{}\n", json.map_err(|e| CliError::failed(format!("encode: {e}")))?)
        }
    };
    match std::io::stdout().write_all(body.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("write: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each_and_the_next_step_below() {
        let checks = [Check::ok("a", "fine"), Check::fail("long", "broken", "mend it")];
        assert_eq!(text(&checks, false), "ok    a     fine\nFAIL  long  broken\n            next: mend it\n");
        assert!(!passed(&checks));
        assert!(passed(&[Check::warn("w", "")]));
        let json = serde_json::to_value(&checks[1]).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "long", "level": "fail", "detail": "broken", "next": "mend it"})
        );
    }
}
