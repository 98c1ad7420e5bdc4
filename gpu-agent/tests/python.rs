//! The tools that users have (NVIDIA's Python bindings, gpustat, nvitop) and the agent read the same simulated machine, and
//! show the same values.
//!
//! Needs Python with `nvml-sim/tests/python/requirements.txt` installed: `cargo verify` installs it and runs this test. By
//! hand, `VENDUE_SIM_PYTHON` names the interpreter for `cargo test -p vendue-gpu-agent --test python -- --ignored`.

// Helpers of tests fail by panicking too; the lint's own exception covers only the test functions.
#![allow(clippy::expect_used, clippy::panic)]

#[path = "../bench/node/mod.rs"]
#[allow(dead_code)]
mod node;
#[path = "../bench/tools.rs"]
mod tools;

use node::Programs;
use serde_json::json;
use tools::Pair;

#[test]
fn values_that_differ_are_found() {
    let pair = |theirs, ours| Pair { what: String::new(), theirs, ours };
    assert!(pair(json!(70), json!(70.0)).agrees() && pair(json!(null), json!(null)).agrees());
    assert!(!pair(json!(70), json!(71)).agrees());
    assert!(!pair(json!(0), json!(null)).agrees() && !pair(json!("a"), json!("b")).agrees());
}

#[test]
#[ignore = "needs Python with nvml-sim/tests/python/requirements.txt"]
fn the_agent_and_the_python_tools_agree_on_each_value() {
    let python = tools::python().unwrap_or_else(|why| panic!("{why}"));
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    let library = exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists());
    let programs = Programs {
        agent: env!("CARGO_BIN_EXE_vendue-gpu-agent").into(),
        library: library.expect("built library"),
    };
    let pairs = tools::compare(&programs, &python).expect("compare");
    let differ: Vec<&Pair> = pairs.iter().filter(|pair| !pair.agrees()).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert!(pairs.len() >= 300, "{} values", pairs.len());
    let missing = pairs.iter().filter(|pair| pair.theirs.is_null()).count();
    assert!(missing <= pairs.len() / 5, "{missing} of {} values are offered by nobody", pairs.len());
}
