//! TLS: of the HTTP interface, of our own clients, and of nodes among themselves.

use crate::authority::{Authority, BOTH, Certified};
use crate::house::{self, connect, wait_until};
use rcgen::ExtendedKeyUsagePurpose;
use rollcall::api::client::RouteRequest;
use rollcall::api::routes::RouteId;
use rollcall::clock::{Clock, ManualClock};
use rollcall::config::{CertificateFiles, Scopes};
use rollcall::engine::{Engine, Tuning};
use rollcall::http::{AppState, ConnectionTimeouts, Limits, PeerKey, PeerTrust, Peers, serve_with};
use rollcall::log::Owners;
use rollcall::log::memory::MemoryLog;
use rollcall::presence::{Partition, Revision};
use rollcall::tls::{Certificate, Trust, TrustedClient};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

const TOKEN: &str = "the-token-of-the-reader";
const PATIENCE: Duration = Duration::from_secs(60);

fn files(certified: &Certified) -> CertificateFiles {
    CertificateFiles {
        chain: certified.chain.clone(),
        key: certified.key.clone(),
    }
}

/// A server with TLS in this process, and its authority.
struct Secured {
    directory: tempfile::TempDir,
    authority: Authority,
    ca: PathBuf,
    certificate: Arc<Certificate>,
    address: SocketAddr,
    clock: Arc<ManualClock>,
    engine: Arc<Engine>,
    _stop: [watch::Sender<bool>; 2],
    runtime: Option<Runtime>,
}

impl Secured {
    /// With a secret of nodes, if it is a node of several, which must have certificates then.
    fn new(limits: Limits, secret: Option<&str>) -> Secured {
        let directory = tempfile::tempdir().expect("a directory");
        let authority = Authority::new("ours");
        let ca = authority.write(&directory.path().join("ca.pem"));
        let certified = authority.certify(directory.path(), "server", &BOTH);
        let clock = Arc::new(ManualClock::new(1_000));
        let clients = secret.map(|_| ca.as_path());
        let certificate = Certificate::open("http", &files(&certified), clients, clock.clone()).expect("usable");
        let certificate = Arc::new(certificate);
        let log = Arc::new(MemoryLog::new(1, clock.clone()));
        let engine = Engine::start(log, None, clock.clone(), Tuning::default()).expect("started");
        let engine = Arc::new(engine);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let peers = secret.map(|secret| {
            let me = format!("https://localhost:{}", address.port());
            node(&me, secret, &ca, Some(files(&certified)), clock.clone())
        });
        let scopes = Scopes {
            read: true,
            publish: true,
            ..Scopes::default()
        };
        let tokens = [(TOKEN.to_owned(), scopes)];
        let (stop, stopping) = watch::channel(false);
        let app = AppState::new(engine.clone(), Some(&tokens), address, peers, stopping).expect("threads");
        let serving = watch::channel(false).0;
        let served = serve_with(
            listener,
            Some(certificate.clone()),
            app.router(),
            limits,
            serving.subscribe(),
        );
        runtime.spawn(served);
        Secured {
            directory,
            authority,
            ca,
            certificate,
            address,
            clock,
            engine,
            _stop: [stop, serving],
            runtime: Some(runtime),
        }
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn block_on<T>(&self, asked: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("it runs").block_on(asked)
    }

    /// Sends a request and returns status and body, or why there is no answer.
    fn get(&self, client: &reqwest::Client, path: &str) -> Result<(u16, String), reqwest::Error> {
        self.block_on(async {
            let answer = client
                .get(format!("{}{path}", self.url()))
                .bearer_auth(TOKEN)
                .send()
                .await?;
            Ok((answer.status().as_u16(), answer.text().await?))
        })
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        house::end(self.runtime.take(), &self.engine);
    }
}

/// Trusts the certificates of one authority.
fn client(ca: &str) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(ca.as_bytes()).expect("a certificate");
    let builder = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .timeout(PATIENCE);
    builder.build().expect("a client")
}

