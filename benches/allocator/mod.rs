//! The program's allocator, for benchmarks that measure their own process.

use rollcall::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Sets its options as the program does.
pub fn set_up() {
    rollcall::allocator::set_up();
}
