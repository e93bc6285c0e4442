//! Bugs to be planted, to see whether the simulator finds them (`src/sim/planted.rs`). Only the build of the library's
//! own tests has them; in any other [`planted!`] is `false`.

/// Whether this bug is planted now.
#[cfg(test)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::engine::planted::is($crate::engine::planted::Bug::$bug)
    };
}

#[cfg(not(test))]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// For modules beside the engine.
pub(crate) use planted;

#[cfg(test)]
pub use garden::{Bug, is, plant};

#[cfg(test)]
mod garden {
    use std::cell::Cell;

    /// What can be planted in the worker, in the partition processor, in subscriptions and, for one of them, in the core.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Bug {
        /// The store is committed before the log.
        StoreBeforeLog,
        /// A deadline that the store keeps fires one millisecond late.
        LateDeadline,
        /// A start goes on after a record that was not folded.
        ResumeOffset,
        /// What is out of a half-committed record is given again.
        HalfRepeated,
        /// A lease that was dropped is back after a start.
        LeaseKept,
        /// Who was forgotten since the last commit of the store is fetched from it.
        OverlayForgotten,
        /// Log time is not restored.
        TimeNotRestored,
        /// A tick moves time by a millisecond of its own.
        TickMovesTime,
        /// Early ends are not restored.
        EarlyEndsLost,
        /// The index of connections does not learn of one that takes a device over.
        StaleLinks,
        /// An answer shows what is not committed.
        UncommittedShown,
        /// Ticks follow one another whatever is on its way.
        TickStorm,
        /// A start believes the committed position alone.
        TailIgnoredAtStart,
        /// After a failed commit only the committed position is compared.
        TailIgnoredInDoubt,
        /// Only the changes are compared with the outputs in the log.
        KicksNotCompared,
        /// A record of a revision that is not known is skipped.
        RevisionSkipped,
        /// What is before a revision that is not known is still shown.
        OutdatedShown,
        /// A subscription that begins at a cursor leaves out one offset.
        CursorSkips,
        /// A subscription that is behind what the tail keeps is not sent to the log.
        TailHole,
        /// A change that a timer gave counts as the outcome of the record at which it fired.
        TimerCounted,
    }

    impl Bug {
        pub const ALL: [Bug; 20] = [
            Bug::StoreBeforeLog,
            Bug::LateDeadline,
            Bug::ResumeOffset,
            Bug::HalfRepeated,
            Bug::LeaseKept,
            Bug::OverlayForgotten,
            Bug::TimeNotRestored,
            Bug::TickMovesTime,
            Bug::EarlyEndsLost,
            Bug::StaleLinks,
            Bug::UncommittedShown,
            Bug::TickStorm,
            Bug::TailIgnoredAtStart,
            Bug::TailIgnoredInDoubt,
            Bug::KicksNotCompared,
            Bug::RevisionSkipped,
            Bug::OutdatedShown,
            Bug::CursorSkips,
            Bug::TailHole,
            Bug::TimerCounted,
        ];
    }

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// From now on, in this thread.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
        crate::presence::planted::stale_links(bug == Some(Bug::StaleLinks));
    }

    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}
