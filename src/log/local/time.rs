//! The time of the log: the machine's clock, within the limits in which the log trusts it.
//!
//! The time of a record is permanent. All deadlines are measured by it, and so is the age at which retention drops
//! records. A wall clock can suddenly be wrong by years. So the log trusts it only within limits, compared with the
//! time that has really passed:
//!
//! | the clock is | what the log does |
//! |---|---|
//! | while it is open, at most 5 minutes ahead of what has really passed | follows the clock |
//! | while it is open, further ahead | refuses events and reports that, until the clock is right or `--accept-time` says that it is |
//! | at a start, at most 90 days after the newest record | follows the clock: the machine may have been off for that long |
//! | at a start, further ahead, or still as far ahead as when the log was closed | refuses events and reports that |
//! | behind | continues with the time that passes, a tenth slower, until the clock has caught up |
//!
//! The 5 minutes are a budget. What was used of it is refilled at a tenth of the time that passes, so that many small
//! steps add up to no more than one budget. While a clock is refused, the budget grows beyond 5 minutes at the same
//! rate. So a virtual machine that was paused for a quarter of an hour continues without help after less than two
//! hours.
//!
//! If the clock jumped ahead and was refused, the file `CLOCK` beside RocksDB records it, so that a restart alone does
//! not make the log trust the clock.

use crate::clock::Clock;
use crate::log::Error;
use chrono::{DateTime, SecondsFormat};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How far the clock may be ahead of the time that has really passed.
const AHEAD: Duration = Duration::from_secs(5 * 60);
/// A clock that is ahead by at most this is not worth a refusal.
const LITTLE: Duration = Duration::from_secs(1);
/// How long the machine may have been off.
const OFF: Duration = Duration::from_secs(90 * 24 * 3_600);
/// How close the clock must be to the time that an operator has confirmed.
const ACCEPTED: Duration = Duration::from_secs(3_600);
/// No clock reaches this time: 2^53 milliseconds, the greatest number that every JSON parser represents exactly.
pub(super) const TIME_MAX_MS: u64 = 1 << 53;

const NAME: &str = "CLOCK";

/// The clock of the log; see the module documentation.
pub(super) struct LogClock {
    clock: Arc<dyn Clock>,
    file: PathBuf,
    state: Mutex<State>,
}

struct State {
    line: ClockReference,
    /// The clock is refused at present.
    is_refused: bool,
    /// The file `CLOCK` exists.
    is_noted: bool,
}

/// Log time at a moment, and what the clock is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ClockReference {
    /// Log time, since 1970.
    time: Duration,
    /// When the log had this time, by [`Clock::passed`].
    at: Duration,
    basis: Basis,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Basis {
    /// There is no record to compare with.
    Nothing,
    /// The log was opened, and the clock has not been trusted since. If the clock was refused when the log was closed,
    /// `unless` is the time from which on it stays refused.
    Start { unless: Option<Duration> },
    /// The clock was trusted. `used` is the part of the budget that is used up.
    Running { used: Duration },
}

/// Why the clock is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ClockDoubt {
    /// The clock is too far ahead of the time that has really passed, which is `expected`.
    Jumped { expected: Duration },
    /// At a start, the clock is further ahead than a machine that was off can explain.
    Late { last: Duration },
    /// The clock jumped ahead before the log was closed, and was not set back.
    StillJumped { last: Duration },
}

