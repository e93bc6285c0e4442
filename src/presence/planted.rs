//! A planted bug of the core, to check whether the simulator finds it (`src/sim/planted.rs`). Only the library's own
//! test build contains this file: in every other build the core has no state except its arguments.

use super::state::Link;
use std::cell::{Cell, RefCell};

thread_local! {
    static IS_PLANTED: Cell<bool> = const { Cell::new(false) };
    static LOST: RefCell<Vec<Link>> = const { RefCell::new(Vec::new()) };
}

/// Plants the bug in this thread: the index of connections is not updated when a connection takes a device over.
pub fn stale_links(is_planted: bool) {
    IS_PLANTED.set(is_planted);
    LOST.with_borrow_mut(Vec::clear);
}

pub(super) fn is_planted() -> bool {
    IS_PLANTED.get()
}

pub(super) fn takes_over(link: Link) {
    if IS_PLANTED.get() {
        LOST.with_borrow_mut(|lost| lost.push(link));
    }
}

pub(super) fn is_lost(link: Link) -> bool {
    IS_PLANTED.get() && LOST.with_borrow(|lost| lost.contains(&link))
}
