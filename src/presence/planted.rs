//! A bug to be planted in the core, to see whether the simulator finds it (`src/sim/planted.rs`). Only the build of the
//! library's own tests has this file: in any other the core has no state but what it is given.

use super::state::Link;
use std::cell::{Cell, RefCell};

thread_local! {
    static IS_PLANTED: Cell<bool> = const { Cell::new(false) };
    static LOST: RefCell<Vec<Link>> = const { RefCell::new(Vec::new()) };
}

/// From now on, in this thread, the index of connections does not learn of a connection that takes a device over.
pub fn stale_links(is_planted: bool) {
    IS_PLANTED.set(is_planted);
    LOST.with_borrow_mut(Vec::clear);
}

pub(super) fn takes_over(link: Link) {
    if IS_PLANTED.get() {
        LOST.with_borrow_mut(|lost| lost.push(link));
    }
}

pub(super) fn is_lost(link: Link) -> bool {
    IS_PLANTED.get() && LOST.with_borrow(|lost| lost.contains(&link))
}