impl ClockReference {
    /// Returns the reference for the moment given by the clock (`wall`) and by the time passed (`at`). `is_refused`:
    /// the clock has been refused since the last reference.
    fn follow(self, wall: Duration, at: Duration, is_refused: bool) -> Result<ClockReference, ClockDoubt> {
        let passed = at.saturating_sub(self.at);
        let real = self.time.saturating_add(passed);
        let slow = self.time.saturating_add(passed - passed / 10);
        let on = |time, basis| Ok(ClockReference { time, at, basis });
        let Some(ahead) = wall.checked_sub(real) else {
            let time = wall.max(slow);
            let basis = match self.basis {
                Basis::Running { used } => Basis::Running {
                    used: used.saturating_sub(real - time),
                },
                Basis::Nothing | Basis::Start { .. } if wall >= slow => Basis::Running { used: Duration::ZERO },
                basis @ (Basis::Nothing | Basis::Start { .. }) => basis,
            };
            return on(time, basis);
        };
        match self.basis {
            Basis::Nothing => on(wall, Basis::Running { used: Duration::ZERO }),
            Basis::Start { unless: Some(jumped) } if wall >= jumped => Err(ClockDoubt::StillJumped { last: self.time }),
            Basis::Start { .. } if ahead > OFF => Err(ClockDoubt::Late { last: self.time }),
            Basis::Start { .. } => on(wall, Basis::Running { used: Duration::ZERO }),
            Basis::Running { used } => {
                let refill = passed / 10;
                let rest = used.saturating_sub(refill);
                // The budget exceeds its normal limit only while a clock is refused.
                let extra = if is_refused {
                    refill.saturating_sub(used)
                } else {
                    Duration::ZERO
                };
                if rest.saturating_add(ahead) <= AHEAD.saturating_add(extra) {
                    let used = rest.saturating_add(ahead).min(AHEAD);
                    return on(wall, Basis::Running { used });
                }
                if ahead <= LITTLE {
                    // The clock is followed again when the budget is refilled.
                    return on(real, Basis::Running { used: rest });
                }
                Err(ClockDoubt::Jumped { expected: real })
            }
        }
    }

    /// Returns the log time computed from the time that has passed, ignoring the clock.
    fn without_clock(self, at: Duration) -> Duration {
        self.time.saturating_add(at.saturating_sub(self.at))
    }
}

impl LogClock {
    /// Starts the clock. `last_ms` is the time of the newest record. `accepted_ms` is the time that an operator has
    /// confirmed; if the clock is within an hour of it, the clock is trusted.
    pub fn start(clock: Arc<dyn Clock>, dir: &Path, last_ms: Option<u64>, accepted_ms: Option<u64>) -> LogClock {
        let file = dir.join(NAME);
        let jumped = read(&file);
        let (wall, at) = (wall(&*clock), clock.passed());
        let basis = match last_ms {
            None => Basis::Nothing,
            Some(_) => Basis::Start {
                unless: jumped.map(|jumped| jumped.saturating_sub(AHEAD)),
            },
        };
        let mut line = ClockReference {
            time: Duration::from_millis(last_ms.unwrap_or(0)),
            at,
            basis,
        };
        if let Some(accepted) = accepted_ms.map(Duration::from_millis) {
            if wall.abs_diff(accepted) > ACCEPTED {
                tracing::warn!(
                    clock = shown(wall),
                    "--accept-time has no effect: the machine's clock is not within an hour of it"
                );
            } else if line.follow(wall, at, false).is_err() {
                tracing::warn!(
                    clock = shown(wall),
                    newest_record = shown(line.time),
                    "the machine's clock is accepted as right, as --accept-time says"
                );
                let basis = Basis::Running { used: Duration::ZERO };
                line = ClockReference { time: wall, at, basis };
            }
        }
        LogClock {
            clock,
            file,
            state: Mutex::new(State {
                line,
                is_refused: false,
                is_noted: jumped.is_some(),
            }),
        }
    }

