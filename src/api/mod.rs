//! What is said over HTTP: one model for the server, for the clients in this program, and for their documentation.
//!
//! [`routes`] is the table of every route. Whoever serves, asks or documents takes paths, scopes and parameters from
//! there and from nowhere else.

pub mod routes;
