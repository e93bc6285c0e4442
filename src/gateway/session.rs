//! The life of one connection, from its `connect` in the log to what is published of its end.
//!
//! A task each. It waits for its client, for orders of the gateway and for changes of others; whatever it says is given
//! a bounded time, so that a client which does not read holds up nobody and no memory. Who is silent is not judged
//! here: the engine decides, and only long after its time-out the socket is closed, without a word to the log.

use super::door::{Guest, Places, Socket, close_with};
use super::endings::Ending;
use super::frames::{self, Close, Hello, Said, USERS};
use super::limits::Allowance;
use super::roster::{News, Order, Session};
use super::uplink::{AsOf, Standing, Unavailable};
use super::{Edge, Phase, unanswered};
use crate::metrics;
use crate::presence::change::KickReason;
use crate::presence::event::{self, Event};
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

struct Life {
    edge: Arc<Edge>,
    socket: Socket,
    session: Arc<Session>,
    /// By the monotonic clock.
    last_ms: u64,
    silent_after_ms: u64,
    allowance: Allowance,
    bad_frames: u32,
    subscriptions: VecDeque<Subscription>,
    news: Option<mpsc::Receiver<Arc<News>>>,
}

struct Subscription {
    user: Box<str>,
    /// What of its changes the client was told already by the answer to its subscription.
    told: Option<AsOf>,
}

/// Either it goes on, or it has ended.
type Going = Result<(), Ended>;

