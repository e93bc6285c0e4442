//! The program's allocator: mimalloc, for Rust. RocksDB, librdkafka and OpenSSL keep the C library's: with mimalloc for them too,
//! each of some 80 threads kept pages of its own, and a small engine climbed to three times its memory within half an hour. The C
//! library has one arena for each core and not eight: what a thread frees is kept by its arena. Catching up on Kafka is as fast.

use libmimalloc_sys::{mi_option_set_default, mi_option_t};

/// `mi_option_purge_delay` of `mimalloc.h`, for which the crate has no name.
const PURGE_DELAY: mi_option_t = 15;
/// How many arenas the C library has at least for RocksDB, librdkafka and OpenSSL; it has as many as there are cores.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS_MIN: usize = 2;
/// For how long memory that was freed is kept, in ms, before the system gets it back. The default of 10 ms is shorter than the
/// time between two batches: what the one had freed was given back, and the next one had to have it cleared and mapped again,
/// which took an eighth of the time of folding.
const PURGE_DELAY_MS: std::ffi::c_long = 1_000;

/// Sets the options of both allocators where the environment (`MIMALLOC_PURGE_DELAY`, `MALLOC_ARENA_MAX`) does not. Call it at the
/// start of `main`.
pub fn set_up() {
    set_purge_delay();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set_arenas();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "the options of the C library's allocator are set by a call of C"
)]
fn set_arenas() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        let cores = std::thread::available_parallelism().map_or(ARENAS_MIN, |cores| cores.get());
        let arenas = std::ffi::c_int::try_from(cores.max(ARENAS_MIN)).unwrap_or(std::ffi::c_int::MAX);
        // SAFETY: the call only writes an option. It is made before there are other threads. A failure leaves the default.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    }
}

#[expect(unsafe_code, reason = "the options of mimalloc are set by a call of C")]
fn set_purge_delay() {
    // SAFETY: the number is one of the options of the version that Cargo.toml chooses, and the call only writes its value.
    unsafe { mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libmimalloc_sys::mi_option_get;

    /// The number of an option is no part of the crate's interface, so a later version may have another option there.
    #[test]
    #[expect(unsafe_code, reason = "the options of the allocator are read by a call of C")]
    fn the_option_that_is_set_is_the_delay_before_memory_is_given_back() {
        // SAFETY: reads one option.
        let get = || unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(get(), 10, "the default of mi_option_purge_delay");
        set_up();
        assert_eq!(get(), PURGE_DELAY_MS);
    }
}