fn opened(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(bytes).expect("taken");
    stream
}

fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is still open");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn limits(connections: usize, head_ms: u64) -> Limits {
    Limits {
        connections,
        patience: ConnectionTimeouts {
            head: Duration::from_millis(head_ms),
            ..ConnectionTimeouts::default()
        },
    }
}

#[test]
fn a_request_without_tls_gets_a_sentence_and_a_handshake_has_its_time() {
    let server = Secured::new(limits(100, 500), None);
    for head in [
        "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /v1/events HTTP/1.1\r\n",
    ] {
        let answer = rest(opened(server.address, head.as_bytes()));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("must begin with https://"), "{answer}");
    }
    // Nothing, and the beginning of a handshake: closed without an answer.
    assert_eq!(rest(opened(server.address, b"")), "");
    assert_eq!(rest(opened(server.address, &[22, 3, 1, 2, 0, 1])), "");
    assert_eq!(
        server
            .get(&client(&server.authority.pem), "/healthz")
            .expect("an answer")
            .1,
        "ok\n"
    );
    let (_, metrics) = server
        .get(&client(&server.authority.pem), "/metrics")
        .expect("an answer");
    for line in [
        // 2100-01-01.
        "rollcall_certificate_expires_timestamp_seconds{listener=\"http\"} 4102444800",
        "rollcall_http_handshakes_failed_total{reason=\"plain_http\"} ",
        "rollcall_http_handshakes_failed_total{reason=\"time\"} ",
    ] {
        let found = metrics.lines().find_map(|found| found.strip_prefix(line));
        assert!(found.is_some_and(|rest| rest != "0"), "{line}: {found:?}");
    }
}

/// A connection that is not made again when it breaks, as a client's pool would.
type OneConnection = TlsStream<tokio::net::TcpStream>;

/// Performs the handshake on a connection that is open.
async fn secured(server: &Secured, stream: tokio::net::TcpStream) -> std::io::Result<OneConnection> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(server.authority.pem.as_bytes()).expect("a certificate");
    roots.add(ca).expect("a CA");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn connected(server: &Secured) -> std::io::Result<OneConnection> {
    secured(server, tokio::net::TcpStream::connect(server.address).await?).await
}

/// Sends a request and returns its status and its body.
async fn ask(connection: &mut OneConnection, path: &str) -> std::io::Result<(String, String)> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    connection.write_all(head.as_bytes()).await?;
    let mut connection = tokio::io::BufReader::new(connection);
    let (mut status, mut length) = (String::new(), None);
    connection.read_line(&mut status).await?;
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            break;
        }
        if let Some(bytes) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
            length = Some(bytes.trim().parse().expect("a number"));
        }
    }
    let mut body = vec![0; length.expect("its length")];
    connection.read_exact(&mut body).await?;
    Ok((status.trim().to_owned(), String::from_utf8(body).expect("text")))
}

const OK: &str = "HTTP/1.1 200 OK";

/// How many handshakes were given up for others, in this process.
async fn evicted(connection: &mut OneConnection) -> f64 {
    let (_, metrics) = ask(connection, "/metrics").await.expect("an answer");
    let name = "rollcall_http_handshakes_failed_total{reason=\"evicted\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name));
    count.map_or(0.0, |count| count.parse().expect("a number"))
}

