//! A receiver of OTLP over HTTP, and of callbacks. It decodes protobuf by the field numbers of opentelemetry-proto.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, Uri};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

#[derive(Clone, Debug)]
struct Posted {
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A span, as it was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub name: String,
    /// Trace, span and parent in hexadecimal.
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub kind: i32,
    pub attributes: BTreeMap<String, String>,
    /// The attributes of the process.
    pub resource: BTreeMap<String, String>,
}

impl Received {
    #[track_caller]
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}

/// Takes everything.
pub struct Receiver {
    pub address: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
    _runtime: Runtime,
}

impl Receiver {
    pub fn open() -> Receiver {
        let runtime = Runtime::new().expect("a runtime");
        let posted: Arc<Mutex<Vec<Posted>>> = Arc::default();
        let all = posted.clone();
        let take = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let (path, all) = (uri.path().to_owned(), all.clone());
            async move {
                let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Posted { path, headers, body });
            }
        };
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(take)).await });
        Receiver {
            address,
            posted,
            _runtime: runtime,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn at(&self, path: &str) -> Vec<Posted> {
        let posted = self.posted.lock().unwrap_or_else(PoisonError::into_inner);
        posted.iter().filter(|one| one.path == path).cloned().collect()
    }

    /// The spans so far, in the order they came.
    pub fn spans(&self) -> Vec<Received> {
        let mut spans = Vec::new();
        for posted in self.at("/v1/traces") {
            assert_eq!(posted.headers["content-type"], "application/x-protobuf");
            for of_resource in all(&fields(&posted.body), 1) {
                let of_resource = fields(of_resource);
                let resource = all(&of_resource, 1).flat_map(attributes_of).collect::<BTreeMap<_, _>>();
                for of_scope in all(&of_resource, 2) {
                    for span in all(&fields(of_scope), 2) {
                        spans.push(received(&fields(span), &resource));
                    }
                }
            }
        }
        spans
    }

    /// The header `traceparent` of each callback so far.
    pub fn callbacks(&self) -> Vec<Option<String>> {
        let header = |posted: Posted| Some(posted.headers.get("traceparent")?.to_str().expect("text").to_owned());
        self.at("/hook").into_iter().map(header).collect()
    }
}

/// A field of a protobuf message: its number, and its value.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

type Fields<'a> = Vec<(u64, Field<'a>)>;

fn number(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for place in 0.. {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            break;
        }
    }
    number
}

fn cut<'a>(bytes: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (cut, rest) = bytes.split_at(length);
    *bytes = rest;
    cut
}

fn fields(mut bytes: &[u8]) -> Fields<'_> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = number(&mut bytes);
        let field = match tag & 7 {
            0 => Field::Number(number(&mut bytes)),
            1 => Field::Number(u64::from_le_bytes(cut(&mut bytes, 8).try_into().expect("eight bytes"))),
            2 => {
                let length = number(&mut bytes) as usize;
                Field::Bytes(cut(&mut bytes, length))
            }
            5 => Field::Number(u32::from_le_bytes(cut(&mut bytes, 4).try_into().expect("four bytes")).into()),
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, field));
    }
    fields
}

/// Every value of a field that is bytes, a text or a message.
fn all<'f, 'a>(fields: &'f Fields<'a>, number: u64) -> impl Iterator<Item = &'a [u8]> + use<'f, 'a> {
    fields.iter().filter_map(move |(field, value)| match value {
        Field::Bytes(bytes) if *field == number => Some(*bytes),
        Field::Bytes(_) | Field::Number(_) => None,
    })
}

fn bytes<'a>(fields: &Fields<'a>, number: u64) -> &'a [u8] {
    all(fields, number).next().unwrap_or_default()
}

fn numeric(fields: &Fields<'_>, number: u64) -> u64 {
    let find = |(field, value): &(u64, Field<'_>)| match value {
        Field::Number(value) if *field == number => Some(*value),
        Field::Number(_) | Field::Bytes(_) => None,
    };
    fields.iter().find_map(find).unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// A `KeyValue`, whose value is a text or a number.
fn pair(bytes_of: &[u8]) -> (String, String) {
    let fields_of = fields(bytes_of);
    let value = fields(bytes(&fields_of, 2));
    let shown = match value.first() {
        Some((1, Field::Bytes(value))) => text(value),
        Some((3, Field::Number(value))) => value.to_string(),
        _ => panic!("{value:?}", value = bytes(&fields_of, 2)),
    };
    (text(bytes(&fields_of, 1)), shown)
}

/// Those of a `Resource`.
fn attributes_of(resource: &[u8]) -> Vec<(String, String)> {
    all(&fields(resource), 1).map(pair).collect()
}

fn received(span: &Fields<'_>, resource: &BTreeMap<String, String>) -> Received {
    let (begin, end) = (numeric(span, 7), numeric(span, 8));
    assert!(begin > 0 && end > 0, "{begin} {end}");
    assert_eq!(numeric(span, 16) & 1, 1, "it is sampled");
    Received {
        name: text(bytes(span, 5)),
        trace: hex(bytes(span, 1)),
        id: hex(bytes(span, 2)),
        parent: hex(bytes(span, 4)),
        kind: numeric(span, 6) as i32,
        attributes: all(span, 9).map(pair).collect(),
        resource: resource.clone(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
