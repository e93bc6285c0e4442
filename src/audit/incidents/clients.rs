//! Which client each departed device had: that of its last connect before it departed.
//!
//! Every departure and every connect is looked at once, however often a device departs.

use super::DeviceDigest;
use crate::presence::Offset;
use std::collections::{HashMap, VecDeque};

/// The departures of a partition, by device. First all departures are added, then all connects, each in the order of the log.
#[derive(Default)]
pub struct DepartedClients(HashMap<DeviceDigest, DeviceDepartures>);

/// The departures of a device that have no client yet, and the client of the last connect.
#[derive(Default)]
struct DeviceDepartures {
    waiting: VecDeque<DepartedAt>,
    client: Option<Box<str>>,
}

/// A departure.
struct DepartedAt {
    /// The event that it was found out with.
    event: Offset,
    /// The number of its incident.
    incident: usize,
}

impl DepartedClients {
    /// Adds a departure in an incident, which was found out with an event.
    pub fn depart(&mut self, device: DeviceDigest, event: Offset, incident: usize) {
        let departures = self.0.entry(device).or_default();
        departures.waiting.push_back(DepartedAt { event, incident });
    }

    /// Takes a connect. Calls `each` with the incidents of the departures up to there and their client.
    pub fn connect(
        &mut self,
        device: DeviceDigest,
        event: Offset,
        client: Option<&str>,
        mut each: impl FnMut(usize, Option<&str>),
    ) {
        let Some(departures) = self.0.get_mut(&device) else {
            return;
        };
        while let Some(departed) = departures.waiting.pop_front_if(|departed| departed.event <= event) {
            each(departed.incident, departures.client.as_deref());
        }
        if departures.waiting.is_empty() {
            self.0.remove(&device);
        } else {
            departures.client = client.map(Into::into);
        }
    }

    /// Calls `each` with the incidents of the departures that are left and their client.
    pub fn end(self, mut each: impl FnMut(usize, Option<&str>)) {
        for departures in self.0.into_values() {
            for departed in &departures.waiting {
                each(departed.incident, departures.client.as_deref());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceDigest {
        DeviceDigest::of("u", "web", name)
    }

    #[test]
    fn each_departure_has_the_client_of_the_last_connect_before_it() {
        let mut clients = DepartedClients::default();
        for (name, event, incident) in [("a", 10, 0), ("a", 20, 0), ("a", 30, 1), ("b", 15, 0), ("c", 12, 0)] {
            clients.depart(device(name), Offset(event), incident);
        }
        let mut found: Vec<(usize, Option<String>)> = Vec::new();
        let connects = [
            (1, "a", Some("old")),
            (2, "a", Some("1")),
            (3, "d", Some("never departs")),
            (11, "a", Some("2")),
            (12, "c", Some("with the departure, so after it")),
            (14, "b", None),
            (25, "a", Some("3")),
            (26, "a", None),
            (40, "a", Some("late")),
        ];
        for (event, name, client) in connects {
            clients.connect(device(name), Offset(event), client, |incident, client| {
                found.push((incident, client.map(str::to_owned)));
            });
        }
        clients.end(|incident, client| found.push((incident, client.map(str::to_owned))));
        let some = |client: &str| Some(client.to_owned());
        assert_eq!(found, [(0, some("1")), (0, None), (0, some("2")), (1, None), (0, None)]);
    }

    #[test]
    fn a_device_that_flaps_costs_as_much_as_many_that_do_not() {
        let mut clients = DepartedClients::default();
        const FLAPS: u64 = 200_000;
        for flap in 0..FLAPS {
            clients.depart(device("a"), Offset(2 * flap + 1), 0);
        }
        let mut visited = 0;
        for flap in 0..FLAPS {
            clients.connect(device("a"), Offset(2 * flap), Some("app"), |_, client| {
                visited += 1;
                assert_eq!(client, Some("app"));
            });
        }
        clients.end(|_, _| visited += 1);
        assert_eq!(visited, FLAPS);
    }
}
