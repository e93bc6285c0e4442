//! What `--version` and `rollcall_build_info` say of this build: the commit, and the version of RocksDB.
//!
//! Nothing in it depends on when or where it is built, so that the same source gives the same program.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    println!("cargo::rerun-if-env-changed=ROLLCALL_COMMIT");
    // Where there is no repository, in a container for one, the commit is given.
    let given = std::env::var("ROLLCALL_COMMIT")
        .ok()
        .filter(|commit| !commit.is_empty());
    let commit = given.or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=ROLLCALL_COMMIT={commit}");
    let rocksdb = rocksdb().unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=ROLLCALL_ROCKSDB={rocksdb}");
}

fn git(arguments: &[&str]) -> Option<String> {
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*"]).args(arguments);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// The commit that is checked out, if these files are a repository of their own.
fn commit() -> Option<String> {
    let top = Path::new(&git(&["rev-parse", "--show-toplevel"])?)
        .canonicalize()
        .ok()?;
    // Asked for when it runs: checkouts that share a target directory may share the compiled form of this file.
    if top
        != Path::new(&std::env::var_os("CARGO_MANIFEST_DIR")?)
            .canonicalize()
            .ok()?
    {
        return None;
    }
    // Both change with every commit and checkout; a path that does not exist would make every build run this again.
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", file])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

/// The version of the C++ library is the second half of that of the crate which compiles it: `0.19.0+11.8.1`.
fn rocksdb() -> Option<String> {
    let lock = std::fs::read_to_string("Cargo.lock").ok()?;
    let (_, package) = lock.split_once("name = \"librocksdb-sys\"\nversion = \"")?;
    let (version, _) = package.split_once('"')?;
    Some(version.split_once('+')?.1.to_owned())
}
