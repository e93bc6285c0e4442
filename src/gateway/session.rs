//! The life of one connection, from its `connect` in the log to the event about its end.
//!
//! Each connection has its own task. It waits for its client, for commands of the gateway and for changes of other
//! users. Every send has a time limit, so a client that does not read blocks nobody and holds no memory. The gateway
//! pings a link that is quiet: scripts in a hidden page hardly run, but every browser answers a ping by itself, and
//! every proxy between the two ends sees that the link is used. A pong counts as a sign of life and is published at the
//! interval of the platform's heartbeats. The gateway does not decide that a silent user is offline: the engine does.
//! Only long after the platform's time-out does the gateway close the socket, without an event.

use super::disconnect_queue::QueuedDisconnect;
use super::frames::{self, Close};
use super::handshake::{AdmittedClient, CLOSING, Places, Socket, close_with, read_to_end};
use super::limits::RateLimit;
use super::roster::{ConnectionCommand, Session, SubscribedChange};
use super::uplink::{AsOf, Pace, Unavailable, UserSnapshot};
use super::{GatewayState, Phase, unanswered};
use crate::api::frames::{self as messages, ClientMessage, ServerMessage, USERS};
use crate::metrics;
use crate::presence::change::KickReason;
use crate::presence::event::{self, Event};
use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// How many invalid frames a client may send before the connection is closed.
const BAD_FRAMES_MAX: u32 = 10;
/// After how long a client may retry what failed because the log was unavailable.
const RETRY_MS: u64 = 2_000;
/// The shortest ping interval, however short a platform's time-out is.
const PING_MS_MIN: u64 = 100;

/// How a connection ended.
enum Ended {
    /// The client closed the connection without a close frame, or the network did.
    Gone,
    /// The client sent a close frame, which is to be answered.
    Left,
    /// The link is dead but was not closed: the engine decides by its time-out.
    Silent,
    Exit,
    LoggedOut,
    Kicked(KickReason),
    /// The gateway closes the connection.
    Closed(Close),
    /// The client does not read what is sent, not even a close frame.
    TooSlow,
}

struct Connection {
    edge: Arc<GatewayState>,
    socket: Socket,
    session: Arc<Session>,
    pace: Pace,
    pulse: LinkActivity,
    silent_after_ms: u64,
    allowance: RateLimit,
    bad_frames: u32,
    subscriptions: VecDeque<Subscription>,
    changes: Option<mpsc::Receiver<Arc<SubscribedChange>>>,
}

/// When a link was last used, in ms of the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct LinkActivity {
    /// The interval between pings while the link is quiet.
    every_ms: u64,
    received_ms: u64,
    sent_ms: u64,
    pinged_ms: u64,
    /// When a sign of life was last published.
    beat_ms: u64,
    /// Whether a ping was sent that has not been answered yet.
    pinged: bool,
}

impl LinkActivity {
    fn new(ping_ms: u64, pace: Pace, now_ms: u64) -> LinkActivity {
        LinkActivity {
            // Two pings within the time-out, so that one late answer does no harm.
            every_ms: ping_ms.min(pace.timeout_ms / 2).max(PING_MS_MIN),
            received_ms: now_ms,
            sent_ms: now_ms,
            pinged_ms: now_ms,
            beat_ms: now_ms,
            pinged: false,
        }
    }

    /// Returns when the next ping is due: nothing was sent, or nothing was received, for the ping interval.
    fn due_ms(&self) -> u64 {
        self.sent_ms
            .min(self.received_ms.max(self.pinged_ms))
            .saturating_add(self.every_ms)
    }

    /// Returns whether a pong has to be published: at the interval of the platform's heartbeats, and always before the
    /// time-out.
    fn beat_is_due(&self, pace: Pace, now_ms: u64) -> bool {
        let since_ms = now_ms.saturating_sub(self.beat_ms);
        since_ms >= pace.heartbeat_ms || since_ms.saturating_add(2 * self.every_ms) > pace.timeout_ms
    }
}

struct Subscription {
    user: Box<str>,
    /// The last record whose changes were part of the response to the subscription.
    included: Option<AsOf>,
}

/// Whether the connection goes on or has ended.
type Flow = Result<(), Ended>;

/// A connection in the roster. However its task ends, also by a panic, it leaves the roster and its end is published.
struct Presence {
    edge: Arc<GatewayState>,
    session: Arc<Session>,
    left: bool,
}

