//! Changes over HTTP: `GET /v1/changes` of an engine, followed from a cursor.
//!
//! A connection that breaks, falls silent or is not there is made again, from the last cursor read. What waiting does not repair
//! ends it: a token that is not let in, a cursor that the log does not have.

use super::trouble::Trouble;
use super::{Error, Followed, Positions, Source, SourceEvent};
use crate::api::answers;
use crate::api::client::{Client, ClientError, EventStream, StreamEnd, passes};
use crate::api::routes::RouteId;
use crate::api::sse::StreamEvent;
use crate::backoff::{self, Backoff};
use crate::cause::reason;
use crate::clock::SystemClock;
use crate::config::{Credential, SecretUrl};
use crate::presence::change::Change;
use crate::tasks::guarded;
use crate::tls::trusting;
use crate::traces::Parent;
use reqwest::StatusCode;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;
use tokio::sync::mpsc::{channel, unbounded_channel};

/// The engine says something every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(10);

/// Where to begin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Start {
    /// With the oldest change that the log still has.
    Earliest,
    /// With what comes.
    Latest,
    At(Positions),
}

pub struct EngineClient {
    client: Client,
    shown: SecretUrl,
    /// Up to here everything is read; none before the engine has said where it begins.
    read: Option<Positions>,
    start: Start,
    stream: Option<EventStream>,
    ready: VecDeque<Followed>,
    backoff: Backoff,
    clock: SystemClock,
    trouble: Trouble,
}

