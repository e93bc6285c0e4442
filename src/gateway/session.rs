//! The life of one connection, from its `connect` in the log to what is published of its end.
//!
//! A task each. It waits for its client, for orders of the gateway and for changes of others; whatever it says is given
//! a bounded time, so that a client which does not read holds up nobody and no memory. A link that is quiet is pinged:
//! scripts in a hidden page hardly run, but every browser answers a ping by itself, and whatever is between the two ends
//! sees that the link is used. An answer counts as life, and is published at the pace of the platform's heartbeats. Who
//! is silent is not judged here: the engine decides, and only long after its time-out the socket is closed, without a
//! word to the log.

use super::disconnect_queue::QueuedDisconnect;
use super::frames::{self, ClientMessage, Close, Hello, USERS};
use super::handshake::{AdmittedClient, Places, Socket, close_with};
use super::limits::RateLimit;
use super::roster::{ConnectionCommand, Session, SubscribedChange};
use super::uplink::{AsOf, Pace, Unavailable, UserSnapshot};
use super::{GatewayState, Phase, unanswered};
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
use tokio_tungstenite::tungstenite::error::{CapacityError, Error as WsError};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// Frames of a connection that are none, before it is closed.
const BAD_FRAMES_MAX: u32 = 10;
/// How long the other end may take to close, once it is told.
const CLOSING: Duration = Duration::from_secs(5);
/// After a time at which the log took nothing, a client may try again after this.
const RETRY_MS: u64 = 2_000;
/// However short the time-out of a platform is.
const PING_MS_MIN: u64 = 100;

/// How a connection ended.
enum Ended {
    /// The client, or the network for it, closed.
    Gone,
    /// The link is dead, but nobody said so: as good as silence.
    Silent,
    Exit,
    LoggedOut,
    Kicked(KickReason),
    /// The gateway closes it.
    Closed(Close),
    /// The client does not take what it is sent, not even a close.
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
    news: Option<mpsc::Receiver<Arc<SubscribedChange>>>,
}

/// When a link was used last, by the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct LinkActivity {
    /// How often it is pinged while it is quiet.
    every_ms: u64,
    heard_ms: u64,
    said_ms: u64,
    pinged_ms: u64,
    /// When the last sign of life was published.
    beat_ms: u64,
    /// Whether a ping of ours has no answer yet.
    pinged: bool,
}

impl LinkActivity {
    fn new(ping_ms: u64, pace: Pace, now_ms: u64) -> LinkActivity {
        LinkActivity {
            // Two within the time-out, so that one answer that is late does no harm.
            every_ms: ping_ms.min(pace.timeout_ms / 2).max(PING_MS_MIN),
            heard_ms: now_ms,
            said_ms: now_ms,
            pinged_ms: now_ms,
            beat_ms: now_ms,
            pinged: false,
        }
    }

    /// When the next ping is due: nothing was said, or nothing was heard, for long enough.
    fn due_ms(&self) -> u64 {
        self.said_ms
            .min(self.heard_ms.max(self.pinged_ms))
            .saturating_add(self.every_ms)
    }

    /// Whether the answer to a ping is published: at the pace of the platform, and before the time-out in any case.
    fn beat_is_due(&self, pace: Pace, now_ms: u64) -> bool {
        let since_ms = now_ms.saturating_sub(self.beat_ms);
        since_ms >= pace.heartbeat_ms || since_ms.saturating_add(2 * self.every_ms) > pace.timeout_ms
    }
}

struct Subscription {
    user: Box<str>,
    /// What of its changes the client was told already by the answer to its subscription.
    told: Option<AsOf>,
}

/// Either it goes on, or it has ended.
type Flow = Result<(), Ended>;

/// A connection that is in the roster. However its task ends, by a panic too, it leaves the roster, and what is to be
/// published of its end is.
struct Presence {
    edge: Arc<GatewayState>,
    session: Arc<Session>,
    left: bool,
}

impl Presence {
    fn new(edge: &Arc<GatewayState>, session: &Arc<Session>) -> Presence {
        // Before its connect is in the log, since a kick may come at once.
        edge.roster.insert(session.clone());
        metrics::gateway_connections(1);
        Presence {
            edge: edge.clone(),
            session: session.clone(),
            left: false,
        }
    }

