//! Tickets: what a page's own server asks for with its bearer token, and the page puts into the address of a
//! subscription, since a browser's `EventSource` can send no header.
//!
//! A ticket reads subscriptions, for a minute, and of some users alone if it says so. It is signed with the token it was
//! asked for with, so every node that has the token knows it, nothing is kept, and it ends with the token.

use super::access::{Access, Grant};
use super::payload::Payload;
use super::{ApiError, AppState};
use crate::api::answers::Ticket;
use crate::api::requests::{TICKET_USERS_MAX, Texts, TicketRequest};
use crate::presence::event::bounds;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::sync::Arc;

/// For how long a ticket opens subscriptions, in milliseconds.
pub const TICKET_MS: u64 = 60_000;
const USERS_BYTES_MAX: usize = 8_192;
/// The context of the signature. Another form of ticket would have another one.
const CONTEXT: &str = "rollcall 2026-11 ticket v1";
const MAC_BYTES: usize = 16;

/// What a subscription that was opened with a ticket may follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limited {
    /// Empty: everybody.
    pub users: Arc<[String]>,
}

fn mac(token: &blake3::Hash, signed: &[u8]) -> [u8; MAC_BYTES] {
    let key = blake3::derive_key(CONTEXT, token.as_bytes());
    let mut mac = [0; MAC_BYTES];
    mac.copy_from_slice(&blake3::keyed_hash(&key, signed).as_bytes()[..MAC_BYTES]);
    mac
}

/// Whether two are the same, in a time that says nothing of where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Signs a ticket with a token, by the hash that is known of it.
pub fn sign(token: &blake3::Hash, until_ms: u64, users: &[String]) -> String {
    let mut ticket = until_ms.to_be_bytes().to_vec();
    for user in users {
        // A user has at most 128 bytes.
        ticket.push(user.len() as u8);
        ticket.extend_from_slice(user.as_bytes());
    }
    let mac = mac(token, &ticket);
    ticket.extend_from_slice(&mac);
    URL_SAFE_NO_PAD.encode(ticket)
}

/// Verifies a ticket against the tokens that may have signed it; which did, and what it is limited to.
pub fn verify<'t>(
    ticket: &str,
    mut tokens: impl Iterator<Item = &'t blake3::Hash>,
    now_ms: u64,
) -> Result<(&'t blake3::Hash, Limited), ApiError> {
    let refused = |code, message: &str| ApiError::new(StatusCode::UNAUTHORIZED, code, message);
    let unknown = || {
        refused(
            "unknown_ticket",
            "this ticket is not signed with a token that is known here",
        )
    };
    let bytes = URL_SAFE_NO_PAD.decode(ticket).map_err(|_| unknown())?;
    let at = bytes.len().checked_sub(MAC_BYTES).ok_or_else(unknown)?;
    let (signed, theirs) = bytes.split_at(at);
    let token = tokens
        .find(|token| same(&mac(token, signed), theirs))
        .ok_or_else(unknown)?;
    let (until, mut rest) = signed.split_first_chunk().ok_or_else(unknown)?;
    if u64::from_be_bytes(*until) <= now_ms {
        return Err(refused(
            "ticket_expired",
            "the ticket has expired; ask for another one with POST /v1/tickets and open the subscription again",
        ));
    }
    let mut users = Vec::new();
    while let Some((length, after)) = rest.split_first() {
        let (user, after) = after.split_at_checked((*length).into()).ok_or_else(unknown)?;
        users.push(String::from_utf8(user.to_vec()).map_err(|_| unknown())?);
        rest = after;
    }
    Ok((token, Limited { users: users.into() }))
}

/// `POST /v1/tickets`
pub async fn ticket(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    payload: Payload,
) -> Result<Response, ApiError> {
    if grant.expires_ms.is_some() {
        // Every node has to know what a ticket is signed with, and nobody keeps an issuer's tokens.
        let message = "a ticket must be asked for with a token of --token-file, not with one of the issuer";
        return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let asked: TicketRequest = match payload.bytes.trim_ascii().is_empty() {
        true => TicketRequest::default(),
        false => payload.object()?,
    };
    let is_empty = asked.users.as_ref().is_some_and(|users| users.count == 0);
    let Texts { texts: users, count } = asked.users.unwrap_or_default();
    let (least, most) = bounds::USER_BYTES;
    let bytes: usize = users.iter().map(String::len).sum();
    if is_empty
        || count > TICKET_USERS_MAX
        || bytes > USERS_BYTES_MAX
        || users.iter().any(|user| !(least..=most).contains(&user.len()))
    {
        let message = format!(
            "`users` must have 1 to {TICKET_USERS_MAX} ids of {least} to {most} bytes, {USERS_BYTES_MAX} bytes together; without \
             the field the ticket is for all users"
        );
        return Err(ApiError::bad_request("bad_users", message));
    }
    let until_ms = app.engine.now_ms().saturating_add(TICKET_MS);
    let ticket = sign(&Access::signing(&grant), until_ms, &users);
    Ok(super::answer(&Ticket {
        ticket,
        expires_in_ms: TICKET_MS,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_what_was_signed_until_it_expires() {
        let (one, other) = (blake3::hash(b"one"), blake3::hash(b"other"));
        let users = ["alice".to_owned(), "b".repeat(128)];
        let ticket = sign(&one, 1_000, &users);
        let (by, limited) = verify(&ticket, [&other, &one].into_iter(), 999).expect("good");
        assert_eq!((by, &*limited.users), (&one, &users[..]));
        assert!(verify(&ticket, [&one].into_iter(), 1_000).is_err());
        assert!(verify(&ticket, [&other].into_iter(), 999).is_err());
        let bytes = URL_SAFE_NO_PAD.decode(&ticket).expect("Base64");
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert!(
                verify(&URL_SAFE_NO_PAD.encode(&altered), [&one].into_iter(), 999).is_err(),
                "{at}"
            );
            assert!(
                verify(&URL_SAFE_NO_PAD.encode(&bytes[..at]), [&one].into_iter(), 999).is_err(),
                "{at}"
            );
        }
    }
}
