//! Placeholder until the simulated users are merged.
use crate::clock::Clock;
use std::sync::Arc;
pub struct Settings {
    pub url: String,
    pub token: Option<String>,
    pub users: u32,
}
pub struct Demo;
pub fn start(_: Settings, _: Arc<dyn Clock>) -> Demo {
    Demo
}
impl Demo {
    pub fn stop(self) {}
}
