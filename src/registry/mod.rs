//! A client of a schema registry: looks up schemas by id over Confluent's REST interface.
//!
//! Results are remembered within bounds (module `known`), also that an id does not exist. A registry that does not respond is an
//! error that can be retried, and never makes a record malformed. Calls block on the network; call them from a thread of their
//! own, never from one of the runtime. Only [`LearnedSchemas`] responds at once, from what was looked up before.

mod known;
mod schemas;

pub use schemas::{LearnedSchemas, Schemas, named_by};

use crate::cause::reason;
use crate::metrics;
use crate::schema::Malformed;
use crate::schema::avro::{Framing, Guid, Schema, WriterSchema};
use known::{Known, SchemaLookup};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fmt;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;
use tokio::runtime::Handle;
use url::Url;

/// The compatibility of a subject: each schema must be able to read what every earlier one wrote.
const COMPATIBILITY: &str = "BACKWARD_TRANSITIVE";
/// A compatibility that includes ours and more.
const STRICTER: &str = "FULL_TRANSITIVE";
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
/// How many other schemas one schema may refer to, directly or through others, and how deep.
const REFERENCES_MAX: usize = 100;
const REFERENCE_DEPTH_MAX: usize = 10;
/// The total size of the texts of all referenced schemas.
const REFERENCE_BYTES_MAX: usize = 4 << 20;
/// The length to which a registry's message is cut when it is quoted in ours.
const QUOTED_BYTES_MAX: usize = 300;

/// Confluent's error codes for things that do not exist.
const NO_SUBJECT: u64 = 40_401;
const NO_VERSION: u64 = 40_402;
const NO_SCHEMA: u64 = 40_403;
const NO_LEVEL: u64 = 40_408;

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    #[error("the schema registry URL {url} cannot be used: {cause}; give the base URL of its REST interface")]
    Url { url: String, cause: String },
    /// The registry did not respond correctly; retry later.
    #[error("the schema registry {url} is unavailable: {cause}")]
    Unreachable { url: String, cause: String },
    /// The registry refused; the operator must act.
    #[error("the schema registry {url} refuses the schema of {subject}: {cause}")]
    Refused {
        url: String,
        subject: String,
        cause: String,
    },
    #[error(
        "the schema registry {url} does not have our schema under {subject}: register schemas/{file} there, or start once with \
         --registry-register"
    )]
    NotRegistered {
        url: String,
        subject: String,
        file: &'static str,
    },
}

/// A registry, and what is remembered of its responses.
pub struct Registry {
    client: reqwest::Client,
    base: Url,
    /// The URL without credentials.
    shown: String,
    runtime: Handle,
    known: RwLock<Known>,
}

/// How a record refers to its schema.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum SchemaName {
    Id(u32),
    Guid(Guid),
}

/// An error response of the registry.
struct Failure {
    status: StatusCode,
    code: Option<u64>,
    message: String,
}

enum Wrong {
    /// The registry refused, with an error of its own form.
    Said(Failure),
    Failed(Error),
}

impl Registry {
    /// Creates a client. `url` is the base URL of the REST interface. A user and a password in it are used and never
    /// shown. Sends no request yet.
    pub fn new(url: &str, runtime: Handle) -> Result<Registry, Error> {
        let wrong = |url: &str, cause: String| Error::Url {
            url: url.to_owned(),
            cause,
        };
        // A URL that cannot be parsed may contain a password anywhere, so it is not shown.
        let mut base = Url::parse(url).map_err(|error| wrong("given", error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(wrong(
                "given",
                "it is not of the form http://HOST:PORT or https://HOST".to_owned(),
            ));
        }
        let shown = shown(&base);
        base.set_query(None);
        base.set_fragment(None);
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .build();
        Ok(Registry {
            client: client.map_err(|error| wrong(&shown, error.to_string()))?,
            base,
            shown,
            runtime,
            known: RwLock::default(),
        })
    }

    /// Looks up a schema, unless it is known already.
    fn find(&self, name: SchemaName) -> Result<SchemaLookup, Error> {
        if let Some(found) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(found);
        }
        let found = self.look_up_name(name)?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let forgotten = known.insert(name, found.clone());
        metrics::schemas_forgotten(forgotten as u64);
        Ok(found)
    }