    /// Returns the time for events that are appended now, in milliseconds, or the reason why none can be appended.
    pub fn stamp_ms(&self) -> Result<u64, Error> {
        let (wall, at) = (wall(&*self.clock), self.clock.passed());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.line.follow(wall, at, state.is_refused) {
            Ok(line) => {
                state.line = line;
                if std::mem::take(&mut state.is_refused) {
                    tracing::info!(clock = shown(wall), "the machine's clock is trusted again");
                }
                if state.is_noted && matches!(line.basis, Basis::Running { .. }) {
                    match std::fs::remove_file(&self.file) {
                        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                            tracing::warn!(%error, file = %self.file.display(), "the note about the clock cannot be removed");
                        }
                        _ => state.is_noted = false,
                    }
                }
                Ok(millis(line.time))
            }
            Err(doubt) => {
                let why = sentence(doubt, wall);
                if !std::mem::replace(&mut state.is_refused, true) {
                    tracing::error!("{why}");
                    if let ClockDoubt::Jumped { .. } = doubt {
                        match write(&self.file, wall) {
                            Ok(()) => state.is_noted = true,
                            Err(error) => {
                                tracing::warn!(%error, file = %self.file.display(), "the note about the clock cannot be written");
                            }
                        }
                    }
                }
                Err(Error::Write(why.into()))
            }
        }
    }

    /// Returns the present time of the log in milliseconds. It never decreases. While the clock is refused, it advances
    /// with the time that passes.
    pub fn now_ms(&self) -> u64 {
        let (wall, at) = (wall(&*self.clock), self.clock.passed());
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let followed = state.line.follow(wall, at, state.is_refused).map(|line| line.time);
        millis(followed.unwrap_or_else(|_| state.line.without_clock(at)))
    }
}

fn wall(clock: &dyn Clock) -> Duration {
    Duration::from_millis(clock.now_ms())
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a time in UTC, or in milliseconds if it is outside the calendar's range.
pub(super) fn shown(time: Duration) -> String {
    let date = i64::try_from(time.as_millis())
        .ok()
        .and_then(DateTime::from_timestamp_millis);
    match date {
        Some(date) => date.to_rfc3339_opts(SecondsFormat::Secs, true),
        None => format!("{} ms", time.as_millis()),
    }
}

fn sentence(doubt: ClockDoubt, wall: Duration) -> String {
    let now = shown(wall);
    let why = match doubt {
        ClockDoubt::Jumped { expected } => {
            let ahead = wall.saturating_sub(expected).as_secs();
            let expected = shown(expected);
            format!(
                "the machine's clock jumped ahead: it says {now}, which is {ahead} s later than the time that has really \
                 passed ({expected})"
            )
        }
        ClockDoubt::Late { last } => {
            let (days, last) = (wall.saturating_sub(last).as_secs() / 86_400, shown(last));
            let most = OFF.as_secs() / 86_400;
            format!(
                "the machine's clock says {now}, {days} days after the newest record of the log ({last}), and at a start \
                 it is trusted for at most {most} days"
            )
        }
        ClockDoubt::StillJumped { last } => {
            let last = shown(last);
            format!(
                "the machine's clock says {now}: it jumped ahead while the log was last open, and was not set back; the \
                 newest record of the log is of {last}"
            )
        }
    };
    format!(
        "{why}. No events are accepted, since a wrong time would expire everything and could not be undone. Set the clock \
         right, and the log continues by itself; if it is right, restart with --accept-time {now}"
    )
}

/// Reads where the clock had jumped to, if it was refused when the log was closed.
fn read(file: &Path) -> Option<Duration> {
    match std::fs::read_to_string(file) {
        Ok(text) => {
            let jumped = text.trim().parse().ok().map(Duration::from_millis);
            if jumped.is_none() {
                tracing::warn!(file = %file.display(), "the note about the clock cannot be read and is ignored");
            }
            jumped
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "the note about the clock cannot be read and is ignored");
            None
        }
    }
}

