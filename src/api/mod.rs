//! What is said over HTTP and WebSockets: one model for the servers, for the clients in this program, and for their
//! documentation.
//!
//! [`routes`] is the table of every route. The server, the clients and the documentation take paths, scopes and
//! parameters from there and from nowhere else. [`requests`], [`answers`] and [`error`] are the bodies, [`tim`] those of
//! the commands of Tencent Cloud IM, [`cursor`] is the position of a subscription, [`sse`] writes and reads event
//! streams, [`frames`] are those of the gateway's WebSockets, [`client`] asks a server, and [`openapi`] describes what is
//! said over HTTP.

pub mod answers;
pub mod client;
pub mod cursor;
pub mod error;
pub mod frames;
pub mod openapi;
pub mod requests;
pub mod routes;
pub mod sse;
pub mod tim;