#[test]
fn handshakes_that_stall_close_each_other_and_not_a_connection_that_has_begun() {
    let server = Secured::new(limits(16, 60_000), None);
    server.block_on(async {
        let mut kept = connected(&server).await.expect("a place");
        assert_eq!(ask(&mut kept, "/v1/stats").await.expect("an answer").0, OK);
        let before = evicted(&mut kept).await;
        let stalled: Vec<TcpStream> = (0..60).map(|_| opened(server.address, &[22, 3, 1, 2, 0, 1])).collect();
        // All but the last ones, for which there are places, are closed.
        for one in &stalled[..45] {
            assert_eq!(rest(one.try_clone().expect("a socket")), "");
        }
        assert_eq!(ask(&mut kept, "/v1/stats").await.expect("still open").0, OK);
        assert!(evicted(&mut kept).await > before);
        let mut late = connected(&server).await.expect("a place");
        assert_eq!(ask(&mut late, "/healthz").await.expect("an answer").0, OK);
        // They were open until here.
        drop(stalled);
    });
}

#[test]
fn a_newcomer_gets_in_where_all_others_are_idle_and_many_arrive() {
    let server = Secured::new(limits(16, 60_000), None);
    server.block_on(async {
        let mut idle = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let mut one = connected(&server).await.expect("a place");
            assert_eq!(ask(&mut one, "/healthz").await.expect("an answer").0, OK);
            // Ends when the server closes it.
            idle.spawn(async move { drop(one.read(&mut [0]).await) });
        }
        let newcomer = tokio::net::TcpStream::connect(server.address).await.expect("a place");
        let stalled: Vec<TcpStream> = (0..3).map(|_| opened(server.address, &[22, 3, 1, 2, 0, 1])).collect();
        // An idle connection makes room for each of the four.
        for _ in 0..4 {
            let closed = tokio::time::timeout(PATIENCE, idle.join_next()).await;
            closed.expect("it is closed").expect("some are left").expect("it ended");
        }
        let mut newcomer = secured(&server, newcomer).await.expect("its handshake goes on");
        assert_eq!(ask(&mut newcomer, "/healthz").await.expect("an answer").0, OK);
        drop(stalled);
    });
}

#[test]
fn a_certificate_is_replaced_and_open_connections_go_on() {
    let server = Secured::new(limits(100, 10_000), None);
    let early = client(&server.authority.pem);
    let mut changes = server.block_on(async {
        let url = format!("{}/v1/changes", server.url());
        early.get(url).bearer_auth(TOKEN).send().await.expect("an answer")
    });
    let next = server.block_on(changes.chunk()).expect("open").expect("it begins");
    assert!(String::from_utf8_lossy(&next).contains(": from "));
    // A chain that does not fit the key, as between two writes: the previous one stays.
    let other = Authority::new("another");
    let elsewhere = tempfile::tempdir().expect("a directory");
    let second = other.certify(elsewhere.path(), "server", &[ExtendedKeyUsagePurpose::ServerAuth]);
    let place = |name: &str| server.directory.path().join(name);
    std::fs::copy(&second.chain, place("server.pem")).expect("copied");
    for _ in 0..3 {
        server.certificate.reload_if_changed();
    }
    assert_eq!(
        server
            .get(&client(&server.authority.pem), "/healthz")
            .expect("an answer")
            .0,
        200
    );
    std::fs::copy(&second.key, place("server.key")).expect("copied");
    server.certificate.reload_if_changed();
    assert!(
        server.get(&client(&server.authority.pem), "/healthz").is_err(),
        "the new one is shown"
    );
    let late = client(&other.pem);
    assert_eq!(server.get(&late, "/healthz").expect("an answer").0, 200);
    let body = json!([connect("alice", 1)]).to_string();
    let published = server.block_on(async {
        let request = late
            .post(format!("{}/v1/events", server.url()))
            .bearer_auth(TOKEN)
            .body(body);
        request.send().await.expect("an answer").status().as_u16()
    });
    assert_eq!(published, 200);
    // The subscription was opened before, and still gets what happens.
    let mut seen = String::new();
    while !seen.contains("alice") {
        let chunk = server
            .block_on(changes.chunk())
            .expect("still open")
            .expect("it goes on");
        seen.push_str(&String::from_utf8_lossy(&chunk));
    }
}

