//! Users as a standby has them, while the owner of their partition does not answer.
//!
//! A standby shows what the owner has committed, and `as_of` says that it has answered. It is asked when the owner refuses
//! the connection, says that it is not ready, or has not answered within [`PATIENCE`]. The owner is waited for all the same,
//! and the first useful answer counts. Who waits for an offset (`at_least`) has chosen to wait, so the owner gets its whole
//! time.

use super::found::{Found, FoundUser};
use super::peers::{Asker, NoAnswer};
use super::users::{ask_node, request_for};
use super::{ApiError, AppState, Peers};
use crate::presence::{Offset, Partition};
use axum::http::StatusCode;
use std::pin::pin;
use std::time::Duration;

/// How long an owner may take to answer before a standby is asked beside it, and how long each standby may take.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Users of one partition who are looked up together.
pub type Part = (Partition, Vec<String>);

/// What was found out about users, in their order.
pub struct Answered<T> {
    pub found: Vec<Found<T>>,
    /// Why some could not be read.
    pub failure: Option<ApiError>,
}

impl<T: FoundUser> Answered<T> {
    /// Nothing could be read of so many users.
    pub fn failed(count: usize, failure: ApiError) -> Answered<T> {
        let unread = Found::Unread(failure.message().to_owned());
        Answered {
            found: vec![unread; count],
            failure: Some(failure),
        }
    }

    /// Whether it says something of every user.
    pub fn is_complete(&self) -> bool {
        !self.found.iter().any(Found::is_unread)
    }

    /// Takes from another answer about the same users what this one lacks.
    pub fn completed_by(mut self, other: Answered<T>) -> Answered<T> {
        for (found, other) in self.found.iter_mut().zip(other.found) {
            if found.is_unread() && !other.is_unread() {
                *found = other;
            }
        }
        self
    }
}

/// Whether a standby of a partition that can answer is known, here or elsewhere.
pub fn is_known(app: &AppState, partition: Partition, asker: &Asker) -> bool {
    let elsewhere = || {
        !asker.is_node()
            && app
                .peers
                .as_ref()
                .is_some_and(|peers| !peers.standbys(partition).is_empty())
    };
    app.engine.has_standby(partition) || elsewhere()
}

/// Waits for an owner's answer, and asks standbys if it is not useful. With `patience` they are also asked, beside the owner,
/// when it has not answered for so long; then the first useful answer is taken. `either` joins two answers of which the
/// owner's is not useful.
pub async fn owner_or_standbys<T>(
    owner: impl Future<Output = T>,
    standbys: impl Future<Output = Option<T>>,
    patience: Option<Duration>,
    is_useful: impl Fn(&T) -> bool,
    either: impl Fn(T, T) -> T,
) -> T {
    let (mut owner, mut standbys) = (pin!(owner), pin!(standbys));
    let in_time = match patience {
        Some(patience) => tokio::time::timeout(patience, &mut owner).await.ok(),
        None => Some((&mut owner).await),
    };
    let (of_owner, of_standbys) = match in_time {
        Some(answer) if is_useful(&answer) => return answer,
        Some(answer) => (answer, standbys.await),
        None => tokio::select! {
            biased;
            answer = &mut owner => match is_useful(&answer) {
                true => return answer,
                false => (answer, standbys.await),
            },
            found = &mut standbys => match found {
                Some(found) if is_useful(&found) => return found,
                found => (owner.await, found),
            },
        },
    };
    match of_standbys {
        Some(found) if !is_useful(&of_owner) => either(of_owner, found),
        Some(_) | None => of_owner,
    }
}

/// Looks up users of some partitions where these have standbys. `None`: no standby can answer.
pub async fn look_up_parts<T: FoundUser>(app: &AppState, asker: &Asker, parts: &[Part]) -> Option<Answered<T>> {
    let each = parts.iter().map(async |(partition, users)| {
        let answer = look_up(app, asker, *partition, users, None).await;
        let missing = || vec![Found::Unread("no standby has answered".to_owned()); users.len()];
        answer.unwrap_or_else(missing)
    });
    let found: Vec<Found<T>> = futures_util::future::join_all(each).await.concat();
    let is_any_read = !found.iter().all(Found::is_unread);
    is_any_read.then_some(Answered { found, failure: None })
}

/// Looks up users of a partition where it has a standby, in their order. `None`: no standby can answer.
pub async fn look_up<T: FoundUser>(
    app: &AppState,
    asker: &Asker,
    partition: Partition,
    users: &[String],
    at_least: Option<Offset>,
) -> Option<Vec<Found<T>>> {
    let here = app
        .engine
        .users_of_standby(partition, users.to_vec(), at_least, T::here());
    if let Ok(Ok(rows)) = tokio::time::timeout(PATIENCE, here).await {
        return Some(rows.into_iter().map(Found::of).collect());
    }
    let peers = app.peers.as_ref().filter(|_| !asker.is_node())?;
    for url in peers.standbys(partition) {
        let answer = async {
            match users {
                [user] => ask_for_one(peers, &url, user, at_least).await.map(|found| vec![found]),
                users => ask_node(peers, &url, users.to_vec()).await.ok(),
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await.ok().flatten();
        if let Some(found) = answer.filter(|found| !found.iter().all(Found::is_unread)) {
            return Some(found);
        }
    }
    None
}

async fn ask_for_one<T: FoundUser>(peers: &Peers, url: &str, user: &str, at_least: Option<Offset>) -> Option<Found<T>> {
    match peers.ask(url, request_for(user, at_least)).await {
        Ok(object) => T::elsewhere(object).ok().map(|(_, found)| Found::Known(found)),
        Err(NoAnswer::Refused { status, .. }) if status == StatusCode::NOT_FOUND => Some(Found::Unknown),
        Err(NoAnswer::Refused { .. } | NoAnswer::Unreached(_) | NoAnswer::Unreadable { .. }) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    /// Asks an owner and standbys of which each answers after so long; an answer below 0 is not useful.
    async fn asked(owner: (u64, i32), standbys: (u64, Option<i32>), patience: Option<Duration>) -> i32 {
        let after = async |ms| tokio::time::sleep(Duration::from_millis(ms)).await;
        let owner = async {
            after(owner.0).await;
            owner.1
        };
        let standbys = async {
            after(standbys.0).await;
            standbys.1
        };
        owner_or_standbys(owner, standbys, patience, |answer| *answer >= 0, |_, found| found).await
    }

    #[tokio::test]
    async fn the_first_useful_answer_of_owner_and_standbys_counts() {
        let soon = Some(Duration::from_millis(1));
        assert_eq!(
            asked((0, 1), (0, Some(2)), Some(PATIENCE)).await,
            1,
            "the owner is asked first"
        );
        assert_eq!(asked((0, -1), (0, Some(2)), Some(PATIENCE)).await, 2);
        assert_eq!(asked((0, -1), (0, None), Some(PATIENCE)).await, -1, "nobody can answer");
        assert_eq!(
            asked((50, 1), (0, None), soon).await,
            1,
            "the owner is waited for all the same"
        );
        assert_eq!(asked((50, 1), (0, Some(-2)), soon).await, 1);
        assert_eq!(asked((50, -1), (0, None), soon).await, -1);
        assert_eq!(asked((20, -1), (50, Some(2)), soon).await, 2);
        assert_eq!(
            asked((20, 1), (0, Some(2)), None).await,
            1,
            "without patience the owner has its time"
        );
        let late = owner_or_standbys(pending(), ready(Some(2)), soon, |_| true, |_, found| found);
        assert_eq!(late.await, 2, "the owner does not answer at all");
    }
}
