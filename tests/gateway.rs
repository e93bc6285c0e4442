//! The WebSocket gateway through real sockets: its frames, the events it publishes, the clients it refuses, and the failures it
//! survives.
//!
//! Most tests use a gateway in this process on a log in memory ([`house`]). Tests that kill or restart a process use the real
//! binary ([`process`]).

#[path = "gateway/certificate.rs"]
mod certificate;
#[path = "gateway/client.rs"]
mod client;
#[path = "gateway/hostile.rs"]
mod hostile;
#[path = "gateway/house.rs"]
mod house;
#[path = "gateway/javascript.rs"]
mod javascript;
#[path = "gateway/lease.rs"]
mod lease;
#[path = "gateway/load.rs"]
mod load;
#[path = "gateway/outage.rs"]
mod outage;
#[path = "gateway/policies.rs"]
mod policies;
#[path = "gateway/process.rs"]
mod process;
#[path = "gateway/protocol.rs"]
mod protocol;
#[path = "gateway/subscriptions.rs"]
mod subscriptions;
#[path = "gateway/tasks.rs"]
mod tasks;
#[path = "gateway/tls.rs"]
mod tls;
#[path = "gateway/tokens.rs"]
mod tokens;
