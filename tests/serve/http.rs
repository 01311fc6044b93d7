//! A client that reads answers as they come, and the server that it asks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ocelli_tests::root;
use serde_json::{Value, json};

/// A server of the demo model, or of another one, that ends with the test.
pub struct Server {
    pub child: Child,
    pub address: String,
}

impl Server {
    pub fn start(args: &[&str]) -> Self {
        let own = std::env::current_exe().expect("the path of this test");
        let binary = own.parent().and_then(Path::parent).expect("target/release").join("ocelli");
        assert!(binary.is_file(), "{} is absent: cargo build --release --workspace --bins", binary.display());
        let mut child = Command::new(binary)
            .args(["serve", "--backend", "cpu", "--port", "0"])
            .args(args)
            .env("HF_HUB_OFFLINE", "1")
            .env("OCELLI_CACHE", std::env::temp_dir().join("ocelli-serve-no-cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("its first line");
        let address = line.trim().rsplit("http://").next().unwrap_or_default().to_owned();
        assert!(address.starts_with("127.0.0.1:"), "the server said {line:?}");
        Self { child, address }
    }

    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Its exit code, which must come soon.
    pub fn ended(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if Instant::now() > until => panic!("the server does not end"),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        Reply::to(&self.address, method, path, headers, body)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    pub fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body)
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub fn until(&self, name: &str, value: f64) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let now = self.metric(name);
            if now == value {
                return;
            }
            assert!(Instant::now() < until, "{name}: expected {value}, found {now}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer whose body has not been read.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    body: BufReader<Box<dyn Read + Send>>,
}

impl Reply {
    pub fn to(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        Self::read(Self::ask(address, method, path, headers, body))
    }

    /// Sends a request and reads nothing.
    pub fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {address}\r\n");
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n", body.len());
        // A server that refuses reads no body.
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        stream
    }

    pub fn read(stream: TcpStream) -> Self {
        let mut body = BufReader::new(stream);
        let mut line = String::new();
        body.read_line(&mut line).expect("a status");
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {line:?}"));
        let mut headers = Vec::new();
        loop {
            line.clear();
            body.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
        let body: Box<dyn Read + Send> =
            if chunked { Box::new(Chunked { inner: body, left: 0, ended: false }) } else { Box::new(body) };
        Self { status, headers, body: BufReader::new(body) }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    pub fn text(mut self) -> String {
        let mut text = String::new();
        self.body.read_to_string(&mut text).expect("a body of text");
        text
    }

    #[track_caller]
    pub fn json(self, status: u16) -> Value {
        let found = self.status;
        let text = self.text();
        assert_eq!(found, status, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The next object of a stream; `None` at `[DONE]`.
    #[track_caller]
    pub fn event(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read = self.body.read_line(&mut line).expect("a line of the stream");
            assert!(read > 0, "the stream broke off");
            match line.trim_end().strip_prefix("data: ") {
                Some("[DONE]") => return None,
                Some(data) => {
                    return Some(serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")));
                }
                None => {}
            }
        }
    }

    /// All objects of a stream.
    #[track_caller]
    pub fn events(mut self) -> Vec<Value> {
        let status = self.status;
        if status != 200 {
            panic!("{status}: {}", self.text());
        }
        assert_eq!(self.header("content-type"), Some("text/event-stream"));
        std::iter::from_fn(|| self.event()).collect()
    }
}

/// A body in chunks.
struct Chunked {
    inner: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if self.left == 0 {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            if line.trim().is_empty() {
                line.clear();
                self.inner.read_line(&mut line)?;
            }
            let size = usize::from_str_radix(line.trim(), 16);
            self.left = size.map_err(|_| std::io::Error::other(format!("no chunk: {line:?}")))?;
            if self.left == 0 {
                self.ended = true;
                return Ok(0);
            }
        }
        let most = buffer.len().min(self.left);
        let read = self.inner.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read;
        Ok(read)
    }
}

/// A picture as a `data:` address.
pub fn data(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}

pub fn example(name: &str) -> PathBuf {
    root().join("models/demo/examples").join(name)
}

/// A greedy question about pictures.
pub fn question(addresses: &[String], text: &str) -> Value {
    let mut content: Vec<Value> =
        addresses.iter().map(|url| json!({"type": "image_url", "image_url": {"url": url}})).collect();
    content.push(json!({"type": "text", "text": text}));
    json!({"model": "demo", "temperature": 0, "messages": [{"role": "user", "content": content}]})
}

/// With more fields.
pub fn with(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A copy of the demo model that may go on for so long that it cannot end by itself meanwhile.
pub struct Talkative(pub PathBuf);

impl Talkative {
    pub fn new(test: &str) -> Self {
        let to = std::env::temp_dir().join(format!("ocelli-serve-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(root().join("models/demo/model")).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
        let config = std::fs::read_to_string(to.join("config.json")).unwrap();
        let mut config: Value = serde_json::from_str(&config).unwrap();
        config["text_config"]["max_position_embeddings"] = 1_000_000.into();
        std::fs::write(to.join("config.json"), config.to_string()).unwrap();
        Self(to)
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Talkative {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What makes a talkative model go on, at a pace of any machine.
pub fn endless() -> Value {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    json!({"messages": messages, "stream": true, "ignore_eos": true, "temperature": 1, "seed": 1})
}
