//! One simulated person: a phone and a page on real sockets, and the effect that each event of its life should have.
//!
//! A person does one thing at a time and waits for its effect, so that the expected answer is known exactly: which
//! change, with which status after it, or which connection is closed with which code, and nothing else. An effect that
//! does not come in time is counted as missing. Anything else that comes is counted as unexpected. A gap in the user's
//! versions counts as either.

use super::Plan;
use super::tally::Tally;
use crate::api::frames::ClientMessage;
use crate::gateway::uplink::UserUpdate;
use crate::random::Random;
use futures_util::{SinkExt as _, StreamExt as _};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

/// An effect that has not arrived after this long is missing.
const MISSING: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(20);
/// A refused connection is retried after this delay plus a random delay of up to the same length.
const RETRY_MS: u64 = 1_000;
/// A person that still waits for the effect of its last action checks again after this delay.
const UNSETTLED: Duration = Duration::from_millis(200);

type Socket = WebSocketStream<TcpStream>;

/// The change that an action should lead to.
struct Expected {
    kind: &'static str,
    cause: &'static str,
    after: &'static str,
    since: Duration,
}

/// The state of a device in the engine, as far as its person knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DeviceStatus {
    Out,
    On,
    /// The link is lost.
    Away,
    /// Displaced by another device.
    Displaced,
}

struct Device {
    platform: &'static str,
    id: String,
    standing: DeviceStatus,
    socket: Option<Socket>,
    heartbeat: Duration,
    beat_at: Duration,
}

/// A connection that the gateway should close with this code.
struct Leaving {
    socket: Socket,
    code: u16,
    since: Duration,
}

pub struct Person {
    plan: Arc<Plan>,
    tally: Arc<Tally>,
    chance: Random,
    user: String,
    number: usize,
    phone: Device,
    page: Device,
    leaving: Vec<Leaving>,
    expected: VecDeque<Expected>,
    version: u64,
    texts: u64,
    /// Something went wrong, so the effects of later actions are unknown. This is reported once; later errors are not.
    lost: bool,
}

/// The conditions of the run, the same for all people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LoadConditions {
    Calm,
    /// The network fails for many people at once. The number distinguishes one storm from the next.
    Storm(u32),
    /// The run is over: everybody closes their connections.
    Over,
}

