//! The target that the binary is named after, under libFuzzer.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use std::sync::OnceLock;
use vendue_auction_fuzz::{Target, by_name};

fuzz_target!(|data: &[u8]| -> Corpus {
    static TARGET: OnceLock<Option<Target>> = OnceLock::new();
    let target = TARGET.get_or_init(|| by_name(env!("CARGO_BIN_NAME"))).expect("a target of this name");
    (target.run)(data);
    Corpus::Keep
});
