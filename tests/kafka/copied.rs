//! A long run uses one copy of the program, whatever is compiled meanwhile.

use crate::python;
use sha2::{Digest as _, Sha256};

/// From now on engines and `fold` are one copy of the binary, whatever is compiled meanwhile. Prints its hash.
pub fn use_a_copy() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("rollcall");
    std::fs::copy(python::program(), &copy).expect("copied");
    let bytes = std::fs::read(&copy).expect("readable");
    let hash: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("rollcall, SHA-256 {hash}");
    python::COPY
        .set(copy.to_str().expect("UTF-8").to_owned())
        .expect("used once");
    directory
}