    fn look_up_name(&self, name: SchemaName) -> Result<SchemaLookup, Error> {
        let absent = || {
            Ok(SchemaLookup {
                schema: Err(name.unknown()),
                text_bytes: 0,
            })
        };
        let called = match name {
            // Registries count ids in 32-bit integers with a sign, and some do not answer a larger one as they answer an unknown
            // one.
            SchemaName::Id(id) if i32::try_from(id).is_err() => return absent(),
            SchemaName::Id(id) => self.call(Method::GET, &["schemas", "ids", &id.to_string()], None),
            SchemaName::Guid(guid) => self.call(Method::GET, &["schemas", "guids", &guid.to_string()], None),
        };
        match called {
            Ok(answer) => self.usable(name, &answer),
            Err(Wrong::Said(failure)) if failure.says(&[NO_SCHEMA]) => absent(),
            // A registry that knows no GUIDs has no such route. To wait for it would stop the partition for good.
            Err(Wrong::Said(failure))
                if failure.status == StatusCode::NOT_FOUND
                    && matches!(name, SchemaName::Guid(_))
                    && self.is_registry() =>
            {
                absent()
            }
            Err(wrong) => Err(self.unreachable(wrong)),
        }
    }

    /// Whether what answers is a registry, by a route that all of them have.
    fn is_registry(&self) -> bool {
        let types = self.call(Method::GET, &["schemas", "types"], None);
        matches!(types, Ok(Value::Array(_)))
    }

    /// Returns the schema in a response together with the schemas it refers to, or why it cannot be used.
    fn usable(&self, name: SchemaName, answer: &Value) -> Result<SchemaLookup, Error> {
        let mut text_bytes = 0;
        let parsed = match self.texts(answer)? {
            Ok((text, others)) => {
                text_bytes = text.len() + others.iter().map(String::len).sum::<usize>();
                WriterSchema::parse_with(text, &others).map_err(|unusable| unusable.to_string())
            }
            Err(why) => Err(why),
        };
        let schema = parsed.map_err(|why| {
            text_bytes = 0;
            let shown = name.to_string();
            tracing::warn!(
                schema = shown,
                why,
                "a schema of the registry cannot be used, records with it are malformed"
            );
            Malformed::unusable_schema(format!("the schema with the registry's {shown} cannot be used: {why}"))
        });
        Ok(SchemaLookup { schema, text_bytes })
    }