impl Presence {
    fn new(edge: &Arc<GatewayState>, session: &Arc<Session>) -> Presence {
        // Entered before its connect is in the log, since a kick may follow at once.
        edge.roster.insert(session.clone());
        metrics::gateway_connections(1);
        Presence {
            edge: edge.clone(),
            session: session.clone(),
            left: false,
        }
    }

    /// Leaves the roster and returns the event to be published, if any.
    fn leave(&mut self, ended: &Ended) -> Option<QueuedDisconnect> {
        self.left = true;
        self.session.ended();
        self.edge.roster.remove(self.session.conn);
        metrics::gateway_connections(-1);
        let reason = match ended {
            // While the gateway stops, its clients reconnect elsewhere. Those that do not are ended by the end of the
            // lease.
            Ended::Gone | Ended::Left | Ended::TooSlow if self.edge.phase() == Phase::Stopping => return None,
            Ended::Gone | Ended::Left | Ended::TooSlow => event::Ending::Closed,
            Ended::Exit => event::Ending::Exit,
            Ended::Closed(Close::Restart) => return None,
            Ended::Closed(_) => event::Ending::Closed,
            // The engine knows already, or has to decide.
            Ended::Silent | Ended::LoggedOut | Ended::Kicked(_) => return None,
        };
        Some(QueuedDisconnect {
            event: Event::Disconnect {
                who: self.session.who(),
                via: self.session.via(&self.edge.config.name, self.edge.epoch),
                reason,
            },
            done: None,
        })
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        self.edge.audience.remove_everywhere(&self.session);
        if let Some(ending) = self.leave(&Ended::Gone) {
            self.edge.ended_suddenly(ending);
        }
    }
}

/// A connection whose `connect` is in the log, or could not be appended.
struct Begun {
    presence: Presence,
    places: Places,
    life: Box<Connection>,
    /// The first frame: hello, or why there is no connection.
    first: Result<String, String>,
}

/// Runs a connection from its `connect` to its end. Its parts are boxed, since a task has room for the largest state that it can be in
/// for as long as it lives, and nearly all of that time a connection is idle.
pub fn run(edge: Arc<GatewayState>, socket: Socket, guest: AdmittedClient) -> impl Future<Output = ()> + Send {
    let beginning = Box::pin(begin(edge, socket, guest));
    async move {
        let begun = beginning.await;
        let (life, ended) = match begun.first {
            Ok(hello) => Box::pin(begun.life.run(hello)).await,
            Err(error) => Box::pin(begun.life.refuse(error)).await,
        };
        Box::pin(end(begun.presence, life, ended, begun.places)).await;
    }
}

async fn begin(edge: Arc<GatewayState>, socket: Socket, guest: AdmittedClient) -> Begun {
    let conn = edge.next_conn();
    let home = super::heartbeats::home(&guest.user, edge.uplink.partitions());
    let session = Session::new(conn, &guest.user, &guest.visitor.platform, &guest.visitor.device, home);
    let session = Arc::new(session);
    let connect = Event::Connect {
        who: session.who(),
        via: session.via(&edge.config.name, edge.epoch),
        intent: guest.visitor.intent,
        client: Some(guest.visitor.client.clone().into()),
        auth_at: guest.visitor.auth_at_ms,
    };
    let traceparent = guest.visitor.traceparent.clone();
    let pace = guest.pace;
    let places = guest.places();
    let presence = Presence::new(&edge, &session);
    let publishing = match &traceparent {
        None => edge.uplink.append(vec![connect]),
        Some(traceparent) => edge.uplink.append_traced(connect, traceparent),
    };
    let published = publishing.await;
    let now_ms = edge.clock.monotonic_ms();
    let pulse = LinkActivity::new(edge.config.ping_ms, pace, now_ms);
    let hello = ServerMessage::Hello {
        user: &session.user,
        gateway: &edge.config.name,
        epoch: edge.epoch.0,
        conn: conn.0,
        heartbeat_ms: pace.heartbeat_ms,
        timeout_ms: pace.timeout_ms,
        ping_ms: pulse.every_ms,
    };
    let first = match published {
        Ok(()) => Ok(hello.json()),
        Err(error) => {
            edge.log_failed(&error);
            let message = "the connection could not be appended to the log; retry later";
            Err(frames::error(None, "log_unavailable", message, Some(RETRY_MS)))
        }
    };
    let life = Box::new(Connection {
        allowance: RateLimit::new(edge.config.message_rate_max, now_ms),
        silent_after_ms: pace.timeout_ms.saturating_add(edge.config.silence_ms),
        edge,
        socket,
        session,
        pace,
        pulse,
        bad_frames: 0,
        subscriptions: VecDeque::new(),
        changes: None,
    });
    Begun {
        presence,
        places,
        life,
        first,
    }
}

