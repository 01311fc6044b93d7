//! `/v1/search` and its page: an index of drawn pictures behind the server.

#[path = "../search/drawn.rs"]
mod drawn;

use std::path::Path;

use ocelli_tests::command::{Temp, demo, golden, ocelli};
use serde_json::{Value, json};

use crate::clients::browse;
use crate::http::{Server, data};

fn run(args: &[&std::ffi::OsStr]) -> ocelli_tests::command::Done {
    ocelli(&[args, &["--backend".as_ref(), "cpu".as_ref()]].concat())
}

fn index(folder: &Path, idx: &Path, model: Option<&Path>) {
    let mut line = vec!["index".as_ref(), folder.as_os_str(), "--out".as_ref(), idx.as_os_str()];
    if let Some(model) = model {
        line.extend(["--model".as_ref(), model.as_os_str()]);
    }
    run(&line).well();
}

/// A server of a model, if not the demo model, with an index.
fn server(model: Option<&Path>, idx: &Path) -> Server {
    let mut args = vec!["--index", idx.to_str().unwrap()];
    if let Some(model) = model {
        args.extend(["--model", model.to_str().unwrap()]);
    }
    Server::start(&args)
}

/// Paths and scores, of the command or of the server.
fn hits(value: &Value, name: &str) -> Vec<(String, f64)> {
    let of = |hit: &Value| (hit["path"].as_str().unwrap().to_owned(), hit["score"].as_f64().unwrap());
    value[name].as_array().unwrap().iter().map(of).collect()
}

#[test]
fn answers_are_those_of_the_command() {
    let temp = Temp::new();
    let (folder, idx, model) = (temp.path("drawn"), temp.path("idx"), golden("siglip"));
    drawn::folder(&folder, 30);
    index(&folder, &idx, Some(&model));
    let server = server(Some(&model), &idx);
    let details = &server.get("/v1/models").json(200)["data"][0]["details"]["search"];
    assert_eq!(*details, json!({"pictures": 30, "kind": "dual_encoder"}));
    let text = "a photo of a flower";
    let expected = run(&["search".as_ref(), idx.as_os_str(), text.as_ref(), "--json".as_ref()]).json();
    let got = server.post("/v1/search", &json!({"query": text})).json(200);
    assert_eq!(hits(&got, "data"), hits(&expected, "results"));
    assert_eq!(
        (&got["object"], &got["kind"], &got["pictures"]),
        (&json!("list"), &json!("dual_encoder"), &json!(30))
    );
    assert!(got["data"][0]["thumbnail"].is_null() && got["data"][0]["width"] == 40);
    let picture = folder.join("0011.png");
    let url = data(&picture);
    for address in [json!(url), json!({"url": url})] {
        let got =
            server.post("/v1/search", &json!({"image_url": address, "k": 3, "thumbnails": 16})).json(200);
        let line = [
            "search".as_ref(),
            idx.as_os_str(),
            "--image".as_ref(),
            picture.as_os_str(),
            "-k".as_ref(),
            "3".as_ref(),
            "--json".as_ref(),
        ];
        assert_eq!(hits(&got, "data"), hits(&run(&line).json(), "results"));
        assert_eq!(got["data"][0]["path"], "0011.png");
        assert!(got["data"][0]["thumbnail"].as_str().unwrap().starts_with("data:image/jpeg;base64,"));
    }
    // What the index becomes is found without a new start.
    drawn::draw(&folder.join("later.png"), 77);
    std::fs::remove_file(&picture).unwrap();
    index(&folder, &idx, None);
    let ask = json!({"image_url": data(&folder.join("later.png")), "k": 1000});
    let got = server.post("/v1/search", &ask).json(200);
    let found = hits(&got, "data");
    assert_eq!((found.len(), &*found[0].0), (30, "later.png"));
    assert!(found.iter().all(|(path, _)| path != "0011.png"));

    for (body, param, part) in [
        (json!({}), "query", "found nothing"),
        (json!({"query": "x", "image_url": url}), "query", "found both"),
        (json!({"query": " "}), "query", "an empty one"),
        (json!({"query": 3}), "query", "expected a text"),
        (json!({"image_url": 3}), "image_url", "expected a text, or an object"),
        (json!({"image_url": "data:image/png;base64,AAAA"}), "image_url", "picture"),
        (json!({"query": "x", "k": 0}), "k", "expected 1 to 1000, found 0"),
        (json!({"query": "x", "k": 1001}), "k", "expected 1 to 1000, found 1001"),
        (json!({"query": "x", "k": -1}), "k", "whole number"),
        (json!({"query": "x", "thumbnails": 513}), "thumbnails", "expected 0 to 512"),
        (json!({"query": "x", "frobnicate": 1}), "frobnicate", "no such field"),
    ] {
        let error = server.post("/v1/search", &body).json(400)["error"].clone();
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!("invalid_request_error"), &json!(param)),
            "{error}"
        );
        assert!(error["message"].as_str().unwrap().contains(part), "{error}");
    }
    assert_eq!(server.get("/v1/search").json(405)["error"]["type"], "invalid_request_error");
}

#[test]
fn models_that_answer_find_pictures_by_pictures() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 12);
    index(&folder, &idx, Some(&demo()));
    let with = server(Some(&demo()), &idx);
    let got =
        with.post("/v1/search", &json!({"image_url": data(&folder.join("0004.png")), "k": 2})).json(200);
    assert_eq!((&got["kind"], &got["data"][0]["path"]), (&json!("pooled_tower"), &json!("0004.png")));
    let error = with.post("/v1/search", &json!({"query": "a red circle"})).json(400)["error"].clone();
    assert_eq!((&error["param"], &error["code"]), (&json!("query"), &json!("no_text_vectors")));
    assert!(
        error["message"].as_str().unwrap().contains("pooled tower features of a smolvlm model"),
        "{error}"
    );
    // The embedded dual encoder takes texts too.
    let drawn = temp.path("drawn.idx");
    run(&["index".as_ref(), folder.as_os_str(), "--out".as_ref(), drawn.as_os_str(), "-q".as_ref()]).well();
    let texts = server(None, &drawn).post("/v1/search", &json!({"query": "a red circle", "k": 3})).json(200);
    assert_eq!((&texts["kind"], texts["data"].as_array().map(Vec::len)), (&json!("dual_encoder"), Some(3)));
    // It answers beside.
    let body = json!({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2, "temperature": 0});
    with.chat(&body).json(200);
    // A server without an index, and one whose model is not the index's.
    let error = Server::start(&[]).post("/v1/search", &json!({"query": "x"})).json(404)["error"].clone();
    assert!(error["message"].as_str().unwrap().contains("--index"), "{error}");
    let (model, idx) = (golden("siglip"), idx.as_os_str());
    let line = [
        "serve".as_ref(),
        "--port".as_ref(),
        "0".as_ref(),
        "--model".as_ref(),
        model.as_os_str(),
        "--index".as_ref(),
        idx,
    ];
    run(&line).fails(1, &["model: expected ", "models/demo/model", "siglip"]);
    browse(
        "search.cjs",
        &[format!("http://{}/", with.address).as_ref(), folder.join("0004.png").as_os_str()],
    );
}