impl EngineClient {
    /// Follows an engine; waits until it has said where it begins. An engine at `https://` must have its certificate from a CA
    /// of the file `ca`, if there is one.
    pub async fn follow(
        url: &SecretUrl,
        token: Option<Credential>,
        ca: Option<&Path>,
        start: Start,
    ) -> Result<(EngineClient, Positions), Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE);
        let http = trusting(http, ca).map_err(|error| Error::Refused(error.to_string()))?;
        let http = http.build().map_err(|error| Error::Refused(reason(error)))?;
        let mut engine = EngineClient {
            client: Client::new(http, url.reveal(), token.as_ref().map(|token| token.reveal())),
            shown: url.clone(),
            read: None,
            start,
            stream: None,
            ready: VecDeque::new(),
            backoff: backoff::SUBSCRIPTION.start(),
            clock: SystemClock::new(),
            trouble: Trouble::default(),
        };
        loop {
            if let Some(positions) = engine.read.clone() {
                return Ok((engine, positions));
            }
            engine.receive().await?;
        }
    }

    /// Connects if need be and reads once.
    async fn receive(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else {
            return self.connect().await;
        };
        match stream.next().await {
            Ok(event) => {
                self.backoff.reset();
                if let Some(lasted) = self.trouble.over(&self.clock) {
                    let lasted_s = lasted.as_secs();
                    tracing::info!(
                        lasted_s,
                        "the changes of the engine at {} are followed again",
                        self.shown
                    );
                }
                self.take(event)
            }
            // It stops, and will be there again.
            Err(StreamEnd::Ended) => self.pause("has ended the subscription, connecting again", None).await,
            Err(StreamEnd::Broken(error)) => {
                self.pause("no longer sends changes, connecting again", Some(&reason(error)))
                    .await
            }
            Err(StreamEnd::TooLong(error)) => Err(Error::Unreadable(error.to_string())),
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        let after = match (&self.read, &self.start) {
            (Some(read), _) => read.to_string(),
            (None, Start::At(positions)) => positions.to_string(),
            (None, Start::Earliest) => "earliest".to_owned(),
            (None, Start::Latest) => "latest".to_owned(),
        };
        let query = [("after", after.as_str())];
        match self.client.follow(RouteId::Changes, &query, None).await {
            Ok(stream) => {
                self.stream = Some(stream);
                Ok(())
            }
            Err(ClientError::Unreached(error)) => {
                self.pause("cannot be reached, trying again", Some(&reason(error)))
                    .await
            }
            Err(error @ ClientError::Unreadable { .. }) => Err(Error::Unreadable(error.to_string())),
            Err(ClientError::Refused { status, detail, .. }) => {
                let message = format!("{}: {}", status.as_u16(), detail.message);
                match status {
                    StatusCode::GONE => Err(Error::Lost {
                        position: after,
                        oldest: detail.oldest.unwrap_or_default(),
                    }),
                    _ if passes(status) => self.pause("cannot be followed yet, trying again", Some(&message)).await,
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Error::Refused(format!(
                        "{message}; give a bearer token with the scope read with --engine-token-file"
                    ))),
                    _ => Err(Error::Refused(message)),
                }
            }
        }
    }

    /// Gives the connection up and waits. The engine is the subject of the clause.
    async fn pause(&mut self, clause: &str, why: Option<&str>) -> Result<(), Error> {
        self.stream = None;
        if let Some(lasted) = self.trouble.failed(&self.clock) {
            let lasted_s = lasted.as_secs();
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            tracing::warn!(lasted_s, "the engine at {} {clause}{why}", self.shown);
        }
        tokio::time::sleep(self.backoff.pause()).await;
        Ok(())
    }

    fn take(&mut self, event: StreamEvent) -> Result<(), Error> {
        let cursor = |text: &str| {
            let no_cursor = || Error::Unreadable(format!("{text:?} is not a cursor"));
            Positions::parse(text).ok_or_else(no_cursor)
        };
        if let Some(from) = event.begins() {
            self.read = Some(cursor(from)?);
        }
        let id = event.id.as_deref().map(cursor).transpose()?;
        match (event.name.as_deref(), &event.data) {
            (Some("change"), Some(data)) => {
                let change = read_change(data).map_err(|error| Error::Unreadable(error.to_string()))?;
                let traceparent = event.traceparent.as_deref().map(str::as_bytes);
                let trace = traceparent.and_then(Parent::of);
                let partition = change.id.partition;
                let next = id.as_ref().and_then(|cursor| cursor.0.get(&partition).copied());
                let next = next.ok_or_else(|| Error::Unreadable("its cursor lacks its partition".to_owned()))?;
                self.ready.push_back(Followed {
                    partition,
                    next,
                    change,
                    trace,
                });
            }
            // What it says comes again as the answer to the next attempt, if it is still so.
            (Some("error"), _) => self.stream = None,
            _ => {}
        }
        if let Some(id) = id {
            self.read = Some(id);
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Followed, Error> {
        loop {
            if let Some(followed) = self.ready.pop_front() {
                return Ok(followed);
            }
            self.receive().await?;
        }
    }

    /// Reads ahead a little, in a task of its own: reading must not begin again whenever a post is done.
    pub fn read(mut self, begins: Positions) -> Source {
        let (sender, events) = channel(super::AHEAD);
        tokio::spawn(guarded("webhook-engine", async move {
            let mut next = Ok(SourceEvent::Begins(begins));
            loop {
                let over = next.is_err();
                if sender.send(next).await.is_err() || over {
                    return;
                }
                next = self.next().await.map(SourceEvent::Change);
            }
        }));
        // Nobody else follows this position, so nothing is taken back.
        let (_, back) = unbounded_channel();
        Source { events, back }
    }
}

/// Reads a change as the engine writes it.
fn read_change(data: &str) -> Result<Change, serde_json::Error> {
    let data: answers::ChangeData = serde_json::from_str(data)?;
    Change::try_from(data).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::change::{Cause, Output};
    use crate::schema::json::output_line;

    #[test]
    fn a_change_is_read_as_it_was_written() {
        let line = r#"{"type":"change","id":"1-3-2","partition":1,"offset":3,"seq":2,"user":"al\"ice","version":2,"at":5,"logged_at":7,"cause":"gateway_lost","before":"online","after":"push_online","devices":[{"platform":"android","device":"phone","gateway":"g1","before":"online","after":"push_online"}],"custom_status":"x","evidence":3}"#;
        let mut written = Vec::new();
        output_line(&mut written, &Output::Change(read_change(line).expect("a change")));
        assert_eq!(String::from_utf8(written).expect("UTF-8"), line);
        for cause in Cause::ALL {
            read_change(&line.replace("gateway_lost", cause.name())).expect("a change");
        }
        let newer = read_change(&line.replace("gateway_lost", "teleported")).expect_err("unknown");
        assert!(
            newer.to_string().contains("there is no cause \"teleported\""),
            "{newer}"
        );
    }
}
