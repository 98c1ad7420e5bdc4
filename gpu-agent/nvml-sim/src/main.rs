//! Placeholder.
/// Placeholder.
fn main() {}
