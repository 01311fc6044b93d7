//! Downloads from a hub that the test itself runs on loopback. Nothing here reaches another machine.

mod cache;
mod mirrors;
mod secrets;
mod server;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::hub::{DownloadProgress, Endpoint, HubConfig, HubError, HubId, ModelRef, fetch};
use server::{Fault, Hub, tag};

const SHA: &str = "1111111111111111111111111111111111111111";
const SHA2: &str = "2222222222222222222222222222222222222222";
const REPO: &str = "acme/tiny-vlm";

/// A directory of its own for each test, removed at its end.
struct Temp(PathBuf);

impl Temp {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("ocelli-hub-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the progress callbacks said.
#[derive(Default, Debug)]
struct Seen {
    files: usize,
    bytes: Option<u64>,
    started: Vec<(String, u64, u64)>,
    received: u64,
    done: Vec<String>,
    notices: Vec<String>,
}

impl DownloadProgress for Seen {
    fn begin(&mut self, files: usize, bytes: Option<u64>) {
        (self.files, self.bytes) = (files, bytes);
    }
    fn file(&mut self, name: &str, size: u64, present: u64) {
        self.started.push((name.into(), size, present));
    }
    fn advance(&mut self, bytes: u64) {
        self.received += bytes;
    }
    fn done(&mut self, name: &str) {
        self.done.push(name.into());
    }
    fn notice(&mut self, text: &str) {
        self.notices.push(text.into());
    }
}

fn weights(seed: u8) -> Vec<u8> {
    (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect()
}

struct World {
    hub: Hub,
    config: HubConfig,
    home: Temp,
}

impl World {
    /// A hub with one model, and an empty cache.
    fn new() -> Self {
        let hub = Hub::start();
        let home = Temp::new();
        hub.publish(REPO, "main", SHA, &files(&weights(0)));
        let config = config(&[("HF_ENDPOINT", &hub.endpoint), ("HF_HOME", home.0.to_str().unwrap())]);
        Self { hub, config, home }
    }

    fn fetch(&self, id: &str) -> Result<PathBuf, HubError> {
        fetch(&HubId::parse(id).unwrap(), &self.config, &mut ())
    }

    fn repo_dir(&self) -> PathBuf {
        self.home.0.join("hub/models--acme--tiny-vlm")
    }

    fn part(&self, bytes: &[u8]) -> PathBuf {
        self.repo_dir().join("blobs").join(format!("{}.incomplete", tag("x.safetensors", bytes)))
    }
}

fn files(weights: &[u8]) -> Vec<(&str, &[u8])> {
    vec![
        ("config.json", b"{\"model_type\": \"tiny\"}"),
        ("tokenizer.json", b"{\"t\": 1}"),
        ("tokenizer_config.json", b"{\"c\": 1}"),
        ("preprocessor_config.json", b"{\"p\": 1}"),
        ("chat_template.jinja", b"{{ messages }}"),
        ("README.md", b"# not needed"),
        ("onnx/model.onnx", b"not needed"),
        ("pytorch_model.bin", b"not needed"),
        ("tf_model.safetensors", b"not needed"),
        ("model.safetensors", weights),
    ]
}

fn config(vars: &[(&str, &str)]) -> HubConfig {
    let mut config =
        HubConfig::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
            .unwrap();
    config.retries = 2;
    config.retry_delay = Duration::from_millis(5);
    config
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The ranges of the requests for a file's content, without the probes for its length.
fn ranges(log: &[String], file: &str) -> Vec<String> {
    log.iter()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(path, range)| {
            path.starts_with("/content/") && path.ends_with(file) && *range != "bytes=0-0"
        })
        .map(|(_, range)| range.to_owned())
        .collect()
}

#[test]
fn downloads_what_is_needed_into_the_usual_layout() {
    let world = World::new();
    let mut seen = Seen::default();
    let model = ModelRef::parse(Some(REPO)).unwrap();
    let dir = model.resolve(|| Ok(world.config.clone()), &mut seen).unwrap().unwrap();
    assert_eq!(dir, world.repo_dir().join("snapshots").join(SHA));
    let needed = [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&dir), needed);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights(0));
    let link = std::fs::read_link(dir.join("model.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(tag("model.safetensors", &weights(0))));
    assert_eq!(std::fs::read_to_string(world.repo_dir().join("refs/main")).unwrap(), SHA);
    let files = ModelFiles::dir(&dir);
    assert_eq!(files.require_json::<serde_json::Value>("config.json").unwrap()["model_type"], "tiny");

    let total: u64 = needed.iter().map(|name| std::fs::metadata(dir.join(name)).unwrap().len()).sum();
    assert_eq!((seen.files, seen.bytes, seen.received), (6, Some(total), total), "{seen:?}");
    assert_eq!(seen.done.len(), 6);
    assert!(seen.started.contains(&("model.safetensors".into(), 200_000, 0)));
    assert!(seen.notices.is_empty());

    // The second time one question is enough.
    world.hub.take_log();
    assert_eq!(world.fetch(REPO).unwrap(), dir);
    assert_eq!(world.hub.take_log(), [format!("/api/models/{REPO}/revision/main -")]);
}

#[test]
fn shards_come_from_the_index() {
    let world = World::new();
    let index = br#"{"metadata": {}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    world.hub.publish(
        REPO,
        "main",
        SHA,
        &[
            ("config.json", b"{}"),
            ("model.safetensors.index.json", index),
            ("model-1.safetensors", b"one"),
            ("model-2.safetensors", b"two"),
            ("model-3.safetensors", b"three"),
        ],
    );
    let dir = world.fetch(REPO).unwrap();
    assert_eq!(
        names(&dir),
        ["config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    );

    let bad = [
        (
            &br#"{"weight_map": {"a": "../../../evil.safetensors"}}"#[..],
            "expected the name of a safetensors file",
        ),
        (br#"{"weight_map": {"a": "/evil.safetensors"}}"#, "expected the name of a safetensors file"),
        (br#"{"weight_map": {"a": "config.json"}}"#, "expected the name of a safetensors file"),
        (
            br#"{"weight_map": {"a": "absent.safetensors"}}"#,
            "absent.safetensors: no such file in the repository",
        ),
        (b"[", "invalid JSON"),
    ];
    for (i, (index, reason)) in bad.into_iter().enumerate() {
        let sha = format!("{:x}", i + 10).repeat(40);
        let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors.index.json", index)];
        world.hub.publish(REPO, "main", &sha, &files);
        let e = world.fetch(REPO).unwrap_err().to_string();
        assert!(e.contains(reason), "{e}");
    }
}

#[test]
fn revisions_share_equal_files() {
    let world = World::new();
    world.fetch(REPO).unwrap();
    let weights = weights(0);
    let mut changed = files(&weights);
    changed[0].1 = b"{\"model_type\": \"changed\"}";
    world.hub.publish(REPO, "refs/pr/1", SHA2, &changed);
    world.hub.take_log();
    let dir = world.fetch(&format!("{REPO}@refs/pr/1")).unwrap();
    assert_eq!(dir, world.repo_dir().join("snapshots").join(SHA2));
    assert!(std::fs::read_to_string(dir.join("config.json")).unwrap().contains("changed"));
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    let log = world.hub.take_log();
    assert!(!log.iter().any(|line| line.contains("safetensors")), "{log:?}");
    assert_eq!(std::fs::read_to_string(world.repo_dir().join("refs/refs/pr/1")).unwrap(), SHA2);
    assert_eq!(std::fs::read_to_string(world.repo_dir().join("refs/main")).unwrap(), SHA);

    // A commit names itself, also offline.
    assert_eq!(world.fetch(&format!("{REPO}@{SHA2}")).unwrap(), dir);
    let offline = HubConfig { offline: true, ..world.config.clone() };
    assert_eq!(fetch(&HubId::parse(&format!("{REPO}@{SHA2}")).unwrap(), &offline, &mut ()).unwrap(), dir);

    // When the branch moves, the new commit is fetched.
    world.hub.publish(REPO, "main", SHA2, &changed);
    assert_eq!(world.fetch(REPO).unwrap(), dir);
    assert_eq!(std::fs::read_to_string(world.repo_dir().join("refs/main")).unwrap(), SHA2);
}

#[test]
fn a_cut_download_goes_on_in_the_same_run() {
    let world = World::new();
    world.hub.fault("model.safetensors", &[Fault::Cut(70_000), Fault::Cut(0), Fault::Cut(50_000)]);
    let mut seen = Seen::default();
    let dir = fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights(0));
    let ranges = ranges(&world.hub.take_log(), "model.safetensors");
    assert_eq!(ranges, ["-", "bytes=70000-", "bytes=70000-", "bytes=120000-"]);
    assert_eq!(seen.notices.len(), 3);
    assert_eq!(seen.started.last().unwrap(), &("model.safetensors".into(), 200_000, 120_000));
    assert_eq!(Some(seen.received), seen.bytes, "no byte twice");
}

#[test]
fn a_cut_download_goes_on_in_the_next_run() {
    let mut world = World::new();
    world.config.retries = 0;
    world.hub.fault("model.safetensors", &[Fault::Cut(90_000)]);
    let mut first = Seen::default();
    let result = fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut first);
    // Progress resets the count of attempts; the second one ends the download.
    result.unwrap();
    std::fs::remove_dir_all(world.repo_dir()).unwrap();

    world.hub.fault("model.safetensors", &[Fault::Cut(90_000), Fault::Cut(0)]);
    let e = world.fetch(REPO).unwrap_err();
    assert!(matches!(e, HubError::Network { .. }), "{e}");
    assert!(e.to_string().starts_with("hub model acme/tiny-vlm: download model.safetensors: "), "{e}");
    assert!(e.hint().unwrap().contains("goes on where it stopped"));
    assert_eq!(std::fs::metadata(world.part(&weights(0))).unwrap().len(), 90_000);
    assert!(!world.repo_dir().join("refs/main").exists(), "a half model has no name");

    world.hub.take_log();
    let dir = world.fetch(REPO).unwrap();
    assert_eq!(ranges(&world.hub.take_log(), "model.safetensors"), ["bytes=90000-"]);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights(0));
    assert!(!world.part(&weights(0)).exists());
}

#[test]
fn leftovers_do_not_spoil_the_file() {
    let bytes = weights(0);
    let too_long: Vec<u8> = bytes.iter().copied().chain([0; 10]).collect();
    for bare in [false, true] {
        for leftover in [&bytes[..], &bytes[..1], &bytes[..bytes.len() - 1], &too_long, &[]] {
            let world = World::new();
            world.hub.state().bare = bare;
            std::fs::create_dir_all(world.repo_dir().join("blobs")).unwrap();
            std::fs::write(world.part(&bytes), leftover).unwrap();
            let dir = world.fetch(REPO).unwrap();
            assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == bytes, "{}", leftover.len());
        }
    }
}

#[test]
fn a_link_to_a_deleted_blob_is_replaced() {
    let world = World::new();
    let dir = world.fetch(REPO).unwrap();
    std::fs::remove_file(dir.join("model.safetensors").canonicalize().unwrap()).unwrap();
    assert_eq!(world.fetch(REPO).unwrap(), dir);
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), weights(0));
}

