//! Files and batches of requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Server, Talkative, data, example, question, with};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ocelli-batches-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn upload(server: &Server, text: &str, purpose: &str) -> Value {
    let part =
        |head: &str, body: &str| format!("--xyz\r\ncontent-disposition: form-data; {head}\r\n\r\n{body}\r\n");
    let purpose = part("name=\"purpose\"", purpose);
    let body = format!("{purpose}{}--xyz--\r\n", part("name=\"file\"; filename=\"rows.jsonl\"", text));
    let kind = [("content-type", "multipart/form-data; boundary=xyz")];
    let reply = server.send("POST", "/v1/files", &kind, body.as_bytes());
    let status = reply.status;
    with(serde_json::from_str(&reply.text()).unwrap(), json!({"http": status}))
}

fn row(id: &str, body: Value) -> String {
    format!("{}\n", json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}))
}

fn create(server: &Server, file: &Value, more: Value) -> Value {
    let asked =
        json!({"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    server.post("/v1/batches", &with(asked, more)).json(200)
}

/// Waits until a batch has ended.
fn ended(server: &Server, batch: &Value) -> Value {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let now = server.get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap())).json(200);
        match now["status"].as_str().unwrap() {
            "completed" | "failed" | "expired" | "cancelled" => return now,
            _ => assert!(Instant::now() < until, "{now}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The lines of a file by their row.
fn lines(server: &Server, file: &Value) -> BTreeMap<String, Value> {
    let Some(id) = file.as_str() else { return BTreeMap::new() };
    let text = server.get(&format!("/v1/files/{id}/content")).text();
    let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let by_row: BTreeMap<String, Value> =
        all.iter().map(|line| (line["custom_id"].as_str().unwrap().to_owned(), line.clone())).collect();
    assert_eq!(by_row.len(), all.len(), "a row is there twice: {text}");
    by_row
}

fn about(name: &str, asked: &str) -> Value {
    with(question(&[data(&example(name))], asked), json!({"temperature": 0}))
}

fn content(line: &Value) -> String {
    line["response"]["body"]["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("{line}"))
        .to_owned()
}

#[test]
fn a_batch_from_file_to_file() {
    let folder = Folder::new("whole");
    let server = Server::start(&["--files-dir", folder.path()]);
    let mut text = String::new();
    let mut expected = BTreeMap::new();
    for number in 0..12 {
        let (id, body) = (
            format!("row {number}"),
            about(["01.png", "02.png", "03.png"][number % 3], "How many objects are there?"),
        );
        expected.insert(id.clone(), server.chat(&body).json(200)["choices"][0]["message"]["content"].clone());
        text += &row(&id, body);
    }
    text += &row("bad", json!({"messages": []}));
    let file = upload(&server, &text, "batch");
    assert_eq!(
        (&file["http"], &file["object"], &file["filename"]),
        (&json!(200), &json!("file"), &json!("rows.jsonl"))
    );
    assert_eq!(file["bytes"], text.len());
    let batch = create(&server, &file, json!({"metadata": {"of": "a test"}}));
    assert_eq!((&batch["object"], &batch["status"]), (&json!("batch"), &json!("validating")));
    let done = ended(&server, &batch);
    assert_eq!(done["status"], "completed", "{done}");
    assert_eq!(done["request_counts"], json!({"total": 13, "completed": 12, "failed": 1}));
    assert_eq!(done["metadata"], json!({"of": "a test"}));
    let (good, bad) = (lines(&server, &done["output_file_id"]), lines(&server, &done["error_file_id"]));
    assert_eq!(good.len(), 12);
    for (id, line) in &good {
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(json!(content(line)), expected[id], "{id}");
    }
    assert_eq!(bad.keys().collect::<Vec<_>>(), ["bad"]);
    assert_eq!(bad["bad"]["response"]["status_code"], 400);
    assert_eq!(bad["bad"]["response"]["body"]["error"]["param"], "messages");

    // Lists, pages of them, and what is removed.
    let files = server.get("/v1/files").json(200);
    assert_eq!(files["data"].as_array().unwrap().len(), 3, "{files}");
    let page = server.get("/v1/files?limit=2").json(200);
    assert_eq!((page["data"].as_array().unwrap().len(), &page["has_more"]), (2, &json!(true)));
    let rest = server.get(&format!("/v1/files?after={}", page["last_id"].as_str().unwrap())).json(200);
    assert_eq!(rest["data"].as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/batches").json(200)["data"][0]["id"], batch["id"]);
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(server.send("DELETE", &path, &[], b"").json(200)["deleted"], true);
    assert_eq!(server.get(&path).status, 404);

    // What is wrong is named.
    assert_eq!(upload(&server, "x", "assistants")["error"]["param"], "purpose");
    assert_eq!(server.get("/v1/files/..%2f..%2fetc%2fpasswd").status, 404);
    assert_eq!(server.get("/v1/batches/batch-none").status, 404);
    let file = upload(&server, &text.replace("/v1/chat/completions", "/v1/embeddings"), "batch");
    let failed = ended(&server, &create(&server, &file, json!({})));
    assert_eq!(
        (&failed["status"], &failed["errors"]["data"][0]["code"]),
        (&json!("failed"), &json!("invalid_url"))
    );
    let asked = json!({"input_file_id": file["id"], "endpoint": "/v1/embeddings"});
    assert_eq!(server.post("/v1/batches", &asked).json(400)["error"]["param"], "endpoint");
    let asked = json!({"input_file_id": "file-none", "endpoint": "/v1/chat/completions"});
    assert_eq!(server.post("/v1/batches", &asked).json(404)["error"]["param"], "input_file_id");
    let none = Server::start(&[]).get("/v1/files").json(404);
    assert!(none["error"]["message"].as_str().unwrap().contains("--files-dir"), "{none}");
}

/// An answer of some length.
fn long(tokens: usize) -> Value {
    let messages = json!([{"role": "user", "content": "Hello"}]);
    json!({"messages": messages, "ignore_eos": true, "temperature": 1, "seed": 1, "max_tokens": tokens})
}

#[test]
fn a_batch_goes_on_where_a_server_was_killed() {
    let folder = Folder::new("killed");
    let rows: String = (0..60).map(|number| row(&format!("{number}"), long(60 + number))).collect();
    let mut server = Server::start(&["--files-dir", folder.path(), "--max-running", "4"]);
    let batch = create(&server, &upload(&server, &rows, "batch"), json!({}));
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let mut killed = 0;
    for signal in ["-KILL", "-TERM"] {
        let until = Instant::now() + Duration::from_secs(60);
        let before = server.get(&path).json(200)["request_counts"]["completed"].as_u64().unwrap();
        loop {
            let now = server.get(&path).json(200);
            let done = now["request_counts"]["completed"].as_u64().unwrap();
            if now["status"] == "completed" {
                break;
            }
            if done > before + 5 {
                killed += 1;
                break;
            }
            assert!(Instant::now() < until, "{now}");
        }
        server.signal(signal);
        server.ended();
        server = Server::start(&["--files-dir", folder.path(), "--max-running", "4"]);
    }
    assert!(killed > 0, "the batch was done before the server was killed");
    let done = ended(&server, &batch);
    assert_eq!(
        (&done["status"], &done["request_counts"]),
        (&json!("completed"), &json!({"total": 60, "completed": 60, "failed": 0}))
    );
    let lines = lines(&server, &done["output_file_id"]);
    assert_eq!(lines.len(), 60);
    for (id, line) in &lines {
        let tokens = line["response"]["body"]["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(tokens, 60 + id.parse::<u64>().unwrap());
    }
}

#[test]
fn batches_are_cancelled_and_expire_and_leave_room() {
    let (folder, model) = (Folder::new("ends"), Talkative::new("batches"));
    let server =
        Server::start(&["--files-dir", folder.path(), "--model", model.path(), "--max-running", "4"]);
    let rows: String = row("short", long(1))
        + &(0..8).map(|number| row(&format!("{number}"), long(25_000))).collect::<String>();
    let file = upload(&server, &rows, "batch");
    for (more, status) in [(json!({}), "cancelled"), (json!({"completion_window": "2s"}), "expired")] {
        let batch = create(&server, &file, more);
        let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
        let until = Instant::now() + Duration::from_secs(60);
        while server.get(&path).json(200)["request_counts"]["completed"] != 1 {
            assert!(Instant::now() < until, "{}", server.get(&path).text());
            std::thread::sleep(Duration::from_millis(20));
        }
        let busy = format!("/v1/files/{}", file["id"].as_str().unwrap());
        assert_eq!(server.send("DELETE", &busy, &[], b"").status, 400);
        // Beside it there is room for a client at once.
        let start = Instant::now();
        assert_eq!(server.chat(&with(long(2), json!({"seed": 5}))).status, 200);
        assert!(start.elapsed() < Duration::from_secs(20));
        assert!(server.metric("ocelli_places_taken") <= 2.0);
        if status == "cancelled" {
            assert_eq!(server.post(&format!("{path}/cancel"), &json!({})).json(200)["status"], "cancelling");
        }
        let done = ended(&server, &batch);
        assert_eq!(done["status"], status, "{done}");
        assert_eq!(lines(&server, &done["output_file_id"]).keys().collect::<Vec<_>>(), ["short"]);
        let lost = lines(&server, &done["error_file_id"]);
        if status == "expired" {
            assert_eq!(lost.len(), 8);
            assert!(
                lost.values()
                    .all(|line| line["error"]["code"] == "batch_expired" && line["response"].is_null())
            );
        } else {
            assert!(lost.is_empty());
            assert_eq!(server.post(&format!("{path}/cancel"), &json!({})).status, 200);
        }
        server.until("ocelli_places_taken", 0.0);
    }
}
