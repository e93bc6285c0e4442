//! The binary's allocator, for what is measured in the benchmark's own process.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;
