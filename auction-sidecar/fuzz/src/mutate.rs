//! Changes of inputs: what a peer, a disk or an attacker may do to bytes that are nearly right.
//!
//! Edits are drawn by `arbitrary`, the crate that libFuzzer's Rust side uses for the same purpose, so that an edit is a
//! function of bytes and can be driven by anything that makes bytes. Seed and input fix the result.

use arbitrary::{Arbitrary, Unstructured};
use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

/// Longest input that is made.
pub const MAX_INPUT: usize = 1 << 20;

/// One change. Places are in parts of 65536 of the length.
#[derive(Debug, Clone, Arbitrary)]
pub enum Edit {
    /// Flips a bit.
    Flip(u16, u8),
    /// Sets a byte.
    Set(u16, u8),
    /// Puts a number where a length, a count or a seat may be: its width and which.
    Number(u16, u8, u8),
    /// Takes bytes away.
    Remove(u16, u8),
    /// Says bytes twice.
    Repeat(u16, u8),
    /// Puts bytes in between.
    Insert(u16, [u8; 4]),
    /// Writes bytes of another input over these.
    Splice(u16, u16, u8),
    /// Goes on with the rest of another input.
    Cross(u16, u16),
    /// Exchanges two places.
    Swap(u16, u16, u8),
    /// Ends early.
    Cut(u16),
    /// Replaces a digit or letter by another, as texts need it.
    Letter(u16, u8),
}

/// Numbers at which something may turn over.
const NUMBERS: [u64; 12] =
    [0, 1, 2, 3, 4, 255, 256, 65_535, (1 << 20) + 1, u32::MAX as u64, i64::MAX as u64, u64::MAX];
const LETTERS: &[u8] = b"0123456789abcdef-.\",:{}[]nul ";

fn place(at: u16, len: usize) -> usize {
    usize::from(at) * len / 65_536
}

impl Edit {
    /// Changes the input; `other` is what parts are taken from.
    pub fn apply(&self, input: &mut Vec<u8>, other: &[u8]) {
        let len = input.len();
        let end = |at: usize, n: u8| (at + usize::from(n)).min(len);
        match *self {
            Edit::Flip(at, bit) => {
                if let Some(byte) = input.get_mut(place(at, len)) {
                    *byte ^= 1 << (bit % 8);
                }
            }
            Edit::Set(at, value) => {
                if let Some(byte) = input.get_mut(place(at, len)) {
                    *byte = value;
                }
            }
            Edit::Number(at, width, which) => {
                let number = NUMBERS[usize::from(which) % NUMBERS.len()].to_be_bytes();
                let width = [1, 2, 4, 8][usize::from(width) % 4];
                let at = place(at, len);
                input[at..].iter_mut().zip(&number[8 - width..]).for_each(|(to, from)| *to = *from);
            }
            Edit::Remove(at, n) => drop(input.drain(place(at, len)..end(place(at, len), n))),
            Edit::Repeat(at, n) => {
                let at = place(at, len);
                input.extend_from_within(at..end(at, n));
                input[at..].rotate_right(end(at, n) - at);
            }
            Edit::Insert(at, bytes) => drop(input.splice(place(at, len)..place(at, len), bytes)),
            Edit::Splice(at, from, n) => {
                let from = other.get(place(from, other.len())..).unwrap_or_default();
                let to = input[place(at, len)..].iter_mut().take(usize::from(n));
                to.zip(from).for_each(|(to, from)| *to = *from);
            }
            Edit::Cross(at, from) => {
                input.truncate(place(at, len));
                input.extend_from_slice(other.get(place(from, other.len())..).unwrap_or_default());
            }
            Edit::Swap(a, b, n) => {
                let (a, b) = (place(a, len), place(b, len));
                (0..usize::from(n)).filter(|i| a.max(b) + i < len).for_each(|i| input.swap(a + i, b + i));
            }
            Edit::Cut(at) => input.truncate(place(at, len)),
            Edit::Letter(at, which) => {
                if let Some(byte) = input.get_mut(place(at, len)) {
                    *byte = LETTERS[usize::from(which) % LETTERS.len()];
                }
            }
        }
        input.truncate(MAX_INPUT);
    }
}

/// Makes an input from two others: one to four edits, most often one.
pub fn mutate(rng: &mut ChaCha8Rng, seed: &[u8], other: &[u8], out: &mut Vec<u8>) {
    let mut drawn = [0u8; 64];
    rng.fill_bytes(&mut drawn);
    let edits = 1 + (drawn[0] & drawn[1] & 3);
    let mut u = Unstructured::new(&drawn[2..]);
    out.clear();
    out.extend_from_slice(seed);
    for _ in 0..edits {
        // Drawing from enough bytes does not fail.
        if let Ok(edit) = Edit::arbitrary(&mut u) {
            edit.apply(out, other);
        }
    }
}
