//! The program's memory: jemalloc, for Rust and, as it takes the place of `malloc`, for RocksDB, librdkafka and OpenSSL (on macOS
//! for Rust alone).
//!
//! A server has some 80 threads, most of which are idle most of the time. mimalloc, which was used before, keeps pages for
//! each thread until that thread allocates again: a small engine had five times the memory that it used. Here threads share
//! a few arenas, and jemalloc's own thread gives back what was freed in them.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
use std::ffi::CStr;

pub use tikv_jemallocator::Jemalloc as Allocator;

/// The options of jemalloc; `MALLOC_CONF` in the environment overrides each of them.
///
/// * One thread gives memory back, since the default of one for each arena is not needed. What was freed is kept for
///   ten seconds, the default: catching up from Kafka is a tenth to a sixth faster than with one second, since the next batch has
///   its memory at once, and not cleared and mapped again.
/// * Four arenas on every machine, since each keeps some memory of its own: the default is four for each core of the
///   machine, also in a container that may use two of them. An arena for each core (`percpu_arena`) complains on standard
///   error where the process may not use all cores.
/// * A thread keeps only small blocks for itself (4 KiB at most each).
/// * No huge pages, also where the kernel gives them unasked: they made nothing faster.
///
/// Elsewhere jemalloc has its defaults: on macOS it does not start with a thread of its own, and the variable is
/// `_RJEM_MALLOC_CONF`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OPTIONS: &CStr =
    c"background_thread:true,max_background_threads:1,dirty_decay_ms:10000,muzzy_decay_ms:0,narenas:4,tcache_max:4096,thp:never";

/// jemalloc reads its options here before `main`: a pointer to the first byte of a text that ends with 0.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[used]
#[unsafe(export_name = "malloc_conf")]
#[expect(unsafe_code, reason = "a symbol that jemalloc reads has its name from C")]
static MALLOC_CONF: &u8 = &OPTIONS.to_bytes_with_nul()[0];
