//! Bakes the commit into the binary: a result must name the source it was built from, wherever the
//! binary runs.

use std::process::Command;

fn main() {
    for changed in ["src", "Cargo.toml", "build.rs", "../src", "../Cargo.lock", "../.git/logs/HEAD"] {
        println!("cargo:rerun-if-changed={changed}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    if let (Some(commit), Some(changes)) = (commit, changes) {
        println!("cargo:rustc-env=LOADGEN_COMMIT={commit}");
        println!("cargo:rustc-env=LOADGEN_DIRTY={}", !changes.is_empty());
    }
}

/// What git says, or None where this is no clone.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
