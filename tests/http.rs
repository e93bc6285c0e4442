//! The HTTP face from outside: what it answers, what it refuses and how, and how the process ends.
//!
//! Most of it is asked of a server in this process on a log in memory ([`house`]), where time stands still and records
//! can be taken away; the rest of the real binary ([`process`]).

#[path = "http/access.rs"]
mod access;
#[path = "http/api.rs"]
mod api;
#[path = "http/client.rs"]
mod client;
#[path = "http/events.rs"]
mod events;
#[path = "http/follow.rs"]
mod follow;
#[path = "http/house.rs"]
mod house;
#[path = "http/overview.rs"]
mod overview;
#[path = "http/process.rs"]
mod process;
#[path = "http/server.rs"]
mod server;
#[path = "http/users.rs"]
mod users;
