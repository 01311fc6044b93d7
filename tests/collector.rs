//! A collector of OpenTelemetry's spans on loopback, as far as tests look into them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A span as it came.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// Its name.
    pub name: String,
    /// Of the trace.
    pub trace: Vec<u8>,
    /// Its own.
    pub id: Vec<u8>,
    /// That of the span around it; empty where there is none.
    pub parent: Vec<u8>,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Likewise.
    pub end: u64,
    /// Whole numbers and texts.
    pub attributes: BTreeMap<String, String>,
    /// What tracing systems keep with the trace.
    pub state: String,
    /// Spans that it follows from.
    pub links: usize,
}

/// What has come.
#[derive(Clone, Debug, Default)]
pub struct Came {
    /// Request lines with the type of the content.
    pub requests: Vec<(String, String)>,
    /// Attributes of what sends.
    pub resource: BTreeMap<String, String>,
    /// All spans.
    pub spans: Vec<Span>,
}

impl Came {
    /// Spans of a name.
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.spans.iter().filter(|span| span.name == name).collect()
    }

    /// The span of an id, if it is there.
    pub fn span(&self, id: &[u8]) -> Option<&Span> {
        self.spans.iter().find(|span| span.id == id)
    }
}

/// Takes spans until the test ends.
pub struct Collector {
    /// Where it listens.
    pub url: String,
    came: Arc<Mutex<Came>>,
}

impl Collector {
    /// One that answers with this status.
    pub fn start(status: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let came = Arc::new(Mutex::new(Came::default()));
        let all = came.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let all = all.clone();
                std::thread::spawn(move || while take(&stream, status, &all).is_some() {});
            }
        });
        Self { url, came }
    }

    /// What has come so far.
    pub fn came(&self) -> Came {
        self.came.lock().expect("what has come").clone()
    }

    /// What has come once `enough` says so; soon, or not at all.
    pub fn wait(&self, enough: impl Fn(&Came) -> bool) -> Came {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let came = self.came();
            if enough(&came) {
                return came;
            }
            assert!(Instant::now() < until, "too little came: {came:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Takes one request; `None` at the end of the connection.
fn take(stream: &TcpStream, status: &str, all: &Mutex<Came>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut kind, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).ok().filter(|&count| count > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-type" => kind = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().expect("a length"),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    {
        let mut came = all.lock().expect("what has come");
        came.requests.push((first.trim_end().to_owned(), kind));
        request(&body, &mut came);
    }
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").ok()
}

/// A value of a message in protobuf.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => panic!("expected a number"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("expected bytes"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).expect("UTF-8")
    }
}

/// Fields of a message with their numbers, in order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().expect("a number that is whole");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return value;
            }
        }
        panic!("a number of more than 64 bits")
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)),
            1 => {
                let (eight, rest) = bytes.split_first_chunk::<8>().expect("eight bytes");
                bytes = rest;
                Value::Number(u64::from_le_bytes(*eight))
            }
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Value::Bytes(value)
            }
            5 => {
                let (four, rest) = bytes.split_first_chunk::<4>().expect("four bytes");
                bytes = rest;
                Value::Number(u64::from(u32::from_le_bytes(*four)))
            }
            other => panic!("fields of kind {other}"),
        };
        all.push((key >> 3, value));
    }
    all
}

/// `ExportTraceServiceRequest`.
fn request(body: &[u8], came: &mut Came) {
    for (_, of_resource) in fields(body) {
        for (number, value) in fields(of_resource.bytes()) {
            match number {
                1 => fields(value.bytes()).iter().filter(|(number, _)| *number == 1).for_each(|(_, of)| {
                    let (key, value) = attribute(of.bytes());
                    came.resource.insert(key, value);
                }),
                2 => {
                    let of_scope = fields(value.bytes());
                    let spans = of_scope.iter().filter(|(number, _)| *number == 2);
                    came.spans.extend(spans.map(|(_, of)| span(of.bytes())));
                }
                _ => {}
            }
        }
    }
}

fn span(bytes: &[u8]) -> Span {
    let mut span = Span::default();
    for (number, value) in fields(bytes) {
        match number {
            1 => span.trace = value.bytes().to_vec(),
            2 => span.id = value.bytes().to_vec(),
            3 => span.state = value.text(),
            4 => span.parent = value.bytes().to_vec(),
            5 => span.name = value.text(),
            7 => span.start = value.number(),
            8 => span.end = value.number(),
            9 => span.attributes.extend([attribute(value.bytes())]),
            13 => span.links += 1,
            _ => {}
        }
    }
    span
}

/// `KeyValue`, its value as text.
fn attribute(bytes: &[u8]) -> (String, String) {
    let (mut key, mut shown) = (String::new(), String::new());
    for (number, value) in fields(bytes) {
        match number {
            1 => key = value.text(),
            _ => {
                for (number, value) in fields(value.bytes()) {
                    shown = match number {
                        1 => value.text(),
                        2 | 3 => value.number().to_string(),
                        _ => "?".into(),
                    };
                }
            }
        }
    }
    (key, shown)
}