/// What a node asks.
fn alice() -> RouteRequest {
    RouteRequest::new(RouteId::UserById, &[("id", "alice")])
}

struct Nobody;

impl Owners for Nobody {
    fn url_of(&self, _: Partition) -> Option<String> {
        None
    }
    fn lowest_revision(&self) -> Option<Revision> {
        None
    }
}

/// A node with this URL that requires certificates.
fn node(me: &str, secret: &str, ca: &Path, shown: Option<CertificateFiles>, clock: Arc<dyn Clock>) -> Peers {
    let trust = PeerTrust::Key(PeerKey::new(secret));
    let files = Trust {
        ca: ca.to_owned(),
        shown,
    };
    let client = TrustedClient::open(files, Peers::client).expect("usable");
    let peers = Peers::new(Arc::new(Nobody), me, trust, clock).expect("a node");
    peers.with_certificates(Arc::new(client), true)
}

#[test]
fn a_node_answers_nodes_only_with_a_certificate_of_the_ca_and_asks_them_only_over_tls() {
    const SECRET: &str = "the secret of all nodes";
    let server = Secured::new(limits(100, 10_000), Some(SECRET));
    let directory = server.directory.path();
    let ask = |shown: Option<CertificateFiles>, secret: &str, url: &str| {
        let asks = node("https://localhost:1", secret, &server.ca, shown, server.clock.clone());
        let answered = server.block_on(asks.send(url, alice()));
        answered
            .map(|(status, _)| status.as_u16())
            .map_err(|error| error.message().to_owned())
    };
    let both = server.authority.certify(directory, "node", &BOTH);
    assert_eq!(
        ask(Some(files(&both)), SECRET, &server.url()),
        Ok(404),
        "alice is unknown, and the node is believed"
    );
    // The secret alone is not enough, and neither is the certificate.
    let refused = ask(None, SECRET, &server.url()).expect_err("no certificate");
    assert!(
        refused.contains("did not prove that it is a node") && refused.contains("401"),
        "{refused}"
    );
    let refused = ask(Some(files(&both)), "another secret of nodes", &server.url()).expect_err("another secret");
    assert!(refused.contains("401"), "{refused}");
    // One that another authority has signed, and one that is for servers only, end the handshake.
    let foreign = Authority::new("another").certify(directory, "foreign", &BOTH);
    let serves = server
        .authority
        .certify(directory, "serves", &[ExtendedKeyUsagePurpose::ServerAuth]);
    for certified in [foreign, serves] {
        let refused = ask(Some(files(&certified)), SECRET, &server.url()).expect_err("no certificate of a node");
        assert!(refused.contains("does not answer"), "{refused}");
    }
    // A node without CAs of nodes says what it could be given.
    let trust = PeerTrust::Key(PeerKey::new(SECRET));
    let without = Peers::new(Arc::new(Nobody), "https://localhost:1", trust, server.clock.clone()).expect("a node");
    let refused = server.block_on(without.send(&server.url(), alice()));
    let refused = refused.expect_err("an unknown CA").message().to_owned();
    assert!(
        refused.contains("does not answer") && refused.contains("--peer-ca"),
        "{refused}"
    );
    // Nobody listens there who could learn who is asked for.
    let refused = ask(Some(files(&both)), SECRET, "http://127.0.0.1:1").expect_err("without TLS");
    assert!(refused.contains("only over TLS"), "{refused}");
    // Callers need no certificate, unless they say that they are nodes.
    let caller = client(&server.authority.pem);
    assert_eq!(server.get(&caller, "/v1/stats").expect("an answer").0, 200);
    let claims = server.block_on(async {
        let request = caller.get(format!("{}/v1/stats", server.url())).bearer_auth(TOKEN);
        let answer = request
            .header("rollcall-from-node", "https://localhost:1")
            .send()
            .await
            .expect("an answer");
        (answer.status().as_u16(), answer.text().await.expect("text"))
    });
    assert!(claims.0 == 401 && claims.1.contains("unknown_peer"), "{claims:?}");
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn rollcall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

fn run(arguments: &[&str]) -> (String, Option<i32>) {
    let output = rollcall(arguments).output().expect("it runs");
    let printed = [output.stdout, output.stderr].concat();
    (String::from_utf8(printed).expect("text"), output.status.code())
}

/// Starts a command and returns the first line with this in it, of its output or its log.
fn line_of(command: &mut Command, wanted: &str) -> (Running, String) {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let (sender, lines) = std::sync::mpsc::channel();
    let outputs: [Box<dyn std::io::Read + Send>; 2] = [
        Box::new(child.stdout.take().expect("its output")),
        Box::new(child.stderr.take().expect("its log")),
    ];
    for output in outputs {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // The test may have what it wanted.
                let _ = sender.send(line);
            }
        });
    }
    drop(sender);
    let running = Running(child);
    let mut seen = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(wanted) => return (running, line),
            Ok(line) => seen.push(line),
            Err(_) => panic!("no {wanted:?} in {seen:#?}"),
        }
    }
}

