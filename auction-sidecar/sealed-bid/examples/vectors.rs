//! Writes the interop vectors: `cargo run -p vendue-sealed-bid --example vectors`.

#[path = "../tests/support/mod.rs"]
mod support;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, value) in support::vectors::all() {
        let text = serde_json::to_string_pretty(&value)?;
        std::fs::write(support::vectors::folder().join(name), text + "\n")?;
    }
    Ok(())
}
