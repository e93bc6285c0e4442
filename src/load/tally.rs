//! The results of a load test: counts, latencies, and descriptions of the first errors.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The greatest number of errors that are described.
const PROBLEMS_MAX: usize = 20;
/// Latencies are kept to three digits, from a microsecond to ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;
const DIGITS: u8 = 3;

#[derive(Default)]
pub struct Tally {
    /// The number of connections that are open now.
    pub open: AtomicI64,
    pub connects: AtomicU64,
    pub heartbeats: AtomicU64,
    /// Changes that came as expected.
    pub as_expected: AtomicU64,
    pub missing: AtomicU64,
    pub unexpected: AtomicU64,
    /// Attempts to connect that failed and were retried.
    pub refused: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    actions: BTreeMap<&'static str, u64>,
    latencies: BTreeMap<&'static str, Histogram<u64>>,
    problems: Vec<String>,
}

/// Percentiles of latencies, in milliseconds.
#[derive(Serialize, Clone, Copy, PartialEq, Debug)]
pub struct Latency {
    pub count: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p99_9_ms: f64,
    pub max_ms: f64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        let ms = |us: u64| us as f64 / 1_000.0;
        Latency {
            count: histogram.len(),
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            p99_9_ms: ms(histogram.value_at_quantile(0.999)),
            max_ms: ms(histogram.max()),
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).expect("the bounds and digits are allowed ones")
}

impl Tally {
    pub fn action(&self, kind: &'static str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        *inner.actions.entry(kind).or_default() += 1;
    }

    /// Records the time from an action to its effect.
    pub fn took(&self, kind: &'static str, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .latencies
            .entry(kind)
            .or_insert_with(histogram)
            .saturating_record(us);
    }

    pub fn missed(&self, what: impl FnOnce() -> String) {
        self.missing.fetch_add(1, Ordering::Relaxed);
        self.report(what);
    }

    pub fn surprised(&self, what: impl FnOnce() -> String) {
        self.unexpected.fetch_add(1, Ordering::Relaxed);
        self.report(what);
    }

    fn report(&self, what: impl FnOnce() -> String) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.problems.len() < PROBLEMS_MAX {
            let what = what();
            tracing::warn!("{what}");
            inner.problems.push(what);
        }
    }

    pub fn actions(&self) -> BTreeMap<&'static str, u64> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .actions
            .clone()
    }

    /// Returns the latency of all actions of the selected kinds.
    pub fn latency(&self, of: impl Fn(&str) -> bool) -> Latency {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = histogram();
        for (_, some) in inner.latencies.iter().filter(|(kind, _)| of(kind)) {
            all.add(some).expect("they have the same bounds");
        }
        Latency::of(&all)
    }

    pub fn latencies(&self) -> BTreeMap<&'static str, Latency> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .latencies
            .iter()
            .map(|(kind, some)| (*kind, Latency::of(some)))
            .collect()
    }

    pub fn problems(&self) -> Vec<String> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .problems
            .clone()
    }
}
