//! The program's allocator: mimalloc, for Rust. RocksDB, librdkafka and OpenSSL keep the C library's: with mimalloc for them too,
//! each of some 80 threads kept pages of its own, and a small engine climbed to three times its memory within half an hour.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// `mi_option_purge_delay` of `mimalloc.h`, for which the crate has no name.
const PURGE_DELAY: mi_option_t = 15;
/// For how long memory that was freed is kept, in ms, before the system gets it back. The default of 10 ms is shorter than the
/// time between two batches: what the one had freed was given back, and the next one had to have it cleared and mapped again,
/// which took an eighth of the time of folding.
const PURGE_DELAY_MS: std::ffi::c_long = 1_000;

/// Sets the options of the allocator where the environment (`MIMALLOC_PURGE_DELAY`) does not. Call it at the start of `main`.
pub fn set_up() {
    // SAFETY: the number is one of the options of the version that Cargo.toml chooses, and the call only writes its value.
    unsafe { mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmimalloc_sys::mi_option_get;

    /// The number of an option is no part of the crate's interface, so a later version may have another option there.
    #[test]
    fn the_option_that_is_set_is_the_delay_before_memory_is_given_back() {
        // SAFETY: reads one option.
        let get = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(get(), 10, "the default of mi_option_purge_delay");
        set_up();
        assert_eq!(get(), PURGE_DELAY_MS);
    }
}
