//! A proxy before an S3-compatible server, which does to requests what networks and stores do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Fair,
    /// The connection is closed before the request is passed on.
    Away,
    /// The answer is this status with this code, and the request is not passed on.
    Answer(&'static str, &'static str),
    /// The next PUT of a manifest is carried out, but its response is lost.
    LostResponse,
    /// A PUT of a manifest meets another request to it.
    Conflict,
    /// The store does not know conditions.
    WithoutConditions,
    /// The response comes after so long.
    Slow(Duration),
}

pub struct Proxy {
    pub address: SocketAddr,
    weather: Arc<Mutex<Weather>>,
}

impl Proxy {
    /// Before `http://HOST:PORT`.
    pub fn before(endpoint: &str) -> Proxy {
        let upstream: SocketAddr = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let weather = Arc::new(Mutex::new(Weather::Fair));
        let of_connections = weather.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let weather = of_connections.clone();
                // What fails here is a client that has gone.
                std::thread::spawn(move || client.and_then(|client| serve(client, upstream, &weather)));
            }
        });
        Proxy { address, weather }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    pub fn weather(&self) -> Arc<Mutex<Weather>> {
        self.weather.clone()
    }
}

/// Passes one request on; the next one has its own connection.
fn serve(mut client: TcpStream, upstream: SocketAddr, weather: &Mutex<Weather>) -> std::io::Result<()> {
    let mut from = BufReader::new(client.try_clone()?);
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
        if !name.eq_ignore_ascii_case("connection") {
            head.push(line);
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let mut now = *weather.lock().unwrap();
    let is_manifest = head[0].starts_with("PUT ") && head[0].contains("manifest.json");
    if now == Weather::Conflict {
        now = match is_manifest {
            true => Weather::Answer("409 Conflict", "ConditionalRequestConflict"),
            false => Weather::Fair,
        };
    }
    match now {
        Weather::Away => return Ok(()),
        Weather::Answer(status, code) => {
            let text = format!("<Error><Code>{code}</Code><Message>Because of the weather</Message></Error>");
            let length = text.len();
            return write!(
                client,
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{text}"
            );
        }
        Weather::LostResponse if is_manifest => *weather.lock().unwrap() = Weather::Fair,
        Weather::LostResponse => now = Weather::Fair,
        Weather::WithoutConditions => head.retain(|line| !line.to_ascii_lowercase().starts_with("if-")),
        Weather::Fair | Weather::Slow(_) | Weather::Conflict => {}
    }
    let mut to = TcpStream::connect(upstream)?;
    write!(to, "{}connection: close\r\n\r\n", head.concat())?;
    to.write_all(&body)?;
    let mut response = Vec::new();
    to.read_to_end(&mut response)?;
    match now {
        Weather::LostResponse => Ok(()),
        Weather::Slow(time) => {
            std::thread::sleep(time);
            client.write_all(&response)
        }
        _ => client.write_all(&response),
    }
}
