//! What is said over HTTP: one model for the server, for the clients in this program, and for their documentation.
//!
//! [`routes`] is the table of every route. The server, the clients and the documentation take paths, scopes
//! and parameters from there and from nowhere else. [`requests`], [`answers`] and [`error`] are the bodies, [`tim`] those of the commands of Tencent Cloud IM, [`cursor`] is the position of
//! a subscription, [`sse`] writes and reads event streams, [`client`] asks a server, and [`openapi`] describes all of it.
//!
//! The frames of WebSockets are in `gateway/frames`: no body of HTTP is also a frame, and frames are written into a
//! buffer that each connection reuses.

pub mod answers;
pub mod client;
pub mod cursor;
pub mod error;
pub mod openapi;
pub mod requests;
pub mod routes;
pub mod sse;
pub mod tim;
