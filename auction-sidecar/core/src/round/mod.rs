//! What is inside a sealed bundle.