    /// Returns the text of the schema in a response, and the texts of those it refers to, or why it has no text.
    fn texts<'a>(&self, answer: &'a Value) -> Result<Result<(&'a str, Vec<String>), String>, Error> {
        let kind = answer["schemaType"].as_str().unwrap_or("AVRO");
        if kind != "AVRO" {
            return Ok(Err(format!("its type is {kind}, not AVRO")));
        }
        let Some(text) = answer["schema"].as_str() else {
            return Ok(Err("the registry returned no text for it".to_owned()));
        };
        Ok(self.referenced(answer)?.map(|others| (text, others)))
    }

    /// Returns the texts of all schemas that a response refers to, each once.
    fn referenced(&self, answer: &Value) -> Result<Result<Vec<String>, String>, Error> {
        let mut texts = Vec::new();
        let mut seen = HashSet::new();
        let mut open: Vec<(String, u64)> = references_of(answer);
        for _ in 0..REFERENCE_DEPTH_MAX {
            for (subject, version) in std::mem::take(&mut open) {
                if !seen.insert((subject.clone(), version)) {
                    continue;
                }
                if seen.len() > REFERENCES_MAX {
                    return Ok(Err(format!("it refers to more than {REFERENCES_MAX} other schemas")));
                }
                let path = ["subjects", &subject, "versions", &version.to_string()];
                // A schema that was soft-deleted may still be needed to read old records.
                let found = match self.call_with(Method::GET, &path, Some("deleted=true"), None) {
                    Ok(found) => found,
                    Err(Wrong::Said(failure)) if failure.says(&[NO_SUBJECT, NO_VERSION, NO_SCHEMA]) => {
                        return Ok(Err(format!(
                            "it refers to version {version} of {subject}, which the registry does not have"
                        )));
                    }
                    Err(wrong) => return Err(self.unreachable(wrong)),
                };
                let Some(text) = found["schema"].as_str() else {
                    return Ok(Err(format!(
                        "it refers to version {version} of {subject}, for which the registry returned no text"
                    )));
                };
                texts.push(text.to_owned());
                if texts.iter().map(String::len).sum::<usize>() > REFERENCE_BYTES_MAX {
                    return Ok(Err(format!(
                        "the schemas it refers to have more than {REFERENCE_BYTES_MAX} bytes"
                    )));
                }
                open.extend(references_of(&found));
            }
            if open.is_empty() {
                return Ok(Ok(texts));
            }
        }
        Ok(Err(format!(
            "its references are nested more than {REFERENCE_DEPTH_MAX} deep"
        )))
    }

    /// Registers our schemas where they do not exist yet, each under its `subject`, and sets each subject's
    /// compatibility. Returns the framing for writing.
    pub fn register(&self, subject: impl Fn(Schema) -> String) -> Result<Framing, Error> {
        self.framing(|schema| {
            let subject = subject(schema);
            // Set before the first version where the registry allows that, so that no incompatible version can be
            // registered in between.
            let early = self.set_compatibility(&subject)?;
            let body = json!({ "schema": schema.json() });
            let id = match self.call(Method::POST, &["subjects", &subject, "versions"], Some(&body)) {
                Ok(answer) => self.id(&answer)?,
                Err(wrong) => return Err(self.refused(&subject, wrong)),
            };
            if !early && !self.set_compatibility(&subject)? {
                return Err(Error::Refused {
                    url: self.shown.clone(),
                    subject,
                    cause: "setting its compatibility failed".to_owned(),
                });
            }
            Ok(id)
        })
    }

    /// Like [`Registry::register`], but writes nothing: all schemas must exist.
    pub fn look_up(&self, subject: impl Fn(Schema) -> String) -> Result<Framing, Error> {
        self.framing(|schema| {
            let subject = subject(schema);
            let body = json!({ "schema": schema.json() });
            match self.call(Method::POST, &["subjects", &subject], Some(&body)) {
                Ok(answer) => self.id(&answer),
                Err(Wrong::Said(failure)) if failure.says(&[NO_SUBJECT, NO_VERSION, NO_SCHEMA]) => {
                    Err(Error::NotRegistered {
                        url: self.shown.clone(),
                        subject,
                        file: schema.file(),
                    })
                }
                Err(wrong) => Err(self.refused(&subject, wrong)),
            }
        })
    }

    fn framing(&self, id: impl Fn(Schema) -> Result<u32, Error>) -> Result<Framing, Error> {
        let mut ids = [0; Schema::ALL.len()];
        for schema in Schema::ALL {
            let id = id(schema)?;
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            known.insert_own(SchemaName::Id(id), WriterSchema::own(schema));
            ids[schema as usize] = id;
        }
        Ok(Framing::Ids(ids))
    }

    /// Sets the subject's compatibility unless it is strict enough. Returns false if the registry does not know the
    /// subject yet.
    fn set_compatibility(&self, subject: &str) -> Result<bool, Error> {
        let unset = [NO_SUBJECT, NO_LEVEL];
        match self.call(Method::GET, &["config", subject], None) {
            Ok(config) => {
                let level = config["compatibilityLevel"]
                    .as_str()
                    .or(config["compatibility"].as_str());
                if matches!(level, Some(COMPATIBILITY | STRICTER)) {
                    return Ok(true);
                }
            }
            Err(Wrong::Said(failure)) if failure.says(&unset) => {}
            Err(wrong) => return Err(self.refused(subject, wrong)),
        }
        let body = json!({ "compatibility": COMPATIBILITY });
        match self.call(Method::PUT, &["config", subject], Some(&body)) {
            Ok(_) => Ok(true),
            Err(Wrong::Said(failure)) if failure.says(&unset) => Ok(false),
            Err(wrong) => Err(self.refused(subject, wrong)),
        }
    }

    fn id(&self, answer: &Value) -> Result<u32, Error> {
        let id = answer["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| self.silent("its response has no id that fits into 4 bytes".to_owned()))
    }

    fn silent(&self, cause: String) -> Error {
        Error::Unreachable {
            url: self.shown.clone(),
            cause,
        }
    }

    fn unreachable(&self, wrong: Wrong) -> Error {
        match wrong {
            Wrong::Said(failure) => self.silent(failure.to_string()),
            Wrong::Failed(error) => error,
        }
    }

    /// Returns the error for a request that the registry judged and refused: a retry cannot help.
    fn refused(&self, subject: &str, wrong: Wrong) -> Error {
        match wrong {
            Wrong::Said(failure) if failure.code.is_some() && failure.status.is_client_error() => Error::Refused {
                url: self.shown.clone(),
                subject: subject.to_owned(),
                cause: failure.to_string(),
            },
            other => self.unreachable(other),
        }
    }

    fn call(&self, method: Method, path: &[&str], body: Option<&Value>) -> Result<Value, Wrong> {
        self.call_with(method, path, None, body)
    }

    fn call_with(
        &self,
        method: Method,
        path: &[&str],
        query: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, Wrong> {
        let mut url = self.base.clone();
        url.set_query(query);
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        let failed = |error: reqwest::Error| {
            // reqwest's own text would show the URL with its credentials.
            Wrong::Failed(self.silent(reason(error)))
        };
        self.runtime.block_on(async {
            let mut request = self.client.request(method, url).header("Accept", "application/json");
            if let Some(body) = body {
                request = request.json(body);
            }
            let answer = request.send().await.map_err(failed)?;
            let status = answer.status();
            let text = answer.text().await.map_err(failed)?;
            let value: Option<Value> = serde_json::from_str(&text).ok();
            if status.is_success() {
                let not_json = || Wrong::Failed(self.silent("its response is not JSON; check the URL".to_owned()));
                return value.ok_or_else(not_json);
            }
            let of = |name: &str| value.as_ref().and_then(|value| value.get(name));
            Err(Wrong::Said(Failure {
                status,
                code: of("error_code").and_then(Value::as_u64),
                message: of("message").and_then(Value::as_str).unwrap_or_default().to_owned(),
            }))
        })
    }
}

impl SchemaName {
    fn unknown(self) -> Malformed {
        match self {
            SchemaName::Id(id) => Malformed::UnknownSchemaId(id),
            SchemaName::Guid(guid) => Malformed::UnknownSchemaGuid(guid),
        }
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaName::Id(id) => write!(f, "id {id}"),
            SchemaName::Guid(guid) => write!(f, "GUID {guid}"),
        }
    }
}

impl Failure {
    /// Returns whether this is the registry's own error with one of these codes. A proxy or another server also
    /// responds with 404, but without a code.
    fn says(&self, codes: &[u64]) -> bool {
        self.status == StatusCode::NOT_FOUND && self.code.is_some_and(|code| codes.contains(&code))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut message = self.message.replace('\n', " ");
        message.truncate(message.floor_char_boundary(QUOTED_BYTES_MAX));
        match self.code {
            Some(code) => write!(f, "it responded with {code}: {message}"),
            None => write!(f, "it responded with {}; check the URL", self.status),
        }
    }
}

/// Returns subject and version of each schema that a response refers to.
fn references_of(answer: &Value) -> Vec<(String, u64)> {
    let references = answer["references"].as_array();
    let of = |reference: &Value| {
        Some((
            reference["subject"].as_str()?.to_owned(),
            reference["version"].as_u64()?,
        ))
    };
    references.into_iter().flatten().filter_map(of).collect()
}

fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    // These fail only for URLs that cannot contain credentials.
    let _ = (shown.set_username(""), shown.set_password(None));
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}