/// Publishes how a connection ended, and says goodbye to its client.
async fn end(mut presence: Presence, life: Box<Connection>, ended: Ended, places: Places) {
    if let Some(ending) = presence.leave(&ended) {
        life.edge.ended(ending).await;
    }
    farewell(life.socket, &ended, places).await;
}

/// Sends the last frames and closes, within a time limit.
async fn farewell(mut socket: Socket, ended: &Ended, places: Places) {
    let close = match ended {
        Ended::Gone | Ended::Left | Ended::TooSlow => None,
        Ended::Silent => Some(Close::Silent),
        Ended::Exit | Ended::LoggedOut => Some(Close::LoggedOut),
        Ended::Kicked(reason) => Close::of_kick(*reason),
        Ended::Closed(close) => Some(*close),
    };
    let said = async {
        if let Ended::Kicked(reason) = ended {
            let _ = socket.send(Message::Text(frames::kicked(*reason).into())).await;
        }
        if let Some(close) = close {
            close_with(&mut socket, close).await;
        } else if matches!(ended, Ended::Left) {
            read_to_end(&mut socket).await;
        }
    };
    metrics::gateway_closed(close.map_or("gone", Close::name));
    let _ = tokio::time::timeout(CLOSING, said).await;
    drop(places);
}

impl Connection {
    async fn run(mut self: Box<Self>, hello: String) -> (Box<Self>, Ended) {
        let ended = match self.send_text(hello).await {
            Ok(()) => self.until_it_ends().await,
            Err(ended) => ended,
        };
        for subscription in &self.subscriptions {
            self.edge.audience.remove(&subscription.user, &self.session);
        }
        (self, ended)
    }

    /// Says why there is no connection.
    async fn refuse(mut self: Box<Self>, error: String) -> (Box<Self>, Ended) {
        let _ = self.send_text(error).await;
        (self, Ended::Closed(Close::Later))
    }

