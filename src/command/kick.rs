//! `rollcall kick`: an operator ends a user's connections.

use super::remote::{Server, printed};
use super::users;
use crate::api::answers::{AppendedPlaces, EventsAnswer};
use crate::api::requests::{NewEvent, TypeName};
use crate::api::routes::RouteId;
use crate::clock::{Clock as _, Deadline, SystemClock};
use crate::presence::event::EventType;
use anyhow::{Context as _, bail};
use std::io::Write as _;
use std::time::Duration;

/// Ends a user's logins: all of them, those of one platform, or one device
///
/// Publishes a `kick` event, which requires a token with the scope admin, waits until the event is processed, and shows the
/// user. The gateways close the connections.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The user's id
    user: String,
    /// Only the devices of this platform, such as android
    #[arg(long, value_name = "NAME")]
    platform: Option<String>,
    /// Only this device; requires --platform
    #[arg(long, value_name = "ID", requires = "platform")]
    device: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// How long the event may take until it is processed, and the pause between two checks whether it is.
const WITHIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(kick(args))
}

fn kick(args: Args) -> anyhow::Result<()> {
    let client = args.server.client()?;
    if users::one(&client, &args.user)?.is_none() {
        bail!(
            "no user {:?} is known at {}, so there is nothing to end",
            args.user,
            client.url()
        );
    }
    let event = NewEvent {
        kind: TypeName(EventType::Kick),
        user: Some(args.user.clone()),
        platform: args.platform.clone(),
        device: args.device.clone(),
        ..NewEvent::default()
    };
    let answer: EventsAnswer = client.post(RouteId::Events, &[event])?.read()?;
    let place = match answer.appended.first() {
        Some(AppendedPlaces::One(place)) => place.partition.zip(place.offset),
        Some(AppendedPlaces::Many(_)) | None => None,
    };
    let (partition, offset) = place.context("the server's answer does not name the event's offset")?;
    let clock = SystemClock::new();
    let deadline = Deadline::after(&clock, WITHIN);
    loop {
        if let Some((user, raw)) = users::one(&client, &args.user)?
            && user.as_of.offset.is_some_and(|folded| folded >= offset)
        {
            let text = match args.server.json {
                true => format!("{}\n", raw.get()),
                false => users::page(&user, clock.now_ms()),
            };
            std::io::stdout().lock().write_all(text.as_bytes())?;
            return Ok(());
        }
        if deadline.has_passed(&clock) {
            bail!(
                "the kick is in the log (partition {partition}, offset {offset}) but was not processed within ten seconds; it \
                 will be processed later, see `rollcall stats` for the partition's lag"
            )
        }
        std::thread::sleep(POLL);
    }
}
