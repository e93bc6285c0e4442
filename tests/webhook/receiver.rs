//! A receiver of callbacks: accepts or refuses them as the test decides, and can be killed and restarted.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse as _;
use axum::routing::post;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// No address is taken for longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// One attempt, in the order they came.
#[derive(Clone, Debug)]
pub struct Posted {
    pub user: String,
    pub version: u64,
    pub body: Value,
    pub query: String,
    /// Whether it was answered with 200.
    pub taken: bool,
    pub at: Instant,
}

/// What is answered: a status, or nothing for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    Status(u16),
    /// With a header, such as `Retry-After`.
    With(u16, &'static str, &'static str),
    Silence,
}

type Rule = Box<dyn FnMut(&Posted) -> Answer + Send>;

pub struct Receiver {
    pub address: SocketAddr,
    posted: Arc<Mutex<Vec<Posted>>>,
    rule: Arc<Mutex<Rule>>,
    runtime: Option<Runtime>,
}

impl Receiver {
    /// Takes everything.
    pub fn open() -> Receiver {
        let mut receiver = Receiver {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            posted: Arc::default(),
            rule: Arc::new(Mutex::new(Box::new(|_| Answer::Status(200)))),
            runtime: None,
        };
        receiver.revive();
        receiver
    }

    pub fn answer(&self, rule: impl FnMut(&Posted) -> Answer + Send + 'static) {
        *self.rule.lock().expect("no panic") = Box::new(rule);
    }

    /// Cuts every connection, and lets none in.
    pub fn kill(&mut self) {
        self.runtime.take().expect("it lives").shutdown_background();
    }

    /// At the same address as before.
    pub fn revive(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let began = Instant::now();
        let listener = loop {
            match runtime.block_on(TcpListener::bind(self.address)) {
                Ok(listener) => break listener,
                // The one that was killed may still be closing its socket.
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}: {}", self.address),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.address = listener.local_addr().expect("an address");
        let (posted, rule) = (self.posted.clone(), self.rule.clone());
        let take = move |uri: Uri, headers: HeaderMap, body: Bytes| {
            let answer = take(&posted, &rule, &uri, &headers, &body);
            async move {
                match answer {
                    Answer::Status(status) => StatusCode::from_u16(status).expect("a status").into_response(),
                    Answer::With(status, name, value) => {
                        let status = StatusCode::from_u16(status).expect("a status");
                        (status, [(name, value)]).into_response()
                    }
                    Answer::Silence => std::future::pending().await,
                }
            }
        };
        let router = Router::new().route("/hook", post(take));
        runtime.spawn(async move { axum::serve(listener, router).await });
        self.runtime = Some(runtime);
    }

    pub fn posted(&self) -> Vec<Posted> {
        self.posted.lock().expect("no panic").clone()
    }

    pub fn count(&self) -> usize {
        self.posted.lock().expect("no panic").len()
    }

    /// How many changes of each user were taken, having checked that no attempt was made before the change before it
    /// was taken.
    #[track_caller]
    pub fn taken(&self) -> BTreeMap<String, u64> {
        let mut taken: BTreeMap<String, u64> = BTreeMap::new();
        for posted in self.posted() {
            let upto = taken.entry(posted.user.clone()).or_default();
            assert!(
                posted.version <= *upto + 1,
                "{} has {upto}, and gets {posted:?}",
                posted.user
            );
            if posted.taken {
                *upto = posted.version.max(*upto);
            }
        }
        taken
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn take(posted: &Mutex<Vec<Posted>>, rule: &Mutex<Rule>, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> Answer {
    let body: Value = serde_json::from_slice(body).expect("JSON");
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    let mut attempt = Posted {
        user: body["Info"]["To_Account"].as_str().expect("a user").to_owned(),
        version: header("rollcall-version").parse().expect("a number"),
        body,
        query: uri.query().unwrap_or_default().to_owned(),
        taken: false,
        at: Instant::now(),
    };
    // Held from the decision to the note, for the order of the notes to be that of the decisions.
    let mut posted = posted.lock().expect("no panic");
    let answer = rule.lock().expect("no panic")(&attempt);
    attempt.taken = answer == Answer::Status(200);
    posted.push(attempt);
    answer
}