    /// Leaves, and gives what is to be published.
    fn leave(&mut self, ended: &Ended) -> Option<QueuedDisconnect> {
        self.left = true;
        self.session.ended();
        self.edge.roster.remove(self.session.conn);
        metrics::gateway_connections(-1);
        let reason = match ended {
            // While the gateway stops its clients go elsewhere; those who do not end with its lease.
            Ended::Gone | Ended::TooSlow if self.edge.phase() == Phase::Stopping => return None,
            Ended::Gone | Ended::TooSlow => event::Ending::Closed,
            Ended::Exit => event::Ending::Exit,
            Ended::Closed(Close::Restart) => return None,
            Ended::Closed(_) => event::Ending::Closed,
            // The engine knows, or is to decide.
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

pub async fn run(edge: Arc<GatewayState>, mut socket: Socket, guest: AdmittedClient) {
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
    let pace = guest.pace;
    let places = guest.places();
    let mut presence = Presence::new(&edge, &session);
    let published = edge.uplink.append(vec![connect]).await;
    let now_ms = edge.clock.monotonic_ms();
    let pulse = LinkActivity::new(edge.config.ping_ms, pace, now_ms);
    let hello = frames::hello(&Hello {
        user: &session.user,
        gateway: &edge.config.name,
        epoch: edge.epoch.0,
        conn: conn.0,
        heartbeat_ms: pace.heartbeat_ms,
        timeout_ms: pace.timeout_ms,
        ping_ms: pulse.every_ms,
    });
    let first = match published {
        Ok(()) => Ok(hello),
        Err(error) => {
            edge.log_failed(&error);
            let message = "the connection could not be put into the log";
            Err(frames::error(None, "log_unavailable", message, Some(RETRY_MS)))
        }
    };
    let write = edge.config.write;
    let ended = match first {
        Ok(hello) => {
            let life = Box::new(Connection {
                allowance: RateLimit::new(edge.config.message_rate_max, now_ms),
                edge: edge.clone(),
                socket,
                session: session.clone(),
                pace,
                pulse,
                silent_after_ms: pace.timeout_ms.saturating_add(edge.config.silence_ms),
                bad_frames: 0,
                subscriptions: VecDeque::new(),
                news: None,
            });
            let (rest, ended) = life.run(hello).await;
            socket = rest;
            ended
        }
        Err(error) => {
            let _ = tokio::time::timeout(write, socket.send(Message::Text(error.into()))).await;
            Ended::Closed(Close::Later)
        }
    };
    if let Some(ending) = presence.leave(&ended) {
        edge.ended(ending).await;
    }
    farewell(socket, &ended, places).await;
}

/// The last words, within a bounded time.
async fn farewell(mut socket: Socket, ended: &Ended, places: Places) {
    let close = match ended {
        Ended::Gone | Ended::TooSlow => None,
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
        }
    };
    metrics::gateway_closed(close.map_or("gone", Close::name));
    let _ = tokio::time::timeout(CLOSING, said).await;
    drop(places);
}

impl Connection {
    /// Boxed, or the task would hold it several times over: as an argument, as a variable, and as part of the result.
    async fn run(mut self: Box<Self>, hello: String) -> (Socket, Ended) {
        let ended = match self.say(hello).await {
            Ok(()) => self.until_it_ends().await,
            Err(ended) => ended,
        };
        for subscription in &self.subscriptions {
            self.edge.audience.remove(&subscription.user, &self.session);
        }
        (self.socket, ended)
    }

    async fn until_it_ends(&mut self) -> Ended {
        let timer = tokio::time::sleep(Duration::from_millis(self.pulse.every_ms));
        tokio::pin!(timer);
        loop {
            let session = self.session.clone();
            let step = tokio::select! {
                biased;
                order = session.ordered() => self.obey(order).await,
                news = next_news(&mut self.news) => self.pass_on(&news).await,
                message = self.socket.next() => self.take(message).await,
                () = &mut timer => {
                    let now_ms = self.edge.clock.monotonic_ms();
                    let silent_ms = now_ms.saturating_sub(self.pulse.heard_ms);
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

    /// Says something, within the time that a client has to take it.
    async fn say(&mut self, frame: impl Into<Utf8Bytes>) -> Flow {
        self.send(Message::Text(frame.into())).await
    }

    async fn ping(&mut self, now_ms: u64) -> Flow {
        self.pulse.pinged = true;
        self.pulse.pinged_ms = now_ms;
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn send(&mut self, message: Message) -> Flow {
        self.pulse.said_ms = self.edge.clock.monotonic_ms();
        match tokio::time::timeout(self.edge.config.write, self.socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(Ended::TooSlow),
        }
    }

    async fn obey(&mut self, order: ConnectionCommand) -> Flow {
        match order {
            ConnectionCommand::Reconnect { after_ms } => self.say(frames::reconnect(after_ms)).await,
            ConnectionCommand::Kick(reason) => Err(Ended::Kicked(reason)),
            ConnectionCommand::Close(Close::TooSlow) => Err(Ended::TooSlow),
            ConnectionCommand::Close(close) => Err(Ended::Closed(close)),
        }
    }

    async fn pass_on(&mut self, news: &SubscribedChange) -> Flow {
        let wanted = self
            .subscriptions
            .iter()
            .find(|subscription| subscription.user == news.user);
        let Some(subscription) = wanted else {
            return Ok(());
        };
        let known = subscription
            .told
            .is_some_and(|told| told.partition == news.at.partition && news.at.offset <= told.offset);
        match known {
            true => Ok(()),
            false => self.say(news.frame.clone()).await,
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
            let message = format!("more than {rate} messages a second over a while");
            self.say(frames::error(None, "too_fast", &message, None)).await?;
            return Err(Ended::Closed(Close::TooFast));
        }
        let text = match message {
            Message::Text(text) => text,
            Message::Binary(_) => {
                let message = "frames are JSON in text messages";
                self.say(frames::error(None, "not_text", message, None)).await?;
                return Err(Ended::Closed(Close::NotText));
            }
            Message::Close(_) => return Err(Ended::Gone),
            Message::Pong(_) if std::mem::take(&mut self.pulse.pinged) => {
                self.answered(now_ms);
                return Ok(());
            }
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {
                self.showed_life(now_ms);
                return Ok(());
            }
        };
        match frames::read(&text) {
            Ok((said, id)) => {
                drop(text);
                self.answer(said, id, now_ms).await
            }
            Err(bad) => {
                self.say(frames::error(bad.id, "bad_frame", &bad.message, None)).await?;
                self.bad_frames += 1;
                match self.bad_frames {
                    ..BAD_FRAMES_MAX => Ok(()),
                    _ => Err(Ended::Closed(Close::BadRequest)),
                }
            }
        }
    }

    /// The client said something by itself.
    fn showed_life(&mut self, now_ms: u64) {
        self.pulse.heard_ms = now_ms;
        self.pulse.beat_ms = now_ms;
        self.edge.beats.add(&self.session);
    }

    /// The other end answered a ping, or sent one that is to be answered: life, but of no other pace than its platform's.
    fn answered(&mut self, now_ms: u64) {
        if self.pulse.beat_is_due(self.pace, now_ms) {
            self.showed_life(now_ms);
        }
        self.pulse.heard_ms = now_ms;
    }

    async fn answer(&mut self, said: ClientMessage, id: Option<u64>, now_ms: u64) -> Flow {
        match said {
            ClientMessage::Auth { .. } => {
                let message = "`auth` is for the first frame of a connection without a token";
                self.say(frames::error(id, "bad_frame", message, None)).await
            }
            ClientMessage::Heartbeat => {
                self.showed_life(now_ms);
                self.say(frames::alive()).await
            }
            ClientMessage::Ping => {
                self.answered(now_ms);
                self.say(frames::pong(id)).await
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
                    Ok(found) => frames::users(id, found.iter().flatten(), unknown(&users, &found)),
                    Err(error) => not_ready(id, &error),
                };
                self.say(answer).await
            }
            ClientMessage::Subscribe { users } => {
                self.showed_life(now_ms);
                let answer = self.subscribe(once(users), id).await;
                self.say(answer).await
            }
            ClientMessage::Unsubscribe { users } => {
                self.showed_life(now_ms);
                for user in &users {
                    self.forget(user);
                }
                self.say(frames::done(id)).await
            }
        }
    }

    fn link(&self) -> (event::DeviceRef<'static>, event::ConnRef<'static>) {
        let session = &self.session;
        (session.who(), session.via(&self.edge.config.name, self.edge.epoch))
    }

    /// Appends an event and says when it is durable.
    async fn publish(&mut self, event: Event<'static>, id: Option<u64>, now_ms: u64) -> Flow {
        // Each of them shows life, which the log is told by the event itself or by a beat.
        self.showed_life(now_ms);
        let answer = match self.edge.uplink.append(vec![event]).await {
            Ok(()) => frames::done(id),
            Err(error) => {
                self.edge.log_failed(&error);
                let message = "the log takes nothing at the moment";
                frames::error(id, "log_unavailable", message, Some(RETRY_MS))
            }
        };
        self.say(answer).await
    }

    /// Ends only when the logout is safe, in the log or in the queue.
    async fn log_out(&mut self, id: Option<u64>) -> Flow {
        let (who, via) = self.link();
        let (done, durable) = oneshot::channel();
        let logout = QueuedDisconnect {
            event: Event::Logout { who, via },
            done: Some(done),
        };
        self.edge.ended(logout).await;
        if durable.await == Ok(true) {
            // Whether it takes this or not, it is logged out.
            let _ = self.say(frames::done(id)).await;
            return Err(Ended::LoggedOut);
        }
        let message = "the log takes nothing at the moment and no more can wait for it; the user is still logged in";
        self.say(frames::error(id, "log_unavailable", message, Some(RETRY_MS)))
            .await
    }

    fn forget(&mut self, user: &str) {
        let before = self.subscriptions.len();
        self.subscriptions.retain(|subscription| *subscription.user != *user);
        if self.subscriptions.len() < before {
            self.edge.audience.remove(user, &self.session);
        }
    }

    /// Subscribes to users and gives the answer. Entered before the engine is asked: nothing falls between.
    async fn subscribe(&mut self, users: Vec<String>, id: Option<u64>) -> String {
        if self.news.is_none() {
            self.news = Some(self.session.listens());
        }
        for user in &users {
            // Inserted again, so that it is the youngest.
            self.forget(user);
            self.edge.audience.add(user, &self.session);
            self.subscriptions.push_back(Subscription {
                user: user.as_str().into(),
                told: None,
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
                        subscription.told = Some(standing.as_of);
                    }
                }
                frames::subscribed(id, found.iter().flatten(), unknown(&users, &found), &evicted)
            }
            Err(error) => {
                users.iter().for_each(|user| self.forget(user));
                not_ready(id, &error)
            }
        }
    }
}

async fn next_news(news: &mut Option<mpsc::Receiver<Arc<SubscribedChange>>>) -> Arc<SubscribedChange> {
    if let Some(receiver) = news
        && let Some(news) = receiver.recv().await
    {
        return news;
    }
    // Nothing will come.
    std::future::pending().await
}

/// Each user once, in the order given.
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

/// How a connection ended whose socket failed.
fn broken(error: &WsError) -> Ended {
    match error {
        WsError::Capacity(CapacityError::MessageTooLong { .. }) => Ended::Closed(Close::TooBig),
        // The network gave up on the other end; nobody said that the connection is over.
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

    /// A link whose client says nothing and answers pings at once: when it is pinged, and when that is published.
    fn quiet(ping_ms: u64, pace: Pace, for_ms: u64) -> (Vec<u64>, Vec<u64>) {
        let mut pulse = LinkActivity::new(ping_ms, pace, 0);
        let (mut pings, mut beats) = (Vec::new(), Vec::new());
        for now_ms in 0..for_ms {
            if pulse.due_ms() > now_ms {
                continue;
            }
            pings.push(now_ms);
            (pulse.said_ms, pulse.pinged_ms) = (now_ms, now_ms);
            if pulse.beat_is_due(pace, now_ms) {
                beats.push(now_ms);
                pulse.beat_ms = now_ms;
            }
            pulse.heard_ms = now_ms;
        }
        (pings, beats)
    }

    #[test]
    fn a_quiet_link_is_pinged_in_time_and_published_at_the_pace_of_its_platform() {
        let pace = |heartbeat_ms, timeout_ms| Pace {
            heartbeat_ms,
            timeout_ms,
        };
        // Ten minutes of a page that is hidden: never 60 s without life, never 30 s without a word.
        let (pings, beats) = quiet(25_000, pace(20_000, 60_000), 600_000);
        assert_eq!((pings[0], pings.len(), beats.len()), (25_000, 23, 23));
        // A phone's life is published each two minutes at most.
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
        pulse.said_ms = 20_000;
        assert_eq!(pulse.due_ms(), 25_000, "much is said to it, nothing is heard");
        pulse.heard_ms = 22_000;
        assert_eq!(pulse.due_ms(), 45_000, "nothing is said to it");
        pulse.said_ms = 30_000;
        assert_eq!(pulse.due_ms(), 47_000);
    }
}
