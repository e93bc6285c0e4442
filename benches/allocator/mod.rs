//! The program's allocator, for benchmarks that measure their own process.

use rollcall::allocator::Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;