/// Answers one request after the other with this, on a port.
fn answering(answer: String) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            // The client may be gone.
            let _ = stream
                .read(&mut [0; 4_096])
                .and_then(|_| stream.write_all(answer.as_bytes()));
        }
    });
    address
}

#[test]
fn health_needs_no_ca_without_tls_and_goes_nowhere_else_with_any_certificate() {
    let ready = answering("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nready".to_owned());
    let health = |url: &str| {
        let mut command = rollcall(&["health", "--url", url]);
        // As in a container that has none.
        command
            .env("SSL_CERT_FILE", "/nowhere.pem")
            .env("SSL_CERT_DIR", "/nowhere");
        command
    };
    assert!(health(&format!("http://{ready}")).status().expect("it runs").success());
    let moved = answering(format!(
        "HTTP/1.1 302 Found\r\nLocation: http://{ready}/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ));
    let moved = format!("http://{moved}");
    assert!(health(&moved).status().expect("it runs").success());
    let output = health(&moved).arg("--any-certificate").output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.code() == Some(1) && said.contains("302"), "{said}");
}

#[test]
fn a_certificate_that_is_marked_as_a_ca_is_named_as_the_cause_and_no_other_server_is_asked_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let (chain, key, data) = (path("self.pem"), path("self.key"), path("data"));
    // As `openssl req -x509` makes it: the certificate of the server is that of a CA.
    let authority = Authority::new("ours");
    authority.write(Path::new(&chain));
    std::fs::write(&key, authority.issuer.key().serialize_pem()).expect("written");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--data", &data];
    let mut serving = rollcall(&[&serve[..], &["--http-tls-cert", &chain, "--http-tls-key", &key]].concat());
    let (_server, console) = line_of(&mut serving, "console  https://");
    let url = console.trim_start_matches("console  ").trim_end_matches('/').to_owned();
    for command in [
        &["stats", "--url", &url, "--ca-file", &chain][..],
        &["doctor", "--data", &data, "--url", &url, "--ca-file", &chain],
        &["health", "--url", &url, "--ca-file", &chain],
        &[
            "load",
            "--gateway",
            "ws://127.0.0.1:1",
            "--engine",
            &url,
            "--engine-ca-file",
            &chain,
        ],
    ] {
        let (said, status) = run(command);
        assert!(
            said.contains("but its certificate is not accepted: the certificate is marked as a CA (CA:TRUE)"),
            "{said}"
        );
        assert!(status != Some(0) && !said.contains("start one"), "{said}");
    }
}

