//! The datum of `schemas/incident.avsc`, field by field in the schema's order.

use super::datum::{Reader, write_array, write_count, write_int, write_text};
use crate::schema::Malformed;
use serde::Serialize;
use std::collections::BTreeMap;

/// The fewest bytes of an entry of a map: the length of its name, and its count.
const ENTRY_BYTES_MIN: usize = 2;
/// Whether a nullable map is there: the branch of its union.
const NO_MAP: u8 = 0;
const A_MAP: u8 = 2;

/// Many devices that lost their link at once (`docs/incidents.md`). Times are in milliseconds.
#[derive(Serialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct IncidentRecord {
    /// The same whenever the incident is found.
    pub id: String,
    pub rule: u32,
    pub window_s: u64,
    pub least: u64,
    pub share_percent: u64,
    /// The first and the last departure.
    pub from: u64,
    pub to: u64,
    pub departures: u64,
    pub devices: u64,
    /// How many devices were online before.
    pub online_before: u64,
    /// Departures by name.
    pub causes: BTreeMap<String, u64>,
    pub gateways: BTreeMap<String, u64>,
    pub platforms: BTreeMap<String, u64>,
    /// `None` if connects were not read.
    pub clients: Option<BTreeMap<String, u64>>,
}

pub(super) fn read(datum: &[u8]) -> Result<IncidentRecord, Malformed> {
    let mut reader = Reader::new(datum);
    let incident = IncidentRecord {
        id: reader.text("id").to_owned(),
        rule: reader.int("rule"),
        window_s: reader.int("window_s").into(),
        least: reader.count("least"),
        share_percent: reader.int("share_percent").into(),
        from: reader.count("from"),
        to: reader.count("to"),
        departures: reader.count("departures"),
        devices: reader.count("devices"),
        online_before: reader.count("online_before"),
        causes: read_map(&mut reader, "causes"),
        gateways: read_map(&mut reader, "gateways"),
        platforms: read_map(&mut reader, "platforms"),
        clients: match reader.long("clients") {
            0 => None,
            1 => Some(read_map(&mut reader, "clients")),
            branch => {
                reader.fail_with(
                    "clients",
                    &format!("is of branch {branch}, which its union does not have"),
                );
                None
            }
        },
    };
    reader.end()?;
    Ok(incident)
}

pub(super) fn write(incident: &IncidentRecord, out: &mut Vec<u8>) {
    let IncidentRecord {
        id,
        rule,
        window_s,
        least,
        share_percent,
        from,
        to,
        departures,
        devices,
        online_before,
        causes,
        gateways,
        platforms,
        clients,
    } = incident;
    write_text(out, id);
    write_int(out, *rule);
    for number in [
        window_s,
        least,
        share_percent,
        from,
        to,
        departures,
        devices,
        online_before,
    ] {
        write_count(out, *number);
    }
    for map in [causes, gateways, platforms] {
        write_map(out, map);
    }
    match clients {
        None => out.push(NO_MAP),
        Some(clients) => {
            out.push(A_MAP);
            write_map(out, clients);
        }
    }
}

/// Reads a map, which lies in the bytes as an array of names and counts.
fn read_map(reader: &mut Reader<'_>, what: &'static str) -> BTreeMap<String, u64> {
    let entries = reader.array(what, ENTRY_BYTES_MIN, |reader, _| {
        Ok((reader.text(what).to_owned(), reader.count(what)))
    });
    entries.into_iter().collect()
}

fn write_map(out: &mut Vec<u8>, map: &BTreeMap<String, u64>) {
    let entries: Vec<(&String, &u64)> = map.iter().collect();
    write_array(out, &entries, |out, (name, count)| {
        write_text(out, name);
        write_count(out, **count);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_is_read_as_it_was_written() {
        let map = |names: &[&str]| {
            names
                .iter()
                .map(|name| ((*name).to_owned(), name.len() as u64))
                .collect()
        };
        for clients in [None, Some(map(&[])), Some(map(&["app/5.1", "app/5.2"]))] {
            let incident = IncidentRecord {
                id: "1-1769871720".to_owned(),
                rule: 1,
                window_s: 10,
                least: 100,
                share_percent: 5,
                from: 1_769_871_720_000,
                to: 1_769_871_723_999,
                departures: 12_431,
                devices: 12_400,
                online_before: 60_000,
                causes: map(&["gateway_lost"]),
                gateways: map(&["g1", "g7"]),
                platforms: map(&[]),
                clients,
            };
            let mut datum = Vec::new();
            write(&incident, &mut datum);
            assert_eq!(read(&datum), Ok(incident));
            datum.pop();
            assert!(read(&datum).is_err());
        }
    }
}