#[test]
fn servers_that_ignore_ranges_or_lengths_do_not_spoil_the_file() {
    for faults in [
        &[Fault::Cut(70_000), Fault::IgnoreRange][..],
        &[Fault::Short(70_000)],
        &[Fault::Cut(10), Fault::Short(70_000), Fault::Status(503)],
    ] {
        let world = World::new();
        world.hub.fault("model.safetensors", faults);
        let dir = world.fetch(REPO).unwrap();
        assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == weights(0), "{faults:?}");
        assert_eq!(
            names(&world.repo_dir().join("blobs")).iter().filter(|n| n.ends_with(".incomplete")).count(),
            0
        );
    }
}

#[test]
fn offline_uses_the_cache_alone() {
    let mut world = World::new();
    world.config.offline = true;
    let e = world.fetch(REPO).unwrap_err();
    assert!(matches!(e, HubError::NotCached { .. }), "{e}");
    assert!(e.hint().unwrap().contains("HF_HUB_OFFLINE"));
    world.config.offline = false;
    let dir = world.fetch(REPO).unwrap();
    world.config.offline = true;
    world.hub.take_log();
    assert_eq!(world.fetch(REPO).unwrap(), dir);
    assert!(matches!(world.fetch(&format!("{REPO}@other")), Err(HubError::NotCached { .. })));
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let e = world.fetch(REPO).unwrap_err();
    assert!(e.to_string().contains("model.safetensors is not in the cache"), "{e}");
    assert_eq!(world.hub.take_log(), [""; 0], "not one request");
}

