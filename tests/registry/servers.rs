//! A real registry for a test, and a server that gives answers from a list.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

/// It ends when this is dropped, and with the test's process in any case.
pub struct Real {
    pub url: String,
    process: Child,
    lives: Option<ChildStdin>,
}

impl Real {
    pub fn start() -> Real {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/registry"))
            .arg("run")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/registry runs");
        let lives = process.stdin.take();
        let mut first = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        output.read_line(&mut first).expect("it says where it listens");
        let url = first.trim().strip_prefix("REGISTRY_URL=");
        Real {
            url: url.unwrap_or_else(|| panic!("no registry: {first:?}")).to_owned(),
            process,
            lives,
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        drop(self.lives.take());
        // Nothing can be done about one that does not end.
        let _ = self.process.wait();
    }
}

/// Answers one request a connection, and then is gone.
pub struct Canned {
    pub url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Canned {
    pub fn start(answers: &[(&str, &str)]) -> Canned {
        Canned::start_at("http://127.0.0.1:0", answers)
    }

    /// Where another one was.
    pub fn start_at(url: &str, answers: &[(&str, &str)]) -> Canned {
        let address = url.strip_prefix("http://").expect("a URL");
        let listener = TcpListener::bind(address).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let said: Vec<String> = answers
            .iter()
            .map(|(status, body)| {
                let length = body.len();
                format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
            })
            .collect();
        let noted = heads.clone();
        std::thread::spawn(move || {
            for answer in said {
                let Ok((mut stream, _)) = listener.accept() else { return };
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    head.push(byte[0]);
                }
                noted
                    .lock()
                    .expect("nobody panics with it")
                    .push(String::from_utf8_lossy(&head).into_owned());
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Canned { url, heads }
    }

    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("nobody panics with it").clone()
    }

    /// Method and path of each request.
    pub fn asked(&self) -> Vec<String> {
        let of = |head: &String| head.split(" HTTP/").next().unwrap_or_default().to_owned();
        self.heads().iter().map(of).collect()
    }
}