fn write(file: &Path, jumped: Duration) -> std::io::Result<()> {
    let mut written = File::create(file)?;
    writeln!(written, "{}", jumped.as_millis())?;
    written.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const NOW: u64 = 1_800_000_000_000;
    const MINUTE: u64 = 60_000;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;

    struct World {
        clock: Arc<ManualClock>,
        dir: tempfile::TempDir,
        log: LogClock,
    }

    impl World {
        fn new(last_ms: Option<u64>, now_ms: u64) -> World {
            let clock = Arc::new(ManualClock::new(now_ms));
            let dir = tempfile::tempdir().unwrap();
            let log = LogClock::start(clock.clone(), dir.path(), last_ms, None);
            World { clock, dir, log }
        }

        /// Simulates a restart of the process.
        fn restart(&mut self, last_ms: u64, accepted_ms: Option<u64>) {
            self.log = LogClock::start(self.clock.clone(), self.dir.path(), Some(last_ms), accepted_ms);
        }

        fn step_ms(&self, ms: i64) {
            self.clock.set_ms(self.clock.now_ms().saturating_add_signed(ms));
        }

        fn refused(&self) -> String {
            self.log.stamp_ms().expect_err("refused").to_string()
        }
    }

    #[test]
    fn a_clock_that_jumps_ahead_while_the_log_is_open_is_not_believed_until_it_is_right_again() {
        for step in [5 * MINUTE + 1, HOUR, 40 * DAY, 36_500 * DAY, u64::MAX - NOW] {
            let world = World::new(Some(NOW - MINUTE), NOW);
            assert_eq!(world.log.stamp_ms().unwrap(), NOW);
            world.clock.set_ms(NOW + step);
            world.clock.advance_ms(0);
            let why = world.refused();
            assert!(why.contains("jumped ahead") && why.contains("--accept-time"), "{why}");
            assert_eq!(world.log.now_ms(), NOW, "nor does it move the time of the log");
            world.clock.set_ms(NOW);
            world.clock.advance_ms(1_000);
            assert_eq!(world.log.stamp_ms().unwrap(), NOW + 1_000);
        }
    }

    #[test]
    fn a_machine_that_was_paused_for_a_quarter_of_an_hour_goes_on_after_a_while() {
        let world = World::new(None, NOW);
        assert!(world.log.stamp_ms().is_ok());
        world.step_ms(15 * MINUTE as i64);
        for _ in 0..100 {
            assert!(world.log.stamp_ms().is_err());
            world.clock.advance_ms(MINUTE);
        }
        world.clock.advance_ms(MINUTE);
        assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
        for _ in 0..1_000 {
            // From here on the log is on time, except for clock jitter.
            world.clock.advance_ms(5);
            world.step_ms(1);
            let behind = world.clock.now_ms() - world.log.stamp_ms().unwrap();
            assert!(behind <= 1_000, "{behind}");
            world.step_ms(-1);
        }
        world.step_ms(2 * MINUTE as i64);
        assert!(world.log.stamp_ms().is_err(), "the stock is used up");
    }

    #[test]
    fn many_small_steps_come_to_no_more_than_one() {
        let world = World::new(None, NOW);
        assert_eq!(world.log.stamp_ms().unwrap(), NOW);
        let mut taken = 0;
        for _ in 0..600 {
            // A minute passes, and the clock advances by two.
            world.clock.advance_ms(MINUTE);
            world.step_ms(MINUTE as i64);
            taken += u64::from(world.log.stamp_ms().is_ok());
            if world.log.stamp_ms().is_err() {
                world.step_ms(-(MINUTE as i64));
            }
        }
        let ahead = world.log.now_ms() - (NOW + 600 * MINUTE);
        assert!(taken >= 5, "{taken}");
        assert!(ahead <= 5 * MINUTE + 600 * MINUTE / 10, "{ahead}");
    }

    #[test]
    fn a_clock_that_is_corrected_a_little_is_followed() {
        let world = World::new(None, NOW);
        for correction in [4 * MINUTE as i64, -20, 35, 0, 900] {
            world.clock.advance_ms(HOUR);
            world.step_ms(correction);
            assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
        }
        for _ in 0..10_000 {
            world.clock.advance_ms(3);
            assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
        }
    }

    #[test]
    fn behind_a_clock_that_was_set_back_time_goes_on_and_meets_it_again() {
        let world = World::new(None, NOW);
        assert_eq!(world.log.stamp_ms().unwrap(), NOW);
        world.step_ms(-(HOUR as i64));
        let mut before = NOW;
        for _ in 0..660 {
            world.clock.advance_ms(MINUTE);
            let now = world.log.stamp_ms().unwrap();
            assert!(now >= before + MINUTE * 9 / 10, "{now} {before}");
            before = now;
        }
        assert_eq!(
            before,
            world.clock.now_ms(),
            "a tenth of eleven hours is more than an hour"
        );
        // The clock is set back by mistake and then corrected.
        world.step_ms(-(DAY as i64));
        world.clock.advance_ms(MINUTE);
        assert!(world.log.stamp_ms().is_ok());
        world.step_ms(DAY as i64);
        assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
    }

    #[test]
    fn a_machine_that_was_off_for_a_month_starts_without_help() {
        for off in [0, MINUTE, 30 * DAY, 89 * DAY] {
            let world = World::new(Some(NOW - off), NOW);
            assert_eq!(world.log.now_ms(), NOW);
            assert_eq!(world.log.stamp_ms().unwrap(), NOW);
        }
        for off in [91 * DAY, 3_650 * DAY] {
            let mut world = World::new(Some(NOW - off), NOW);
            let why = world.refused();
            assert!(
                why.contains("days after the newest record") && why.contains("2027-01-15T08:00:00Z"),
                "{why}"
            );
            world.restart(NOW - off, Some(NOW + MINUTE));
            assert_eq!(world.log.stamp_ms().unwrap(), NOW);
            world.restart(NOW - off, Some(NOW - 2 * HOUR));
            assert!(world.log.stamp_ms().is_err(), "what was accepted is another time");
        }
    }

    #[test]
    fn a_clock_that_was_not_set_at_the_start_is_believed_when_it_is() {
        for wrong in [0, 1_000, NOW - 400 * DAY, NOW - MINUTE] {
            let world = World::new(Some(NOW), wrong);
            world.clock.advance_ms(10_000);
            assert_eq!(world.log.stamp_ms().unwrap(), NOW + 9_000, "by what passes");
            world.clock.set_ms(NOW + DAY);
            assert_eq!(world.log.stamp_ms().unwrap(), NOW + DAY);
            world.step_ms(DAY as i64);
            assert!(world.refused().contains("jumped ahead"));
        }
    }

    #[test]
    fn a_restart_is_no_reason_to_believe_a_clock_that_jumped() {
        let mut world = World::new(Some(NOW), NOW);
        assert_eq!(world.log.stamp_ms().unwrap(), NOW);
        world.step_ms(40 * DAY as i64);
        assert!(world.log.stamp_ms().is_err());
        world.restart(NOW, None);
        world.clock.advance_ms(MINUTE);
        let why = world.refused();
        assert!(
            why.contains("was not set back") && why.contains("--accept-time"),
            "{why}"
        );
        world.restart(NOW, None);
        assert!(world.log.stamp_ms().is_err());
        // An operator confirms that the clock is right; this also holds for later starts.
        world.restart(NOW, Some(world.clock.now_ms()));
        assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
        world.restart(world.clock.now_ms(), None);
        assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());

        // In the second case the clock is set back while the log is closed.
        world.step_ms(40 * DAY as i64);
        assert!(world.log.stamp_ms().is_err());
        world.step_ms(-(40 * DAY as i64));
        world.clock.advance_ms(DAY);
        world.restart(world.clock.now_ms() - DAY, None);
        assert_eq!(world.log.stamp_ms().unwrap(), world.clock.now_ms());
        assert!(!world.dir.path().join(NAME).exists());
    }

    #[test]
    fn a_new_log_takes_the_clock_as_it_is() {
        let world = World::new(None, NOW);
        assert_eq!(world.log.stamp_ms().unwrap(), NOW);
    }
}
