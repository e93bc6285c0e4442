//! The log on Apache Kafka.

pub mod admin;
pub mod settings;
pub mod topics;
