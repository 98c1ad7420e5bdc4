//! The bid engine.
