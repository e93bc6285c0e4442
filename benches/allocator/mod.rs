//! The program's allocator, for benchmarks that measure their own process.

use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Sets its options as the program does.
pub fn set_up() {
    rollcall::allocator::set_up();
}
