//! Appends events to a log, a thousand at a time with some appends in flight, until all of them are durable.

use rollcall::log::{Error, Log, NewRecord};
use rollcall::presence::event::Event;
use rollcall::schema::{avro, partitioner};
use std::sync::mpsc;

const APPEND: usize = 1_000;
const IN_FLIGHT: usize = 16;

pub fn append(log: &dyn Log, mut events: impl Iterator<Item = Event<'static>>) {
    let (done, acknowledged) = mpsc::channel::<Result<(), Error>>();
    let wait = || acknowledged.recv().expect("acknowledged").expect("appended");
    let record = |event: Event<'_>| {
        let user = event.user().expect("of one user").to_owned();
        let partition = partitioner::partition_of(&user, log.partitions());
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        let key = Some(user.into_bytes());
        (
            partition,
            NewRecord {
                key,
                value,
                headers: Vec::new(),
            },
        )
    };
    let mut in_flight = 0;
    loop {
        let records: Vec<_> = events.by_ref().take(APPEND).map(record).collect();
        if records.is_empty() {
            break;
        }
        let done = done.clone();
        let acknowledge = move |result: Result<_, _>| done.send(result.map(|_: Vec<_>| ())).expect("waited for");
        log.append(records, Box::new(acknowledge));
        in_flight += 1;
        if in_flight == IN_FLIGHT {
            wait();
            in_flight -= 1;
        }
    }
    (0..in_flight).for_each(|_| wait());
}
