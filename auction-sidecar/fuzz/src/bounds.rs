//! What reading may cost: every byte that is allocated on the way is counted, also what is freed again.
//!
//! Bytes allocated in all are a measure of work too: a decoder that does more than linear work on what it reads
//! builds or copies something for it.

use std::cell::Cell;

/// What any input may allocate: errors have texts, and small lists begin with room for four.
const FLOOR: u64 = 8 << 10;
/// Bytes that may be allocated for each byte read, at any number of seats.
const PER_BYTE: u64 = 256;
/// Further bytes for each byte read and seat: a SET that lists nothing is 67 bytes long and says so of each seat.
const PER_BYTE_AND_SEAT: u64 = 2;

thread_local! {
    static WORST: Cell<u64> = const { Cell::new(0) };
}

/// Runs a decoder on `len` bytes of a market of `seats` seats and checks what it allocates.
pub fn bounded<T>(len: usize, seats: u16, read: impl FnOnce() -> T) -> T {
    let mut value = None;
    let used = allocation_counter::measure(|| value = Some(read())).bytes_total;
    let len = len as u64;
    let most = FLOOR + len * (PER_BYTE + PER_BYTE_AND_SEAT * u64::from(seats));
    assert!(used <= most, "{used} bytes allocated to read {len}; {most} are enough at {seats} seats");
    WORST.with(|worst| worst.set(worst.get().max(used.saturating_sub(FLOOR / 2) / len.max(1))));
    value.expect("the decoder ran")
}

/// The most that was allocated per byte read on this thread since this was asked last.
pub fn take_worst() -> u64 {
    WORST.with(Cell::take)
}
