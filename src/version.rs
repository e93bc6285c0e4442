//! The versions of this program and of the libraries that hold or carry data.

use std::sync::LazyLock;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built, 12 digits or more; `unknown` if neither a repository nor `ROLLCALL_COMMIT` named it.
pub const COMMIT: &str = env!("ROLLCALL_COMMIT");
pub const ROCKSDB: &str = env!("ROLLCALL_ROCKSDB");

/// Returns the version of librdkafka that is linked.
pub fn librdkafka() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// All versions in one line, without the program's name.
pub static LINE: LazyLock<String> = LazyLock::new(|| {
    let librdkafka = librdkafka();
    format!("{VERSION} (commit {COMMIT}, librdkafka {librdkafka}, RocksDB {ROCKSDB})")
});
