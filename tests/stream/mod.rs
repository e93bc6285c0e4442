//! Server-sent events out of a body that blocks, through the reader of the API.

use rollcall::api::sse::{EventReader, StreamEvent};
use std::collections::VecDeque;
use std::io::Read;

/// Far above the longest event.
const EVENT_BYTES_MAX: usize = 4 << 20;

/// Gives the events of a body until it ends or breaks. One that is cut off is not given.
pub fn events(mut body: impl Read) -> impl Iterator<Item = StreamEvent> {
    let mut reader = EventReader::new(EVENT_BYTES_MAX);
    let mut ready = VecDeque::new();
    let mut bytes = vec![0; 64 << 10];
    std::iter::from_fn(move || {
        loop {
            if let Some(event) = ready.pop_front() {
                return Some(event);
            }
            let count = body.read(&mut bytes).ok().filter(|count| *count > 0)?;
            ready.extend(reader.push(&bytes[..count]).expect("no event is so long"));
        }
    })
}
