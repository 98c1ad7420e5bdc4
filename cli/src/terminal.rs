//! What a log may do to a terminal: colours, tabs, lines. Everything else that would steer it is shown instead of sent,
//! because a log is written by a program on somebody else's cluster.
//!
//! Inputs: bytes in pieces of any size. Outputs: the same, with control characters written as `^[` and the like.
//! Invariant: text, also not in ASCII, passes unchanged; an escape sequence passes only if it sets colours.

use std::io::{Result, Write};

/// Longest colour sequence that is waited for.
const MAX_SEQUENCE: usize = 32;

/// A writer before a terminal.
pub struct Guard<W> {
    inner: W,
    /// The beginning of what may become a colour sequence or a control character of two bytes.
    pending: Vec<u8>,
}

impl<W: Write> Guard<W> {
    /// A guard before `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, pending: Vec::new() }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.pending.as_slice() {
            [] => match byte {
                0x1b | 0xc2 => self.pending.push(byte),
                _ => plain(byte, out),
            },
            // U+0080 to U+009F are control characters too.
            [0xc2] => {
                self.pending.clear();
                match byte {
                    0x80..=0x9f => out.extend_from_slice(&[b'^', byte & 0x1f | 0x40]),
                    _ => {
                        out.push(0xc2);
                        self.byte(byte, out);
                    }
                }
            }
            [0x1b] if byte == b'[' => self.pending.push(byte),
            [0x1b, b'[', ..] if byte == b'm' => {
                out.append(&mut self.pending);
                out.push(byte);
            }
            [0x1b, b'[', rest @ ..]
                if rest.len() < MAX_SEQUENCE && (byte.is_ascii_digit() || matches!(byte, b';' | b':')) =>
            {
                self.pending.push(byte);
            }
            _ => {
                let held = std::mem::take(&mut self.pending);
                held.iter().for_each(|held| plain(*held, out));
                self.byte(byte, out);
            }
        }
    }
}

fn plain(byte: u8, out: &mut Vec<u8>) {
    match byte {
        b'\n' | b'\r' | b'\t' => out.push(byte),
        0..=0x1f => out.extend_from_slice(&[b'^', byte | 0x40]),
        0x7f => out.extend_from_slice(b"^?"),
        _ => out.push(byte),
    }
}

impl<W: Write> Write for Guard<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut out = Vec::with_capacity(bytes.len());
        bytes.iter().for_each(|byte| self.byte(*byte, &mut out));
        self.inner.write_all(&out)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(pieces: &[&[u8]]) -> Vec<u8> {
        let mut guard = Guard::new(Vec::new());
        pieces.iter().for_each(|piece| guard.write_all(piece).unwrap());
        guard.inner
    }

    #[test]
    fn text_and_colours_pass() {
        let log = "epoch 1\tloss 0,3 \x1b[1;32mgut\x1b[0m naïve 50 %\r\n\x1b[38:2:1:2:3mx©".as_bytes();
        assert_eq!(shown(&[log]), log);
        let single: Vec<&[u8]> = log.chunks(1).collect();
        assert_eq!(shown(&single), log, "in whatever pieces it comes");
    }

    #[test]
    fn what_steers_the_terminal_is_shown() {
        for (bad, good) in [
            (&b"\x1b]0;title\x07"[..], &b"^[]0;title^G"[..]),
            (b"\x1b[2Jgone", b"^[[2Jgone"),
            (b"\x1b\x1b[0m", b"^[\x1b[0m"),
            (b"a\x08\x7f", b"a^H^?"),
            (b"\xc2\x9b2J", b"^[2J"),
            (b"\xc2\xc2\x9b", b"\xc2^["),
        ] {
            assert_eq!(shown(&[bad]), good, "{bad:?}");
        }
        let endless = [b"\x1b[".as_slice(), &[b'1'; 100]].concat();
        assert!(!shown(&[&endless]).contains(&0x1b));
    }
}
