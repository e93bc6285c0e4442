//! Users as a standby has them, while the owner of their partition does not answer.
//!
//! A standby shows what the owner has committed, and `as_of` says that it has answered. It is asked when the owner refuses
//! the connection, says that it is not ready, or has not answered within [`PATIENCE`]. Who waits for an offset (`at_least`)
//! has chosen to wait, so the owner gets its whole time.

use super::peers::Asker;
use super::users::{Found, ask_node, path_of};
use super::{ApiError, AppState, Peers};
use crate::presence::{Offset, Partition};
use axum::http::StatusCode;
use std::time::Duration;

/// How long an owner may take to answer if a standby could answer instead.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a standby of a partition is known, here or elsewhere.
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

/// Waits for an owner's answer, if a standby is known no longer than [`PATIENCE`].
pub async fn unless_late<T>(is_known: bool, answer: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    if !is_known {
        return answer.await;
    }
    let late = |_| {
        let message = format!(
            "the owner of the partition has not answered within {} s",
            PATIENCE.as_secs()
        );
        Err(ApiError::unavailable("moving", message))
    };
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(late)
}

/// Looks up users of a partition where it has a standby, in their order. `None`: no standby can answer.
pub async fn look_up(
    app: &AppState,
    asker: &Asker,
    partition: Partition,
    users: &[String],
    at_least: Option<Offset>,
) -> Option<Vec<Found>> {
    let here = app.engine.users_of_standby(partition, users.to_vec(), at_least).await;
    if let Ok(lines) = here {
        let found = lines.into_iter().map(|line| line.map_or(Found::Unknown, Found::Known));
        return Some(found.collect());
    }
    let peers = app.peers.as_ref().filter(|_| !asker.is_node())?;
    for url in peers.standbys(partition) {
        let answer = match users {
            [user] => ask_for_one(peers, &url, user, at_least).await.map(|found| vec![found]),
            users => ask_node(peers, &url, users.to_vec()).await.ok(),
        };
        if answer.is_some() {
            return answer;
        }
    }
    None
}

async fn ask_for_one(peers: &Peers, url: &str, user: &str, at_least: Option<Offset>) -> Option<Found> {
    let (status, body) = peers.ask(url, &path_of(user, at_least), None).await.ok()?;
    match status {
        StatusCode::OK => Some(Found::Known(body.to_vec())),
        StatusCode::NOT_FOUND => Some(Found::Unknown),
        _ => None,
    }
}
