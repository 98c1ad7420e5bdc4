//! Writes the corpus of each target to a folder of its name, as libFuzzer reads it.
//!
//! Input: a folder. Output: one file per input, named by its content.

use clap::Parser;
use std::io;
use std::path::PathBuf;

/// Writes the corpus that is made from simulated rounds.
#[derive(Parser)]
struct Args {
    /// The folder; what is there already stays.
    #[arg(long)]
    to: PathBuf,
}

fn main() -> io::Result<()> {
    let Args { to } = Args::parse();
    for target in vendue_auction_fuzz::all() {
        let folder = to.join(target.name);
        std::fs::create_dir_all(&folder)?;
        let seeds = vendue_auction_fuzz::corpus::seeds(target.name);
        for seed in &seeds {
            let name = vendue_market::tagged_hash("input", &[seed]);
            std::fs::write(folder.join(hex::encode(&name[..8])), seed)?;
        }
        println!("{}: {} inputs", target.name, seeds.len());
    }
    Ok(())
}
