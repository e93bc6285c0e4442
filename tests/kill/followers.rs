//! Subscribers that reconnect after every kill.

use crate::clients::World;
use crate::process::agent;
use crate::stream::events;
use serde_json::Value;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// What a subscriber has seen, by partition.
pub type Seen = Mutex<Vec<Vec<String>>>;

/// Follows a topic from its beginning, over every death, by the id of the last event seen.
pub fn follow(world: &World, topic: &str, seen: &Seen) {
    // A process that is killed ends its connections, so that no time-out is needed.
    let agent = agent(None);
    let mut last_id: Option<String> = None;
    let mut resumed = 0;
    while !world.over.load(Ordering::SeqCst) {
        let mut request = agent.get(world.address.url(&format!("/v1/{topic}?after=earliest")));
        if let Some(id) = &last_id {
            request = request.header("last-event-id", id);
        }
        let Ok(mut response) = request.call() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        match response.status().as_u16() {
            200 => resumed += 1,
            503 => continue,
            status => {
                let body = response.body_mut().read_to_string().unwrap_or_default();
                panic!("{topic} from {last_id:?}: {status} {body}");
            }
        }
        // An event that is cut off comes again.
        for event in events(response.into_body().into_reader()) {
            let is_error = event.name.as_deref() == Some("error");
            assert!(!is_error, "{topic} from {last_id:?} ended with an error");
            if let Some(data) = event.data {
                let change: Value = serde_json::from_str(&data).expect("JSON");
                let name = change["id"].as_str().expect("an id");
                let partition: usize = name.split('-').next().and_then(|p| p.parse().ok()).expect("a number");
                seen.lock().expect("whole")[partition].push(data);
            }
            last_id = event.id.or(last_id);
        }
    }
    assert!(resumed > 2, "{topic} was followed over no death");
}