    async fn until_it_ends(&mut self) -> Ended {
        let timer = tokio::time::sleep(Duration::from_millis(self.pulse.every_ms));
        tokio::pin!(timer);
        loop {
            let session = self.session.clone();
            let step = tokio::select! {
                biased;
                command = session.ordered() => self.run_command(command).await,
                change = next_change(&mut self.changes) => self.pass_on(&change).await,
                message = self.socket.next() => Box::pin(self.take(message)).await,
                () = &mut timer => {
                    let now_ms = self.edge.clock.monotonic_ms();
                    let silent_ms = now_ms.saturating_sub(self.pulse.received_ms);
                    if silent_ms >= self.silent_after_ms {
                        return Ended::Silent;
                    }
                    let step = match self.pulse.due_ms() <= now_ms {
                        true => self.ping(now_ms).await,
                        false => Ok(()),
                    };
                    let next_ms = self.pulse.due_ms().saturating_sub(now_ms).min(self.silent_after_ms - silent_ms);
                    timer.set(tokio::time::sleep(Duration::from_millis(next_ms)));
                    step
                }
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Sends a text frame within the time that a client has to read it.
    async fn send_text(&mut self, frame: impl Into<Utf8Bytes>) -> Flow {
        self.send(Message::Text(frame.into())).await
    }

    async fn ping(&mut self, now_ms: u64) -> Flow {
        self.pulse.pinged = true;
        self.pulse.pinged_ms = now_ms;
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn send(&mut self, message: Message) -> Flow {
        self.pulse.sent_ms = self.edge.clock.monotonic_ms();
        match tokio::time::timeout(self.edge.config.write, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(Ended::TooSlow),
        }
    }

    async fn run_command(&mut self, order: ConnectionCommand) -> Flow {
        match order {
            ConnectionCommand::Reconnect { after_ms } => {
                self.send_text(ServerMessage::Reconnect { after_ms }.json()).await
            }
            ConnectionCommand::Kick(reason) => Err(Ended::Kicked(reason)),
            ConnectionCommand::Close(Close::TooSlow) => Err(Ended::TooSlow),
            ConnectionCommand::Close(close) => Err(Ended::Closed(close)),
        }
    }

    async fn pass_on(&mut self, change: &SubscribedChange) -> Flow {
        let wanted = self
            .subscriptions
            .iter()
            .find(|subscription| subscription.user == change.user);
        let Some(subscription) = wanted else {
            return Ok(());
        };
        let known = subscription
            .included
            .is_some_and(|included| included.partition == change.at.partition && change.at.offset <= included.offset);
        match known {
            true => Ok(()),
            false => {
                self.send_text(change.frame.clone()).await?;
                if let Some(delivery) = &change.delivery {
                    delivery.delivered("websocket", self.edge.clock.since_1970());
                }
                Ok(())
            }
        }
    }

    async fn take(&mut self, message: Option<Result<Message, WsError>>) -> Flow {
        let message = match message {
            None => return Err(Ended::Gone),
            Some(Err(error)) => return Err(broken(&error)),
            Some(Ok(message)) => message,
        };
        let now_ms = self.edge.clock.monotonic_ms();
        if !self.allowance.take(self.edge.config.message_rate_max, now_ms) {
            let rate = self.edge.config.message_rate_max;
            let message =
                format!("the client sent more than {rate} messages per second on average, which is the limit");
            self.send_text(frames::error(None, "too_fast", &message, None)).await?;
            return Err(Ended::Closed(Close::TooFast));
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => {
                let message = "the client sent a binary message; frames must be JSON in text messages";
                self.send_text(frames::error(None, "not_text", message, None)).await?;
                return Err(Ended::Closed(Close::NotText));
            }
            Message::Close(_) => return Err(Ended::Left),
            Message::Pong(_) if std::mem::take(&mut self.pulse.pinged) => {
                self.answered(now_ms);
                return Ok(());
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                self.showed_life(now_ms);
                return Ok(());
            }
        };
        match messages::read(&text) {
            Ok((said, id)) => {
                drop(text);
                self.answer(said, id, now_ms).await
            }
            Err(bad) => {
                self.send_text(frames::error(bad.id, "bad_frame", &bad.message, None))
                    .await?;
                self.bad_frames += 1;
                match self.bad_frames {
                    ..BAD_FRAMES_MAX => Ok(()),
                    _ => Err(Ended::Closed(Close::BadRequest)),
                }
            }
        }
    }

    /// Records that the client sent something.
    fn showed_life(&mut self, now_ms: u64) {
        self.pulse.received_ms = now_ms;
        self.pulse.beat_ms = now_ms;
        self.edge.heartbeats.add(&self.session);
    }

    /// Records that the client answered a ping, or sent one. That is a sign of life, but is published only at the
    /// platform's interval.
    fn answered(&mut self, now_ms: u64) {
        if self.pulse.beat_is_due(self.pace, now_ms) {
            self.showed_life(now_ms);
        }
        self.pulse.received_ms = now_ms;
    }

    async fn answer(&mut self, said: ClientMessage, id: Option<u64>, now_ms: u64) -> Flow {
        match said {
            ClientMessage::Auth { .. } => {
                let message = "`auth` is allowed only as the first frame of a connection without a token";
                self.send_text(frames::error(id, "bad_frame", message, None)).await
            }
            ClientMessage::Heartbeat => {
                self.showed_life(now_ms);
                self.send_text(ServerMessage::Alive.json()).await
            }
            ClientMessage::Ping => {
                self.answered(now_ms);
                self.send_text(ServerMessage::Pong { id }.json()).await
            }
            ClientMessage::Background => {
                let (who, via) = self.link();
                self.publish(Event::Background { who, via }, id, now_ms).await
            }
            ClientMessage::Foreground => {
                let (who, via) = self.link();
                self.publish(Event::Foreground { who, via }, id, now_ms).await
            }
            ClientMessage::CustomStatus { text } => {
                let user = self.session.user.to_string().into();
                let text = text.map(Into::into);
                self.publish(Event::CustomStatus { user, text }, id, now_ms).await
            }
            ClientMessage::Logout => self.log_out(id).await,
            ClientMessage::Exit => Err(Ended::Exit),
            ClientMessage::Query { users } => {
                self.showed_life(now_ms);
                let users = once(users);
                let answered = self.edge.uplink.users(users.clone()).await;
                let answer = match answered {
                    Ok(found) => {
                        let answer = ServerMessage::Users {
                            id,
                            users: frames::states(found.iter().flatten()),
                            unknown: unknown(&users, &found),
                        };
                        answer.json()
                    }
                    Err(error) => not_ready(id, &error),
                };
                self.send_text(answer).await
            }
            ClientMessage::Subscribe { users } => {
                self.showed_life(now_ms);
                let answer = self.subscribe(once(users), id).await;
                self.send_text(answer).await
            }
            ClientMessage::Unsubscribe { users } => {
                self.showed_life(now_ms);
                for user in &users {
                    self.forget(user);
                }
                self.send_text(ServerMessage::Done { id }.json()).await
            }
        }
    }

    fn link(&self) -> (event::DeviceRef<'static>, event::ConnRef<'static>) {
        let session = &self.session;
        (session.who(), session.via(&self.edge.config.name, self.edge.epoch))
    }

    /// Appends an event and responds when it is durable.
    async fn publish(&mut self, event: Event<'static>, id: Option<u64>, now_ms: u64) -> Flow {
        // Each of these events is a sign of life, which the log gets from the event itself or from a heartbeat.
        self.showed_life(now_ms);
        let answer = match self.edge.uplink.append(vec![event]).await {
            Ok(()) => ServerMessage::Done { id }.json(),
            Err(error) => {
                self.edge.log_failed(&error);
                let message = "the log is unavailable; retry later";
                frames::error(id, "log_unavailable", message, Some(RETRY_MS))
            }
        };
        self.send_text(answer).await
    }

    /// Ends the connection only when the logout is durable, in the log or in the queue.
    async fn log_out(&mut self, id: Option<u64>) -> Flow {
        let (who, via) = self.link();
        let (done, durable) = oneshot::channel();
        let logout = QueuedDisconnect {
            event: Event::Logout { who, via },
            done: Some(done),
        };
        self.edge.ended(logout).await;
        if durable.await == Ok(true) {
            // The user is logged out whether or not the client reads this.
            let _ = self.send_text(ServerMessage::Done { id }.json()).await;
            return Err(Ended::LoggedOut);
        }
        let message = "the log is unavailable and the queue is full, so the user is still logged in; retry later";
        self.send_text(frames::error(id, "log_unavailable", message, Some(RETRY_MS)))
            .await
    }

    fn forget(&mut self, user: &str) {
        let before = self.subscriptions.len();
        self.subscriptions.retain(|subscription| *subscription.user != *user);
        if self.subscriptions.len() < before {
            self.edge.audience.remove(user, &self.session);
        }
    }

    /// Subscribes to users and returns the response. Registers before the engine is asked, so that no change is missed.
    async fn subscribe(&mut self, users: Vec<String>, id: Option<u64>) -> String {
        if self.changes.is_none() {
            self.changes = Some(self.session.open_changes());
        }
        for user in &users {
            // Inserted again, so that it is the youngest.
            self.forget(user);
            self.edge.audience.add(user, &self.session);
            self.subscriptions.push_back(Subscription {
                user: user.as_str().into(),
                included: None,
            });
        }
        let mut evicted = Vec::new();
        while self.subscriptions.len() > *USERS.end() {
            let Some(oldest) = self.subscriptions.pop_front() else {
                break;
            };
            self.edge.audience.remove(&oldest.user, &self.session);
            evicted.push(oldest.user);
        }
        let edge = self.edge.clone();
        let asked = async {
            edge.audience.follow(&*edge.uplink).await?;
            edge.uplink.users(users.clone()).await
        };
        match asked.await {
            Ok(found) => {
                for standing in found.iter().flatten() {
                    let subscription = self.subscriptions.iter_mut().find(|one| one.user == standing.user);
                    if let Some(subscription) = subscription {
                        subscription.included = standing.as_of;
                    }
                }
                let answer = ServerMessage::Subscribed {
                    id,
                    users: frames::states(found.iter().flatten()),
                    unknown: unknown(&users, &found),
                    evicted: evicted.iter().map(|user| &**user).collect(),
                };
                answer.json()
            }
            Err(error) => {
                users.iter().for_each(|user| self.forget(user));
                not_ready(id, &error)
            }
        }
    }
}

async fn next_change(change: &mut Option<mpsc::Receiver<Arc<SubscribedChange>>>) -> Arc<SubscribedChange> {
    if let Some(receiver) = change
        && let Some(change) = receiver.recv().await
    {
        return change;
    }
    // No channel is open, so nothing will come.
    std::future::pending().await
}

/// Returns each user once, in the order given.
fn once(users: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    users.into_iter().filter(|user| seen.insert(user.clone())).collect()
}

fn unknown<'u>(users: &'u [String], found: &[Option<UserSnapshot>]) -> Vec<&'u str> {
    let unknown = users.iter().zip(found).filter(|(_, found)| found.is_none());
    unknown.map(|(user, _)| user.as_str()).collect()
}

fn not_ready(id: Option<u64>, error: &Unavailable) -> String {
    frames::error(id, "not_ready", unanswered(error), Some(RETRY_MS))
}

/// Returns how a connection ended whose socket failed.
fn broken(error: &WsError) -> Ended {
    if let Some(close) = Close::of_error(error) {
        return Ended::Closed(close);
    }
    match error {
        // The network gave up, but the client did not close the connection.
        WsError::Io(io)
            if matches!(
                io.kind(),
                io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable
            ) =>
        {
            Ended::Silent
        }
        _ => Ended::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Simulates a link whose client sends nothing and answers pings at once. Returns when it is pinged and when that
    /// is published.
    fn quiet(ping_ms: u64, pace: Pace, for_ms: u64) -> (Vec<u64>, Vec<u64>) {
        let mut pulse = LinkActivity::new(ping_ms, pace, 0);
        let (mut pings, mut beats) = (Vec::new(), Vec::new());
        for now_ms in 0..for_ms {
            if pulse.due_ms() > now_ms {
                continue;
            }
            pings.push(now_ms);
            (pulse.sent_ms, pulse.pinged_ms) = (now_ms, now_ms);
            if pulse.beat_is_due(pace, now_ms) {
                beats.push(now_ms);
                pulse.beat_ms = now_ms;
            }
            pulse.received_ms = now_ms;
        }
        (pings, beats)
    }

    #[test]
    fn a_quiet_link_is_pinged_in_time_and_published_at_the_pace_of_its_platform() {
        let pace = |heartbeat_ms, timeout_ms| Pace {
            heartbeat_ms,
            timeout_ms,
        };
        // Ten minutes of a hidden page: never 60 s without a sign of life, never 30 s without a frame.
        let (pings, beats) = quiet(25_000, pace(20_000, 60_000), 600_000);
        assert_eq!((pings[0], pings.len(), beats.len()), (25_000, 23, 23));
        // A phone's sign of life is published at most every two minutes.
        let (pings, beats) = quiet(25_000, pace(120_000, 400_000), 600_000);
        assert_eq!(pings.len(), 23);
        assert_eq!(beats, [125_000, 250_000, 375_000, 500_000]);
        for (heartbeat_ms, timeout_ms) in [(3_333, 10_000), (50_000, 60_000), (0, 1_000), (500, 1_500), (1, 300)] {
            let (_, beats) = quiet(25_000, pace(heartbeat_ms, timeout_ms), 300_000);
            let mut last_ms = 0;
            for beat_ms in beats.into_iter().chain([300_000]) {
                assert!(
                    beat_ms - last_ms < timeout_ms,
                    "{heartbeat_ms} {timeout_ms}: {last_ms} {beat_ms}"
                );
                last_ms = beat_ms;
            }
        }
    }

    #[test]
    fn a_link_is_quiet_if_nothing_is_said_or_nothing_is_heard() {
        let pace = Pace {
            heartbeat_ms: 20_000,
            timeout_ms: 60_000,
        };
        let mut pulse = LinkActivity::new(25_000, pace, 0);
        pulse.sent_ms = 20_000;
        assert_eq!(pulse.due_ms(), 25_000, "much is sent, nothing is received");
        pulse.received_ms = 22_000;
        assert_eq!(pulse.due_ms(), 45_000, "nothing is sent");
        pulse.sent_ms = 30_000;
        assert_eq!(pulse.due_ms(), 47_000);
    }

    #[test]
    fn an_idle_connection_takes_little_room() {
        fn task<A, B, C, F: Future>(_: impl Fn(A, B, C) -> F) -> usize {
            size_of::<F>()
        }
        fn life<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        // As an async function with everything in it, this was 3,328 bytes for each connection.
        let (task, life) = (task(run), life(Connection::run));
        assert!(task <= 256 && life <= 768, "{task} {life}");
    }
}
