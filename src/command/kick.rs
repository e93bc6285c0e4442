//! `rollcall kick`: an operator ends a user's connections.

use super::remote::{Client, Server, printed};
use super::users;
use crate::api::answers::{AppendedPlace, AppendedPlaces, EventsAnswer};
use crate::api::client::RouteRequest;
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
    let body = serde_json::to_vec(&[event])?;
    let asked = RouteRequest::new(RouteId::Events, &[("wait", "applied")]).with_body(body);
    let answer: EventsAnswer = client.send(asked)?.read()?;
    let place = match answer.appended.into_iter().next() {
        Some(AppendedPlaces::One(place)) => Some(place),
        Some(AppendedPlaces::Many(_)) | None => None,
    };
    let place = place.context("the server's answer does not name the event's offset")?;
    let at = place.partition.zip(place.offset);
    let (partition, offset) = at.context("the server's answer does not name the event's offset")?;
    if let Some("ignored" | "malformed") = place.outcome.as_deref() {
        bail!(had_no_effect(&client, &args, &place)?);
    }
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

/// Says that a kick ended nothing, and which devices the user has: most likely a name was misspelt.
fn had_no_effect(client: &Client, args: &Args, place: &AppendedPlace) -> anyhow::Result<String> {
    let mut what = format!("{:?}", args.user);
    if let Some(platform) = &args.platform {
        what.push_str(&format!(" on the platform {platform:?}"));
    }
    if let Some(device) = &args.device {
        what.push_str(&format!(" with the device {device:?}"));
    }
    let devices = users::one(client, &args.user)?.map_or_else(Vec::new, |(user, _)| user.devices);
    let devices: Vec<String> = devices
        .iter()
        .map(|device| format!("{} {:?}", device.platform, device.device))
        .collect();
    let has = match devices.is_empty() {
        true => "no device".to_owned(),
        false => devices.join(", "),
    };
    let why = place.reason.as_deref().unwrap_or("no_effect");
    Ok(format!(
        "nothing was ended ({why}): {what} has no login that the kick could end; {:?} has {has}",
        args.user
    ))
}
