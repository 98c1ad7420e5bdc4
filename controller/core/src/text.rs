//! Bounded text for conditions, Events and failures.
//!
//! Inputs: text of any length. Outputs: text within the API's bounds.
//! Invariant: cuts are at character borders, and a cut text says so.

/// Longest message of a condition or an Event.
pub const MAX_MESSAGE: usize = 1024;
/// Longest log tail in a status.
pub const MAX_LOG_TAIL: usize = 8192;
/// Lines of the log that go into a status.
pub const LOG_LINES: usize = 20;

/// The beginning of `text`, at most `max` bytes.
pub fn head(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let cut = text.floor_char_boundary(max.saturating_sub(3));
    format!("{}...", text.get(..cut).unwrap_or_default())
}

/// The end of `text`, at most `max` bytes.
pub fn tail(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let cut = text.ceil_char_boundary(text.len() - max.saturating_sub(3).min(text.len()));
    format!("...{}", text.get(cut..).unwrap_or_default())
}

/// The text without terminal colours and other control characters.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' && characters.next_if_eq(&'[').is_some() {
            // A control sequence ends with its first letter.
            for c in characters.by_ref() {
                if c.is_ascii_alphabetic() {
                    break;
                }
            }
        } else if c == '\n' || c == '\t' || !c.is_control() {
            out.push(c);
        }
    }
    out
}

/// The last lines of a log, as they go into a status.
pub fn log_tail(log: &str) -> String {
    let clean = plain(log);
    let lines: Vec<&str> = clean.trim_end().lines().collect();
    let from = lines.len().saturating_sub(LOG_LINES);
    tail(&lines.get(from..).unwrap_or_default().join("\n"), MAX_LOG_TAIL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_borders() {
        assert_eq!(head("abcdef", 5), "ab...");
        assert_eq!(tail("abcdef", 5), "...ef");
        assert_eq!(head("abc", 3), "abc");
        assert!(head(&"\u{e9}".repeat(40), 10).len() <= 10);
        assert!(tail(&"\u{e9}".repeat(40), 10).len() <= 10);
    }

    #[test]
    fn keeps_the_last_lines() {
        let log: String = (0..50).map(|i| format!("line {i}\u{1b}\n")).collect();
        let kept = log_tail(&log);
        assert_eq!(log_tail("a \u{1b}[1m\u{1b}[32mgreen\u{1b}[39m b\r\n"), "a green b");
        assert!(kept.starts_with("line 30\n") && kept.ends_with("line 49"));
        assert!(log_tail(&"x".repeat(20_000)).len() <= MAX_LOG_TAIL);
    }
}