pub async fn run(edge: Arc<Edge>, mut socket: Socket, guest: Guest) {
    let conn = edge.next_conn();
    let home = super::beats::home(&guest.user, edge.uplink.partitions());
    let session = Session::new(conn, &guest.user, &guest.visitor.platform, &guest.visitor.device, home);
    let session = Arc::new(session);
    let connect = Event::Connect {
        who: session.who(),
        via: session.via(&edge.config.name, edge.epoch),
        intent: guest.visitor.intent,
        client: Some(guest.visitor.client.clone().into()),
    };
    let pace = guest.pace;
    let places = guest.places();
    // Before it is in the log, since a kick may come at once.
    edge.roster.insert(session.clone());
    let published = edge.uplink.append(vec![connect]).await;
    let hello = frames::hello(&Hello {
        user: &session.user,
        gateway: &edge.config.name,
        epoch: edge.epoch.0,
        conn: conn.0,
        heartbeat_ms: pace.heartbeat_ms,
        timeout_ms: pace.timeout_ms,
    });
    let now_ms = edge.clock.monotonic_ms();
    let first = match published {
        Ok(()) => Ok(hello),
        Err(error) => {
            edge.log_failed(&error);
            let message = "the connection could not be put into the log";
            Err(frames::error(None, "log_unavailable", message, Some(RETRY_MS)))
        }
    };
    metrics::gateway_connections(1);
    let write = edge.config.write;
    let ended = match first {
        Ok(hello) => {
            let life = Box::new(Life {
                allowance: Allowance::new(edge.config.message_rate_max, now_ms),
                edge: edge.clone(),
                socket,
                session: session.clone(),
                last_ms: now_ms,
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
    leave(&edge, &session, &ended);
    metrics::gateway_connections(-1);
    farewell(socket, &ended, places).await;
}

/// Publishes what is to be published of an end.
fn leave(edge: &Edge, session: &Arc<Session>, ended: &Ended) {
    session.ended();
    edge.roster.remove(session.conn);
    let reason = match ended {
        // While the gateway stops its clients go elsewhere; those who do not end with its lease.
        Ended::Gone | Ended::TooSlow if edge.phase() == Phase::Stopping => None,
        Ended::Gone | Ended::TooSlow => Some(event::Ending::Closed),
        Ended::Exit => Some(event::Ending::Exit),
        Ended::Closed(Close::Restart) => None,
        Ended::Closed(_) => Some(event::Ending::Closed),
        // The engine knows, or is to decide.
        Ended::Silent | Ended::LoggedOut | Ended::Kicked(_) => None,
    };
    if let Some(reason) = reason {
        edge.ended(Ending {
            event: Event::Disconnect {
                who: session.who(),
                via: session.via(&edge.config.name, edge.epoch),
                reason,
            },
            done: None,
        });
    }
}

/// The last words, within a bounded time.
async fn farewell(mut socket: Socket, ended: &Ended, places: Places) {
    let close = match ended {
        Ended::Gone | Ended::TooSlow => None,
        Ended::Silent => Some(Close::Silent),
        Ended::Exit | Ended::LoggedOut => Some(Close::LoggedOut),
        Ended::Kicked(reason) => Some(Close::from(*reason)),
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

impl Life {
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
        let silence = tokio::time::sleep(Duration::from_millis(self.silent_after_ms));
        tokio::pin!(silence);
        loop {
            let session = self.session.clone();
            let step = tokio::select! {
                biased;
                order = session.ordered() => self.obey(order).await,
                news = next_news(&mut self.news) => self.pass_on(&news).await,
                message = self.socket.next() => self.take(message).await,
                () = &mut silence => {
                    let silent_ms = self.edge.clock.monotonic_ms().saturating_sub(self.last_ms);
                    if silent_ms >= self.silent_after_ms {
                        return Ended::Silent;
                    }
                    let rest = Duration::from_millis(self.silent_after_ms - silent_ms);
                    silence.set(tokio::time::sleep(rest));
                    Ok(())
                }
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Says something, within the time that a client has to take it.
    async fn say(&mut self, frame: impl Into<Utf8Bytes>) -> Going {
        let saying = self.socket.send(Message::Text(frame.into()));
        match tokio::time::timeout(self.edge.config.write, saying).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(broken(&error)),
            Err(_) => Err(Ended::TooSlow),
        }
    }

    async fn obey(&mut self, order: Order) -> Going {
        match order {
            Order::Reconnect { after_ms } => self.say(frames::reconnect(after_ms)).await,
            Order::Kick(reason) => Err(Ended::Kicked(reason)),
            Order::Close(Close::TooSlow) => Err(Ended::TooSlow),
            Order::Close(close) => Err(Ended::Closed(close)),
        }
    }

    async fn pass_on(&mut self, news: &News) -> Going {
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

    async fn take(&mut self, message: Option<Result<Message, WsError>>) -> Going {
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

    fn showed_life(&mut self, now_ms: u64) {
        self.last_ms = now_ms;
        self.edge.beats.add(&self.session);
    }

    async fn answer(&mut self, said: Said, id: Option<u64>, now_ms: u64) -> Going {
        match said {
            Said::Auth { .. } => {
                let message = "`auth` is for the first frame of a connection without a token";
                self.say(frames::error(id, "bad_frame", message, None)).await
            }
            Said::Heartbeat => {
                self.showed_life(now_ms);
                self.say(frames::alive()).await
            }
            Said::Background => {
                let (who, via) = self.link();
                self.publish(Event::Background { who, via }, id, now_ms).await
            }
            Said::Foreground => {
                let (who, via) = self.link();
                self.publish(Event::Foreground { who, via }, id, now_ms).await
            }
            Said::CustomStatus { text } => {
                let user = self.session.user.to_string().into();
                let text = text.map(Into::into);
                self.publish(Event::CustomStatus { user, text }, id, now_ms).await
            }
            Said::Logout => self.log_out(id).await,
            Said::Exit => Err(Ended::Exit),
            Said::Query { users } => {
                self.showed_life(now_ms);
                let users = once(users);
                let answered = self.edge.uplink.users(users.clone()).await;
                let answer = match answered {
                    Ok(found) => frames::users(id, found.iter().flatten(), unknown(&users, &found)),
                    Err(error) => not_ready(id, &error),
                };
                self.say(answer).await
            }
            Said::Subscribe { users } => {
                self.showed_life(now_ms);
                let answer = self.subscribe(once(users), id).await;
                self.say(answer).await
            }
            Said::Unsubscribe { users } => {
                self.showed_life(now_ms);
                for user in &users {
                    self.forget(user);
                }
                self.say(frames::done(id)).await
            }
        }
    }

    fn link(&self) -> (event::Who<'static>, event::Via<'static>) {
        let session = &self.session;
        (session.who(), session.via(&self.edge.config.name, self.edge.epoch))
    }

    /// Appends an event and says when it is durable.
    async fn publish(&mut self, event: Event<'static>, id: Option<u64>, now_ms: u64) -> Going {
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
    async fn log_out(&mut self, id: Option<u64>) -> Going {
        let (who, via) = self.link();
        let (done, durable) = oneshot::channel();
        self.edge.ended(Ending {
            event: Event::Logout { who, via },
            done: Some(done),
        });
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
            // Anew, for it to be the youngest.
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

async fn next_news(news: &mut Option<mpsc::Receiver<Arc<News>>>) -> Arc<News> {
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

fn unknown<'u>(users: &'u [String], found: &[Option<Standing>]) -> Vec<&'u str> {
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
