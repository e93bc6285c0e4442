//! What is said over HTTP: one model for the server, for the clients in this program, and for their documentation.
//!
//! [`routes`] is the table of every route. Whoever serves, asks or documents takes paths, scopes and parameters from
//! there and from nowhere else. [`requests`], [`answers`] and [`error`] are what goes over the wire, [`cursor`] is where a
//! subscription is, [`sse`] writes and reads event streams, [`client`] asks a server, and [`openapi`] is the
//! document of all of it.
//!
//! The frames of WebSockets are not here: they have no body in common with HTTP, and are one file already
//! (`gateway/frames`), which writes them for each connection into one buffer.

pub mod answers;
pub mod client;
pub mod cursor;
pub mod error;
pub mod openapi;
pub mod requests;
pub mod routes;
pub mod sse;