#[test]
fn an_unreachable_hub() {
    let mut world = World::new();
    let dir = world.fetch(REPO).unwrap();
    // A port that nobody listens on: bound once, then closed.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.config.endpoint = Endpoint::parse(&format!("http://127.0.0.1:{port}")).unwrap();
    let mut seen = Seen::default();
    assert_eq!(fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap(), dir);
    assert!(seen.notices[0].ends_with("; the cached copy is used"), "{seen:?}");
    let e = world.fetch("acme/other").unwrap_err();
    assert!(matches!(e, HubError::Network { .. }));
    let text = e.to_string();
    assert!(
        text.starts_with("hub model acme/other: ask the hub for the model: ") && !text.contains('\n'),
        "{text}"
    );
}

#[test]
fn passing_trouble_is_waited_out() {
    let world = World::new();
    world.hub.fault("info", &[Fault::Status(503), Fault::Status(429), Fault::None]);
    world.hub.fault("config.json", &[Fault::Status(500)]);
    world.fetch(REPO).unwrap();
    world.hub.fault("info", &[Fault::Status(503); 10]);
    let e = world.fetch("acme/other").unwrap_err();
    assert_eq!(e.to_string(), "hub model acme/other: ask the hub for the model: HTTP 503");
}

#[test]
fn refusals_say_why() {
    let mut world = World::new();
    let e = world.fetch("acme/nothing").unwrap_err();
    assert_eq!(e.to_string(), format!("hub model acme/nothing: no such model at {}", world.hub.endpoint));
    let e = world.fetch(&format!("{REPO}@v9")).unwrap_err();
    assert_eq!(e.to_string(), "hub model acme/tiny-vlm: no revision \"v9\"");

    world.hub.state().token = Some("secret".into());
    let e = world.fetch(REPO).unwrap_err();
    assert!(e.to_string().contains("access denied") && e.to_string().contains("401"), "{e}");
    assert!(e.hint().unwrap().contains("set HF_TOKEN"), "{:?}", e.hint());
    world.config.token = Some("wrong".into());
    let e = world.fetch(REPO).unwrap_err();
    assert!(e.hint().unwrap().contains("the account that HF_TOKEN belongs to"), "{:?}", e.hint());
    assert!(!format!("{e:?} {:?}", world.config).contains("wrong"), "a token is never shown");
    world.hub.state().code = Some("RepoNotFound");
    assert!(matches!(world.fetch(REPO), Err(HubError::NotFound { .. })));
    world.config.token = Some("secret".into());
    world.fetch(REPO).unwrap();
}

