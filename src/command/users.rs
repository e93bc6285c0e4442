//! `rollcall users`: shows what a running server knows about users.

use super::remote::{Client, Response, Server, printed};
use super::table::{columns, plain, relative};
use crate::api::answers::{Unread, User, UserDevice, Users};
use crate::api::requests::UsersQuery;
use crate::api::routes::RouteId;
use crate::clock::{Clock as _, SystemClock};
use anyhow::bail;
use serde_json::value::RawValue;
use std::io::Write as _;

/// Shows the status and the devices of users, as a running server knows them
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Shows one user with all devices
    Get {
        /// The user's id
        user: String,
        #[command(flatten)]
        server: Server,
    },
    /// Shows several users, one line each
    Query {
        /// The users' ids, 1 to 1000
        #[arg(required = true)]
        users: Vec<String>,
        #[command(flatten)]
        server: Server,
    },
}

/// Asks for users. Ids are in the body, since some ids cannot be written in a path.
fn query(client: &Client, users: &[String]) -> anyhow::Result<Response> {
    let query = UsersQuery {
        users: users.to_vec().into(),
    };
    client.post(RouteId::UsersQuery, &query)
}

/// Returns one user, decoded and as raw JSON. None if the server does not know the user.
pub fn one(client: &Client, user: &str) -> anyhow::Result<Option<(User, Box<RawValue>)>> {
    let answer = query(client, &[user.to_owned()])?;
    let raw: Box<RawValue> = answer.read()?;
    let found: Users<&RawValue> = serde_json::from_str(raw.get())?;
    if let Some(unread) = found.unread.first() {
        bail!("{} cannot answer now, try again: {}", client.url(), unread.why);
    }
    match found.users.first() {
        Some(user) => Ok(Some((serde_json::from_str(user.get())?, (*user).to_owned()))),
        None => Ok(None),
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(match args.what {
        What::Get { user, server } => get(&user, &server),
        What::Query { users, server } => show_many(&users, &server),
    })
}

fn get(user: &str, server: &Server) -> anyhow::Result<()> {
    let client = server.client()?;
    let Some((known, raw)) = one(&client, user)? else {
        bail!("no user {user:?} is known at {}", client.url());
    };
    let text = match server.json {
        true => format!("{}\n", raw.get()),
        false => page(&known, SystemClock::new().now_ms()),
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Returns the table of one user with all devices.
pub fn page(user: &User, now_ms: u64) -> String {
    let when = |ms: Option<u64>| ms.map_or_else(|| "-".to_owned(), |ms| relative(ms, now_ms));
    let mut head = vec![
        vec!["user".to_owned(), user.user.clone()],
        vec![
            "status".to_owned(),
            format!("{}, since {}", user.status, when(Some(user.since))),
        ],
        vec!["last seen".to_owned(), when(Some(user.last_seen))],
        vec!["version".to_owned(), user.version.to_string()],
    ];
    if let Some(text) = &user.custom_status {
        head.push(vec!["custom status".to_owned(), text.clone()]);
    }
    let mut text = columns(&head);
    if user.devices.is_empty() {
        return text;
    }
    let titles = [
        "PLATFORM",
        "DEVICE",
        "STATUS",
        "GATEWAY",
        "CONN",
        "SINCE",
        "LAST SEEN",
        "NEXT",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for device in &user.devices {
        rows.push(vec![
            device.platform.clone(),
            device.device.clone(),
            device.status.clone(),
            device.gateway.clone(),
            device.conn.to_string(),
            when(Some(device.since)),
            when(device.last_seen),
            next(device, &when(Some(device.deadline))),
        ]);
    }
    text.push('\n');
    text.push_str(&columns(&rows));
    text
}

/// What happens to a device by itself at its deadline.
fn next(device: &UserDevice, when: &str) -> String {
    match (device.state.as_str(), &device.lingering) {
        ("online", None) => format!("lost {when} unless seen"),
        ("online", Some(_)) => format!("loses its link {when}"),
        ("away", _) => format!("logged out {when}"),
        ("kicked", _) => format!("kick forgotten {when}"),
        // A newer server may know more.
        (state, _) => format!("{state} ends {when}"),
    }
}

fn show_many(users: &[String], server: &Server) -> anyhow::Result<()> {
    let client = server.client()?;
    let answer = query(&client, users)?;
    let raw: Box<RawValue> = answer.read()?;
    let found: Users<&RawValue> = serde_json::from_str(raw.get())?;
    if server.json {
        answer.print()?;
        return all_read(&found.unread);
    }
    let now_ms = SystemClock::new().now_ms();
    let titles = ["USER", "STATUS", "SINCE", "DEVICES"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for user in &found.users {
        let user: User = serde_json::from_str(user.get())?;
        let devices = user.devices.iter();
        let devices: Vec<String> = devices
            .map(|device| format!("{}/{} {}", device.platform, device.device, device.status))
            .collect();
        rows.push(vec![
            user.user.clone(),
            user.status.clone(),
            relative(user.since, now_ms),
            devices.join(", "),
        ]);
    }
    let unknown = found.unknown.into_iter();
    rows.extend(unknown.map(|user| vec![user, "unknown".to_owned()]));
    let mut output = std::io::stdout().lock();
    output.write_all(columns(&rows).as_bytes())?;
    for Unread { user, why } in &found.unread {
        eprintln!("warning: cannot read user {}: {}", plain(user), plain(why));
    }
    all_read(&found.unread)
}

/// Fails if a user could not be read: a program sees by the status that this is not all.
fn all_read(unread: &[Unread]) -> anyhow::Result<()> {
    match unread.len() {
        0 => Ok(()),
        count => bail!("{count} of the users could not be read; ask again for them"),
    }
}