impl Person {
    pub fn new(plan: Arc<Plan>, tally: Arc<Tally>, number: usize) -> Person {
        let device = |platform: &'static str| Device {
            platform,
            id: format!("{platform}-{number}"),
            standing: DeviceStatus::Out,
            socket: None,
            heartbeat: Duration::MAX,
            beat_at: Duration::MAX,
        };
        Person {
            user: plan.user(number),
            chance: Random::of(plan.seed, number as u64),
            number,
            plan,
            tally,
            phone: device("android"),
            page: device("web"),
            leaving: Vec::new(),
            expected: VecDeque::new(),
            version: 0,
            texts: 0,
            lost: false,
        }
    }

    /// Lives until the run is over. `begins_after` spreads the first connects over time.
    pub async fn live(
        mut self,
        begins_after: Duration,
        mut changes: mpsc::UnboundedReceiver<(UserUpdate, Duration)>,
        mut weather: watch::Receiver<LoadConditions>,
    ) {
        tokio::time::sleep(begins_after).await;
        self.log_in_by_phone().await;
        let mut act_at = self.next_action();
        let mut is_over = false;
        while !(self.lost || is_over && self.is_settled() && !self.is_on()) {
            let now = self.plan.clock.monotonic();
            let wake_at = act_at
                .min(self.phone.beat_at)
                .min(self.page.beat_at)
                .min(self.impatient_at());
            tokio::select! {
                update = changes.recv() => match update {
                    Some((update, at)) => self.judge(&update, at),
                    None => return,
                },
                message = next(&mut self.phone.socket) => self.hear(true, message),
                message = next(&mut self.page.socket) => self.hear(false, message),
                (index, message) = next_leaving(&mut self.leaving) => self.hear_leaving(index, message),
                changed = weather.changed(), if !is_over => {
                    let now = *weather.borrow_and_update();
                    match now {
                        _ if changed.is_err() => return,
                        LoadConditions::Calm => {}
                        LoadConditions::Storm(_) => {
                            if self.is_settled() && self.chance.below(100) < self.plan.storm_percent {
                                act_at = self.storm(act_at);
                            }
                        }
                        LoadConditions::Over => {
                            is_over = true;
                            act_at = self.plan.clock.monotonic();
                        }
                    }
                }
                () = tokio::time::sleep(wake_at.saturating_sub(now)) => {
                    self.lose_patience();
                    self.beat().await;
                    let now = self.plan.clock.monotonic();
                    if now >= act_at {
                        act_at = match (self.is_settled(), is_over) {
                            // One action at a time; otherwise the effect of each would not be known.
                            (false, _) => now + UNSETTLED,
                            (true, true) => {
                                self.close_one();
                                now + UNSETTLED
                            }
                            (true, false) => {
                                self.act().await;
                                self.next_action()
                            }
                        };
                    }
                }
            }
        }
        if !self.lost {
            // From here on every change is unexpected.
            tokio::time::sleep(self.plan.quiet).await;
            while let Ok((update, at)) = changes.try_recv() {
                self.judge(&update, at);
            }
        }
        let open = [&self.phone, &self.page]
            .into_iter()
            .filter(|device| device.socket.is_some());
        self.tally.open.fetch_sub(open.count() as i64, Ordering::Relaxed);
    }

    fn next_action(&mut self) -> Duration {
        // A person that is not online comes back soon, so that nearly all people are online.
        let share = if self.is_on() { 1 } else { 8 };
        let mean = self.plan.action_every.as_millis() as u64 / share;
        let ms = self.chance.between(mean / 2, mean + mean / 2 + 1);
        self.plan.clock.monotonic() + Duration::from_millis(ms)
    }

    fn is_settled(&self) -> bool {
        self.expected.is_empty() && self.leaving.is_empty()
    }

    fn impatient_at(&self) -> Duration {
        let expected = self.expected.front().map(|expected| expected.since);
        let leaving = self.leaving.iter().map(|leaving| leaving.since).min();
        let since = [expected, leaving].into_iter().flatten().min();
        since.map_or(Duration::MAX, |since| since + MISSING)
    }

    fn lose_patience(&mut self) {
        let now = self.plan.clock.monotonic();
        while let Some(expected) = self.expected.front().filter(|expected| now >= expected.since + MISSING) {
            let (kind, cause) = (expected.kind, expected.cause);
            self.tally
                .missed(|| format!("{}: no change {cause} after {kind}", self.user));
            self.expected.pop_front();
            self.lost = true;
        }
        let (tally, user) = (&self.tally, &self.user);
        self.leaving.retain(|leaving| {
            let overdue = now >= leaving.since + MISSING;
            if overdue {
                tally.missed(|| format!("{user}: a connection was not closed with {}", leaving.code));
                tally.open.fetch_sub(1, Ordering::Relaxed);
            }
            !overdue
        });
    }

    /// Returns the status that the user should have.
    fn status(&self) -> &'static str {
        if self.phone.standing == DeviceStatus::On || self.page.standing == DeviceStatus::On {
            "online"
        } else if self.phone.standing == DeviceStatus::Away && self.plan.phone_has_push {
            "push_online"
        } else {
            "offline"
        }
    }

    fn expect(&mut self, kind: &'static str, cause: &'static str, since: Duration) {
        let after = self.status();
        self.expected.push_back(Expected {
            kind,
            cause,
            after,
            since,
        });
    }

    fn judge(&mut self, update: &UserUpdate, at: Duration) {
        let follows = update.version == self.version + 1;
        if !follows {
            let version = self.version;
            self.tally
                .surprised(|| format!("{}: version {} after {version}", self.user, update.version));
        }
        self.version = update.version;
        let fits = |expected: &Expected| *expected.cause == *update.cause && *expected.after == *update.after;
        match self.expected.front() {
            Some(expected) if fits(expected) => {
                self.tally.took(expected.kind, at.saturating_sub(expected.since));
                self.tally.as_expected.fetch_add(1, Ordering::Relaxed);
                self.expected.pop_front();
            }
            Some(expected) => {
                let (cause, after) = (expected.cause, expected.after);
                self.tally.surprised(|| {
                    format!(
                        "{}: {} {} instead of {cause} {after}",
                        self.user, update.cause, update.after
                    )
                });
                self.lost = true;
            }
            None => {
                self.tally
                    .surprised(|| format!("{}: {} {} without an action", self.user, update.cause, update.after));
                self.lost = true;
            }
        }
    }

    fn hear(&mut self, phone: bool, message: Option<Result<Message, WsError>>) {
        let device = if phone { &mut self.phone } else { &mut self.page };
        match message {
            Some(Ok(
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) | Message::Binary(_) | Message::Frame(_),
            )) => {}
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(0, |frame| frame.code.into());
                let platform = device.platform;
                device.socket = None;
                self.tally
                    .surprised(|| format!("{}: {platform} was closed with {code}", self.user));
                self.tally.open.fetch_sub(1, Ordering::Relaxed);
                self.lost = true;
            }
            Some(Err(_)) | None => {
                let platform = device.platform;
                device.socket = None;
                self.tally
                    .surprised(|| format!("{}: {platform} was cut off", self.user));
                self.tally.open.fetch_sub(1, Ordering::Relaxed);
                self.lost = true;
            }
        }
    }

    fn hear_leaving(&mut self, index: usize, message: Option<Result<Message, WsError>>) {
        let closed = match message {
            Some(Ok(Message::Close(frame))) => Some(frame.map_or(0, |frame| frame.code.into())),
            Some(Ok(_)) => None,
            Some(Err(_)) | None => Some(0),
        };
        let Some(code) = closed else { return };
        let leaving = self.leaving.swap_remove(index);
        self.tally.open.fetch_sub(1, Ordering::Relaxed);
        if code == leaving.code {
            self.tally
                .took("kick", self.plan.clock.monotonic().saturating_sub(leaving.since));
        } else {
            self.tally
                .surprised(|| format!("{}: closed with {code} instead of {}", self.user, leaving.code));
        }
    }

    async fn beat(&mut self) {
        let now = self.plan.clock.monotonic();
        for device in [&mut self.phone, &mut self.page] {
            if now >= device.beat_at {
                device.beat_at = now + device.heartbeat;
                if let Some(socket) = &mut device.socket {
                    // If the heartbeat does not arrive, the next read from the connection fails.
                    let _ = socket.send(Message::text(ClientMessage::Heartbeat.json())).await;
                    self.tally.heartbeats.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    async fn act(&mut self) {
        let dice = self.chance.below(100);
        match (self.phone.standing, self.page.standing) {
            (DeviceStatus::On, _) => match dice {
                ..25 => self.kill(true),
                25..50 => self.tunnel().await,
                50..65 => self.say_something().await,
                65..75 => self.log_out().await,
                _ => self.turn_page().await,
            },
            (DeviceStatus::Away, _) => self.resume_by_phone().await,
            (DeviceStatus::Displaced, _) if dice < 30 => self.resume_though_displaced().await,
            (DeviceStatus::Displaced, DeviceStatus::On) if dice < 70 => self.turn_page().await,
            (DeviceStatus::Out | DeviceStatus::Displaced, _) => self.log_in_by_phone().await,
        }
    }

    /// The network fails and is back after a moment. Returns the time of the person's next action.
    fn storm(&mut self, act_at: Duration) -> Duration {
        if self.phone.standing != DeviceStatus::On {
            return act_at;
        }
        self.kill(true);
        self.plan.clock.monotonic() + Duration::from_millis(self.chance.below(1_000))
    }

    async fn log_in_by_phone(&mut self) {
        self.tally.action("login");
        let since = self.plan.clock.monotonic();
        let Some(socket) = self.connect(true, "login").await else {
            return;
        };
        self.enter(true, socket);
        self.displace(false, since);
        self.expect("login", "login", since);
    }

    /// Opens the page, or closes it if it is open.
    async fn turn_page(&mut self) {
        if self.page.standing == DeviceStatus::On {
            self.kill(false);
            return;
        }
        self.tally.action("page");
        let since = self.plan.clock.monotonic();
        let Some(socket) = self.connect(false, "login").await else {
            return;
        };
        self.enter(false, socket);
        self.displace(true, since);
        self.expect("page", "login", since);
    }

    /// Records that a login on one device displaces the other one, if the policy says so.
    fn displace(&mut self, phone: bool, since: Duration) {
        if !self.plan.exclusive {
            return;
        }
        let device = if phone { &mut self.phone } else { &mut self.page };
        if matches!(device.standing, DeviceStatus::On | DeviceStatus::Away) {
            device.standing = DeviceStatus::Displaced;
        }
        device.beat_at = Duration::MAX;
        if let Some(socket) = device.socket.take() {
            self.leaving.push(Leaving {
                socket,
                code: 4002,
                since,
            });
        }
    }

    /// The app is killed, or the page is closed: the link ends without a message from the client.
    fn kill(&mut self, phone: bool) {
        self.tally.action(if phone { "kill" } else { "page_closed" });
        let since = self.plan.clock.monotonic();
        let device = if phone { &mut self.phone } else { &mut self.page };
        device.standing = DeviceStatus::Away;
        device.beat_at = Duration::MAX;
        if device.socket.take().is_some() {
            self.tally.open.fetch_sub(1, Ordering::Relaxed);
        }
        self.expect(if phone { "kill" } else { "page_closed" }, "closed", since);
    }

    fn is_on(&self) -> bool {
        self.phone.standing == DeviceStatus::On || self.page.standing == DeviceStatus::On
    }

    fn close_one(&mut self) {
        if self.phone.standing == DeviceStatus::On {
            self.kill(true);
        } else if self.page.standing == DeviceStatus::On {
            self.kill(false);
        }
    }

    async fn resume_by_phone(&mut self) {
        self.tally.action("resume");
        // The change that ended the link has already been reported. The resume is measured from now.
        let since = self.plan.clock.monotonic();
        let Some(socket) = self.connect(true, "resume").await else {
            return;
        };
        self.enter(true, socket);
        self.expect("resume", "resume", since);
    }

    /// The displaced phone reconnects by itself and is refused.
    async fn resume_though_displaced(&mut self) {
        self.tally.action("resume_displaced");
        let since = self.plan.clock.monotonic();
        let Some(socket) = self.connect(true, "resume").await else {
            return;
        };
        self.leaving.push(Leaving {
            socket,
            code: 4002,
            since,
        });
    }

    /// Changes from one network to another: a new connection opens while the gateway still has the old one. This causes
    /// no change.
    async fn tunnel(&mut self) {
        self.tally.action("tunnel");
        let since = self.plan.clock.monotonic();
        let Some(socket) = self.connect(true, "resume").await else {
            return;
        };
        if let Some(old) = self.phone.socket.take() {
            self.leaving.push(Leaving {
                socket: old,
                code: 4001,
                since,
            });
        }
        self.enter(true, socket);
    }

    async fn say_something(&mut self) {
        self.tally.action("custom_status");
        self.texts += 1;
        let said = ClientMessage::CustomStatus {
            text: Some(format!("text {}", self.texts)),
        };
        let since = self.plan.clock.monotonic();
        self.send(said.json()).await;
        self.expect("custom_status", "custom_status", since);
    }

    async fn log_out(&mut self) {
        self.tally.action("logout");
        let since = self.plan.clock.monotonic();
        self.send(ClientMessage::Logout.json()).await;
        if let Some(socket) = self.phone.socket.take() {
            self.leaving.push(Leaving {
                socket,
                code: 1000,
                since,
            });
        }
        self.phone.beat_at = Duration::MAX;
        self.phone.standing = DeviceStatus::Out;
        self.expect("logout", "logout", since);
    }

    async fn send(&mut self, frame: String) {
        if let Some(socket) = &mut self.phone.socket {
            // If the message does not arrive, its effect is counted as missing.
            let _ = socket.send(Message::text(frame)).await;
        }
    }

    fn enter(&mut self, phone: bool, socket: Socket) {
        let now = self.plan.clock.monotonic();
        let heartbeat = if phone {
            self.plan.phone_beats
        } else {
            self.plan.page_beats
        };
        // The first heartbeat comes at a random time within the interval, so that people do not send theirs together.
        let first = self.chance.below(heartbeat.as_millis() as u64 + 1);
        let device = if phone { &mut self.phone } else { &mut self.page };
        device.standing = DeviceStatus::On;
        device.socket = Some(socket);
        device.heartbeat = heartbeat;
        device.beat_at = now + Duration::from_millis(first);
    }

    /// Opens a connection and waits for the greeting. Retries while the gateway refuses. Returns `None` if no
    /// connection could be opened.
    async fn connect(&mut self, phone: bool, intent: &str) -> Option<Socket> {
        let began = self.plan.clock.monotonic();
        loop {
            let dialled = tokio::time::timeout(CONNECT, self.dial(phone, intent)).await;
            if let Ok(Ok(socket)) = dialled {
                self.tally.connects.fetch_add(1, Ordering::Relaxed);
                self.tally.open.fetch_add(1, Ordering::Relaxed);
                let took = self.plan.clock.monotonic().saturating_sub(began);
                self.tally.took("hello", took);
                return Some(socket);
            }
            self.tally.refused.fetch_add(1, Ordering::Relaxed);
            if self.plan.clock.monotonic().saturating_sub(began) > MISSING {
                let why = match dialled {
                    Ok(Err(error)) => error,
                    _ => "nothing was answered".to_owned(),
                };
                self.tally.missed(|| format!("{}: no connection: {why}", self.user));
                self.lost = true;
                return None;
            }
            let pause = RETRY_MS + self.chance.below(RETRY_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn dial(&mut self, phone: bool, intent: &str) -> Result<Socket, String> {
        let said = |error: &dyn std::fmt::Display| error.to_string();
        let device = if phone { &self.phone } else { &self.page };
        let (url, address) = &self.plan.gateways[self.chance.below(self.plan.gateways.len() as u64) as usize];
        let query: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("platform", device.platform)
            .append_pair("device", &device.id)
            .append_pair("intent", intent)
            .append_pair("user", &self.user)
            .append_pair("app", "load")
            .finish();
        let mut request = format!("{url}?{query}")
            .into_client_request()
            .map_err(|error| said(&error))?;
        if let Some(token) = self.plan.token(&self.user) {
            let bearer = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|error| said(&error))?;
            request.headers_mut().insert("authorization", bearer);
        }
        let stream = self.stream(*address).await.map_err(|error| said(&error))?;
        let small = WebSocketConfig::default()
            .read_buffer_size(1 << 10)
            .write_buffer_size(0);
        let connecting = client_async_with_config(request, stream, Some(small));
        let (mut socket, _) = connecting.await.map_err(|error| said(&error))?;
        match socket.next().await {
            Some(Ok(Message::Text(text))) if text.starts_with(r#"{"type":"hello""#) => Ok(socket),
            Some(Ok(other)) => Err(format!("{other} in place of a hello")),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("closed before a hello".to_owned()),
        }
    }

    /// Connects from one of many addresses of this machine, since one address has only some ten thousand ports.
    async fn stream(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let SocketAddr::V4(to) = address
            && to.ip().is_loopback()
        {
            let from = (self.number % self.plan.addresses) as u32 + 2;
            let from = std::net::Ipv4Addr::from_bits(0x7f00_0000 + from);
            socket.bind(SocketAddr::from((from, 0)))?;
        }
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

async fn next(socket: &mut Option<Socket>) -> Option<Result<Message, WsError>> {
    match socket {
        Some(socket) => socket.next().await,
        None => std::future::pending().await,
    }
}

async fn next_leaving(leaving: &mut [Leaving]) -> (usize, Option<Result<Message, WsError>>) {
    if leaving.is_empty() {
        return std::future::pending().await;
    }
    let all = leaving.iter_mut().map(|leaving| leaving.socket.next());
    let (message, index, _) = futures_util::future::select_all(all).await;
    (index, message)
}
