//! The metrics that workers report for their partitions: gauges per partition, which are removed with it, and sums over
//! all partitions.

use crate::presence::Status;
use prometheus::{GaugeVec, IntGaugeVec};
use std::collections::BTreeMap;

/// The figures of one partition.
pub struct Figures {
    /// One word, such as `restoring`, `live` or `failed`.
    pub state: &'static str,
    /// Records between the end of the log and the applied position. `None` if that is not known at the moment.
    pub lag: Option<u64>,
    /// Milliseconds between log time and this machine's clock; 0 if log time is ahead. `None` before the first record.
    pub log_time_age_ms: Option<u64>,
    /// For how many seconds a publisher's open transaction has blocked the partition.
    pub held_s: u64,
    /// For how many seconds the partition's next deadline has been due. `None` if that is not known at the moment.
    pub overdue_s: Option<u64>,
    pub users_in_memory: usize,
    pub users: [(Status, u64); Status::ALL.len()],
    /// Status, platform, and the number of devices.
    pub devices: Vec<(Status, Box<str>, u64)>,
}

pub(super) struct Partitions {
    pub reported: BTreeMap<u32, Figures>,
    pub lag: IntGaugeVec,
    pub lag_seconds: GaugeVec,
    pub log_time_age: GaugeVec,
    pub users_in_memory: IntGaugeVec,
    pub checkpoint: IntGaugeVec,
    pub time_ahead: IntGaugeVec,
    pub state: IntGaugeVec,
    pub held: IntGaugeVec,
    pub overdue: IntGaugeVec,
    pub users: IntGaugeVec,
    pub devices: IntGaugeVec,
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Partitions {
    pub fn report(&mut self, partition: u32, figures: Figures) {
        let label = partition.to_string();
        if let Some(lag) = figures.lag {
            self.lag.with_label_values(&[&label]).set(gauge(lag));
        }
        if let Some(age_ms) = figures.log_time_age_ms {
            let age = age_ms as f64 / 1_000.0;
            self.log_time_age.with_label_values(&[&label]).set(age);
            // Log time stands still where nothing comes, so its age is a lag only while there is something to fold.
            if let Some(lag) = figures.lag {
                let seconds = if lag == 0 { 0.0 } else { age };
                self.lag_seconds.with_label_values(&[&label]).set(seconds);
            }
        }
        let users = gauge(figures.users_in_memory as u64);
        self.users_in_memory.with_label_values(&[&label]).set(users);
        self.state.with_label_values(&[&label, figures.state]).set(1);
        self.held.with_label_values(&[&label]).set(gauge(figures.held_s));
        if let Some(overdue_s) = figures.overdue_s {
            self.overdue.with_label_values(&[&label]).set(gauge(overdue_s));
        }
        let state = figures.state;
        let before = self.reported.insert(partition, figures);
        if let Some(before) = before.filter(|before| before.state != state) {
            self.forget_state(&label, before.state);
        }
    }

    pub fn checkpointed(&mut self, partition: u32, next: u64) {
        // A checkpoint may be published after the partition was handed over; it is then no longer a figure of this
        // process.
        if self.reported.contains_key(&partition) {
            let label = partition.to_string();
            self.checkpoint.with_label_values(&[&label]).set(gauge(next));
        }
    }

    pub fn time_ahead(&mut self, partition: u32, seconds: u64) {
        if self.reported.contains_key(&partition) {
            let label = partition.to_string();
            self.time_ahead.with_label_values(&[&label]).set(gauge(seconds));
        }
    }

    pub fn remove(&mut self, partition: u32) {
        let label = partition.to_string();
        if let Some(figures) = self.reported.remove(&partition) {
            self.forget_state(&label, figures.state);
        }
        let all = [
            &self.lag,
            &self.users_in_memory,
            &self.checkpoint,
            &self.time_ahead,
            &self.held,
            &self.overdue,
        ];
        for gauges in all {
            // An error means that the gauge did not exist.
            let _ = gauges.remove_label_values(&[&label]);
        }
        for gauges in [&self.lag_seconds, &self.log_time_age] {
            let _ = gauges.remove_label_values(&[&label]);
        }
    }

    fn forget_state(&self, partition: &str, state: &str) {
        // An error means that the gauge did not exist.
        let _ = self.state.remove_label_values(&[partition, state]);
    }

    /// Sets the gauges that are sums over all partitions.
    pub fn sum(&self) {
        let mut users = Status::ALL.map(|status| (status, 0));
        let mut devices: BTreeMap<(&str, Status), u64> = BTreeMap::new();
        for figures in self.reported.values() {
            for (status, count) in figures.users {
                let sums = users.iter_mut().filter(|(other, _)| *other == status);
                sums.for_each(|(_, sum)| *sum += count);
            }
            for (status, platform, count) in &figures.devices {
                *devices.entry((platform, *status)).or_default() += count;
            }
        }
        for (status, count) in users {
            self.users.with_label_values(&[status.name()]).set(gauge(count));
        }
        // The policies in force determine the platforms. A platform that no partition has any more is not shown.
        self.devices.reset();
        for ((platform, status), count) in devices {
            let labels = [platform, status.name()];
            self.devices.with_label_values(&labels).set(gauge(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::Opts;
    use prometheus::core::Collector;

    fn gauges(name: &str, labels: &[&str]) -> IntGaugeVec {
        IntGaugeVec::new(Opts::new(name, name), labels).unwrap()
    }

    fn partitions() -> Partitions {
        Partitions {
            reported: BTreeMap::new(),
            lag: gauges("lag", &["partition"]),
            lag_seconds: GaugeVec::new(Opts::new("lag_seconds", "lag"), &["partition"]).unwrap(),
            log_time_age: GaugeVec::new(Opts::new("age", "age"), &["partition"]).unwrap(),
            users_in_memory: gauges("memory", &["partition"]),
            checkpoint: gauges("checkpoint", &["partition"]),
            time_ahead: gauges("ahead", &["partition"]),
            state: gauges("state", &["partition", "state"]),
            held: gauges("held", &["partition"]),
            overdue: gauges("overdue", &["partition"]),
            users: gauges("users", &["status"]),
            devices: gauges("devices", &["platform", "status"]),
        }
    }

    fn figures(state: &'static str, online: u64, platform: &str) -> Figures {
        Figures {
            state,
            lag: Some(3),
            log_time_age_ms: Some(1_500),
            held_s: 0,
            overdue_s: Some(0),
            users_in_memory: 5,
            users: Status::ALL.map(|status| (status, if status == Status::Online { online } else { 1 })),
            devices: vec![(Status::Online, platform.into(), online)],
        }
    }

    /// Returns every value of a family, by its labels.
    fn shown(gauges: &impl Collector) -> BTreeMap<String, f64> {
        let families = gauges.collect();
        let metrics = families.iter().flat_map(|family| family.get_metric());
        let one = |metric: &prometheus::proto::Metric| {
            let labels: Vec<&str> = metric.get_label().iter().map(|label| label.value()).collect();
            (labels.join(" "), metric.get_gauge().get_value())
        };
        metrics.map(one).collect()
    }

    fn map<const N: usize>(expected: [(&str, f64); N]) -> BTreeMap<String, f64> {
        expected.map(|(labels, value)| (labels.to_owned(), value)).into()
    }

    #[test]
    fn users_and_devices_are_summed_over_the_partitions_that_are_here() {
        let mut partitions = partitions();
        partitions.report(0, figures("live", 10, "android"));
        partitions.report(1, figures("restoring", 20, "web"));
        partitions.report(2, figures("live", 30, "web"));
        partitions.sum();
        let users = map([("offline", 3.0), ("push_online", 3.0), ("online", 60.0)]);
        assert_eq!(shown(&partitions.users), users);
        assert_eq!(
            shown(&partitions.devices),
            map([("android online", 10.0), ("web online", 50.0)])
        );
        partitions.remove(0);
        partitions.sum();
        assert_eq!(shown(&partitions.users)["online"], 50.0);
        assert_eq!(shown(&partitions.devices), map([("web online", 50.0)]));
    }

    #[test]
    fn a_partition_has_one_state_and_leaves_nothing_behind_when_it_is_given_away() {
        let mut partitions = partitions();
        partitions.report(7, figures("restoring", 1, "web"));
        partitions.report(7, figures("live", 1, "web"));
        partitions.report(8, figures("failed", 1, "web"));
        assert_eq!(shown(&partitions.state), map([("7 live", 1.0), ("8 failed", 1.0)]));
        partitions.checkpointed(7, 100);
        partitions.remove(7);
        // The checkpoint is published a moment after the handover.
        partitions.checkpointed(7, 200);
        for gauges in [
            &partitions.lag,
            &partitions.users_in_memory,
            &partitions.held,
            &partitions.overdue,
        ] {
            assert_eq!(shown(gauges).into_keys().collect::<Vec<_>>(), ["8"]);
        }
        assert_eq!(shown(&partitions.state), map([("8 failed", 1.0)]));
        assert_eq!(shown(&partitions.checkpoint), map([]));
        // The partition is taken over again, and the log's end is unknown: the last known lag stays.
        partitions.report(7, figures("live", 1, "web"));
        let unknown = Figures {
            lag: None,
            ..figures("failed", 1, "web")
        };
        partitions.report(7, unknown);
        assert_eq!(shown(&partitions.lag)["7"], 3.0);
    }

    #[test]
    fn a_lag_is_as_old_as_log_time_and_nothing_to_fold_is_no_lag() {
        let mut partitions = partitions();
        partitions.report(7, figures("live", 1, "web"));
        assert_eq!(shown(&partitions.lag_seconds), map([("7", 1.5)]));
        let quiet = Figures {
            lag: Some(0),
            log_time_age_ms: Some(3_600_000),
            ..figures("live", 1, "web")
        };
        partitions.report(7, quiet);
        assert_eq!(shown(&partitions.lag_seconds), map([("7", 0.0)]));
        assert_eq!(shown(&partitions.log_time_age), map([("7", 3_600.0)]));
        // Before the first record there is no log time.
        let empty = Figures {
            log_time_age_ms: None,
            ..figures("live", 1, "web")
        };
        partitions.report(8, empty);
        partitions.remove(7);
        assert_eq!(shown(&partitions.lag_seconds), map([]));
        assert_eq!(shown(&partitions.log_time_age), map([]));
    }
}
