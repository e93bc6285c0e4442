//! The versions of this program and of the libraries that hold or carry data.

use crate::presence::Revision;
use std::sync::LazyLock;

pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that was built, 12 digits or more; `unknown` if neither a repository nor `ROLLCALL_COMMIT` named it.
pub const COMMIT: &str = env!("ROLLCALL_COMMIT");
pub const ROCKSDB: &str = env!("ROLLCALL_ROCKSDB");

/// Returns the newest revision of rules and encodings that this program goes by. `ROLLCALL_REVISION` makes it another one:
/// only tests set it, to have a program that knows more or less than this one.
pub fn newest_revision() -> Revision {
    static NEWEST: LazyLock<Revision> = LazyLock::new(|| match std::env::var("ROLLCALL_REVISION") {
        Ok(number) => Revision(
            number
                .parse()
                .expect("ROLLCALL_REVISION is a number, which only tests set"),
        ),
        Err(_) => Revision::NEWEST,
    });
    *NEWEST
}

/// Returns the version of librdkafka that is linked.
pub fn librdkafka() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// All versions in one line, without the program's name.
pub static LINE: LazyLock<String> = LazyLock::new(|| {
    let librdkafka = librdkafka();
    format!("{VERSION} (commit {COMMIT}, librdkafka {librdkafka}, RocksDB {ROCKSDB})")
});