#[test]
fn our_own_clients_speak_tls_and_trust_only_the_ca_that_is_given() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("UTF-8").to_owned();
    let authority = Authority::new("ours");
    authority.write(&directory.path().join("ca.pem"));
    Authority::new("another").write(&directory.path().join("other.pem"));
    authority.certify(directory.path(), "server", &[ExtendedKeyUsagePurpose::ServerAuth]);
    let (ca, other) = (path("ca.pem"), path("other.pem"));
    let serve = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        &path("data"),
        "--http-tls-cert",
        &path("server.pem"),
    ];
    let mut serving = rollcall(&[&serve[..], &["--http-tls-key", &path("server.key")]].concat());
    let (_server, console) = line_of(&mut serving, "console  https://");
    let address = console.trim_start_matches("console  https://").trim_end_matches('/');
    let url = format!("https://{address}");
    wait_until("it is ready", || {
        run(&["health", "--url", &url, "--ca-file", &ca]).1 == Some(0)
    });
    assert_eq!(
        run(&["health", "--url", &url, "--any-certificate"]),
        ("ready\n".to_owned(), Some(0))
    );
    // A CA that is given for other commands does not hinder it, and nothing secret goes to anybody.
    let any = ["health", "--any-certificate", "--url"];
    let output = rollcall(&[&any[..], &[&url]].concat())
        .env("ROLLCALL_CA_FILE", &other)
        .output();
    assert!(output.expect("it runs").status.success());
    let (said, status) = run(&[&any[..], &[&url.replace("://", "://someone:secret@")]].concat());
    assert!(status == Some(1) && said.contains("a user or a password"), "{said}");
    assert!(!said.contains("secret"), "{said}");
    let (said, status) = run(&["stats", "--json", "--url", &url, "--ca-file", &ca]);
    assert!(status == Some(0) && said.contains("\"partitions\""), "{said}");
    let (said, _) = run(&[
        "doctor",
        "--json",
        "--data",
        &path("data"),
        "--url",
        &url,
        "--ca-file",
        &ca,
    ]);
    assert!(said.contains("\"check\":\"server\",\"verdict\":\"well\""), "{said}");
    // Each refuses a certificate of another CA, and names a file that it cannot use.
    for (command, trusted, says) in [
        ("health", Some(&other), "answers, but its certificate is not accepted: "),
        ("health", None, "answers, but its certificate is not accepted: "),
        ("stats", Some(&other), "(--url), but its certificate is not accepted: "),
        ("stats", None, "(--url), but its certificate is not accepted: "),
        ("doctor", Some(&other), "(--url), but its certificate is not accepted: "),
        ("stats", Some(&path("server.key")), "has no certificate"),
        ("health", Some(&path("nowhere.pem")), "nowhere.pem failed"),
    ] {
        let mut arguments = vec![command, "--url", &url];
        arguments.extend(trusted.iter().flat_map(|file| ["--ca-file", file.as_str()]));
        let (said, status) = run(&arguments);
        assert!(said.contains(says) && status != Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("start one"), "a server runs there: {said}");
    }
    let gateway = [
        "gateway",
        "--listen",
        "127.0.0.1:0",
        "--gateway-insecure",
        "--data",
        &path("gateway"),
    ];
    let engine = ["--engine", &url, "--engine-ca-file", &ca];
    let (_gateway, clients) = line_of(&mut rollcall(&[&gateway[..], &engine].concat()), "clients  ws://");
    let websocket = clients.trim_start_matches("clients  ").to_owned();
    let load = [
        "load",
        "--gateway",
        &websocket,
        "--people",
        "3",
        "--seconds",
        "1",
        "--storm-seconds",
        "0",
    ];
    let (said, status) = run(&[&load[..], &engine].concat());
    assert!(status == Some(0) && said.contains("\"changes_missing\": 0"), "{said}");
    let webhook = [
        "webhook",
        "--to",
        "http://127.0.0.1:1/",
        "--app",
        "1400000000",
        "--position",
        &path("position"),
    ];
    let more = ["--dead-letters", &path("dead-letters")];
    line_of(&mut rollcall(&[&webhook[..], &more, &engine].concat()), "following");
}
