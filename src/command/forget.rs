//! `rollcall forget`: everything about a user is erased from the state.

use super::remote::{Server, printed};
use super::users;
use crate::api::requests::{NewEvent, TypeName};
use crate::api::routes::RouteId;
use crate::clock::{Deadline, SystemClock};
use crate::presence::event::EventType;
use anyhow::bail;
use std::io::Write as _;
use std::time::Duration;

/// Erases a user from the state: status, devices, custom status
///
/// Publishes a `forget` event, which requires a token with the scope admin, and waits until the event is processed. What the log
/// has of the user stays there until retention removes it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The user's id
    user: String,
    #[command(flatten)]
    server: Server,
}

/// How long the event may take until it is processed, and the pause between two checks whether it is.
const WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(forget(args))
}

fn forget(args: Args) -> anyhow::Result<()> {
    let client = args.server.client()?;
    if users::one(&client, &args.user)?.is_none() {
        bail!(
            "no user {:?} is known at {}, so there is nothing to forget",
            args.user,
            client.url()
        );
    }
    let event = NewEvent {
        kind: TypeName(EventType::Forget),
        user: Some(args.user.clone()),
        ..NewEvent::default()
    };
    let answer = client.post(RouteId::Events, &[event])?;
    let clock = SystemClock::new();
    let deadline = Deadline::after(&clock, WITHIN);
    loop {
        if users::one(&client, &args.user)?.is_none() {
            if args.server.json {
                return answer.print();
            }
            writeln!(
                std::io::stdout().lock(),
                "forgotten. The log keeps the user's earlier events and changes until retention removes them; docs/privacy.md says what \
                 else has copies"
            )?;
            return Ok(());
        }
        if deadline.has_passed(&clock) {
            bail!(
                "the forget event is in the log, but the user was still known ten seconds later: it is not processed yet (see \
                 `rollcall stats` for lag), or the user has logged in again"
            )
        }
        std::thread::sleep(POLL);
    }
}
