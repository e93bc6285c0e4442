//! The HTTP interface: its answers, its refusals, and the end of the process.
//!
//! Most tests use a server in this process on a log in memory ([`house`]), where time is fixed and records can be removed. The
//! others use the real binary ([`process`]).

#[path = "http/access.rs"]
mod access;
#[path = "http/api.rs"]
mod api;
mod authority;
#[path = "http/client.rs"]
mod client;
#[path = "http/events.rs"]
mod events;
#[path = "http/fencing.rs"]
mod fencing;
#[path = "http/follow.rs"]
mod follow;
#[path = "http/house.rs"]
mod house;
#[path = "http/incidents.rs"]
mod incidents;
#[path = "http/oidc.rs"]
mod oidc;
#[path = "http/overview.rs"]
mod overview;
#[path = "http/past.rs"]
mod past;
#[path = "http/process.rs"]
mod process;
#[path = "http/server.rs"]
mod server;
#[path = "http/tls.rs"]
mod tls;
#[path = "http/users.rs"]
mod users;
