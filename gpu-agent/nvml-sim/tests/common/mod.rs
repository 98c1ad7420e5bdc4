//! Shared by the tests: where the built library is, and state files.

// Each test file is a program of its own and uses some of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use vendue_nvml_sim::source;
use vendue_nvml_sim::state::State;

/// The shared library that cargo built with this test.
pub fn library() -> PathBuf {
    let exe = std::env::current_exe().expect("path of the test");
    let name = "libvendue_nvml_sim.so";
    exe.ancestors().skip(1).map(|dir| dir.join(name)).find(|path| path.exists()).expect("built library")
}

/// A folder with a copy of the library and a state file next to it. Each copy is a library of its own to the loader,
/// so tests in one process do not share its state.
pub fn installed(groups: &[(&str, usize)]) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let copy = dir.path().join("libnvidia-ml.so.1");
    std::fs::copy(library(), &copy).expect("copy the library");
    let file = dir.path().join("state.json");
    save(&file, &state(groups));
    (dir, copy, file)
}

/// A state from the seed "test".
pub fn state(groups: &[(&str, usize)]) -> State {
    let groups: Vec<_> = groups.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    State::generate(&groups, "test", 0).expect("state")
}

/// Writes a state file.
pub fn save(path: &Path, state: &State) {
    source::store(path, state).expect("store state");
}