#[test]
fn a_gated_file_is_denied() {
    let world = World::new();
    world.hub.fault("model.safetensors", &[Fault::Status(403)]);
    let e = world.fetch(REPO).unwrap_err();
    assert!(matches!(e, HubError::Denied { status: 403, .. }), "{e}");
}

#[test]
fn tokens_and_endpoint_come_from_the_variables() {
    let world = World::new();
    world.hub.state().token = Some("from-file".into());
    std::fs::write(world.home.0.join("token"), "from-file\n").unwrap();
    let home = world.home.0.to_str().unwrap();
    let config = config(&[("HF_ENDPOINT", &world.hub.endpoint), ("HF_HOME", home)]);
    fetch(&HubId::parse(REPO).unwrap(), &config, &mut ()).unwrap();
}

#[test]
fn repositories_that_are_no_models() {
    let world = World::new();
    let fails = |sha: &str, files: &[(&str, &[u8])]| {
        world.hub.publish(REPO, "main", sha, files);
        world.fetch(REPO).unwrap_err().to_string()
    };
    assert_eq!(fails(SHA2, &[("README.md", b"")]), "hub model acme/tiny-vlm: config.json: no such file");
    assert_eq!(
        fails(SHA2, &[("config.json", b"{}"), ("pytorch_model.bin", b"x")]),
        "hub model acme/tiny-vlm: weights: expected model.safetensors or model.safetensors.index.json, found pytorch_model.bin"
    );
    let e = fails("../../x", &[("config.json", b"{}"), ("model.safetensors", b"x")]);
    assert_eq!(
        e,
        format!(
            "hub model acme/tiny-vlm: ask the hub for the model: unexpected answer of {}/api/models/{REPO}/revision/main: sha: expected a commit, found \"../../x\"",
            world.hub.endpoint
        )
    );
}
