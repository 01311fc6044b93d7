//! Caches that are complete, damaged, shared or not writable.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ocelli_engine::hub::{HubConfig, HubError, HubId, fetch};

use crate::server::{Fault, tag};
use crate::{REPO, SHA, SHA2, Seen, World, files, names, weights};

/// When each file and folder was changed last. A folder changes whenever something is made, named or removed in it.
fn times(dir: &Path) -> BTreeMap<String, SystemTime> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        all.insert(folder.display().to_string(), folder.metadata().unwrap().modified().unwrap());
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let modified = entry.path().symlink_metadata().unwrap().modified().unwrap();
                all.insert(entry.path().display().to_string(), modified);
            }
        }
    }
    all
}

#[test]
fn a_complete_cache_is_not_written_to() {
    let world = World::new();
    let dir = world.fetch(REPO).unwrap();
    let before = times(&world.home.0);
    std::thread::sleep(Duration::from_millis(20));
    for id in [REPO.to_owned(), format!("{REPO}@{SHA}"), REPO.to_owned()] {
        assert_eq!(world.fetch(&id).unwrap(), dir);
        assert_eq!(times(&world.home.0), before, "{id}");
    }
}

#[test]
fn a_complete_cache_that_cannot_be_written_to_is_used() {
    let world = World::new();
    let weights = weights(0);
    let dir = world.fetch(REPO).unwrap();
    // A new name of the same commit could be noted, if there were a folder for it.
    world.hub.publish(REPO, "v1", SHA, &files(&weights));
    let refs = world.repo_dir().join("refs");
    std::fs::remove_dir_all(&refs).unwrap();
    std::fs::write(&refs, "no folder").unwrap();
    for id in [REPO.to_owned(), format!("{REPO}@v1"), format!("{REPO}@{SHA}")] {
        let mut seen = Seen::default();
        assert_eq!(fetch(&HubId::parse(&id).unwrap(), &world.config, &mut seen).unwrap(), dir);
        assert_eq!(seen.notices.len(), usize::from(!id.ends_with(SHA)), "{seen:?}");
    }
    // What is absent has to be written: the error names the place.
    world.hub.publish(REPO, "main", SHA2, &[("config.json", b"{}"), ("model.safetensors", b"other")]);
    std::fs::remove_dir_all(world.home.0.join("hub/.locks")).unwrap();
    std::fs::write(world.home.0.join("hub/.locks"), "no folder").unwrap();
    let e = world.fetch(REPO).unwrap_err();
    assert!(matches!(e, HubError::Io { .. }) && e.to_string().contains(".locks"), "{e}");
}

#[test]
fn a_link_without_content_is_named() {
    let listed = [
        "chat_template.jinja",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "model.safetensors",
    ];
    for name in listed {
        let mut world = World::new();
        let dir = world.fetch(REPO).unwrap();
        std::fs::remove_file(dir.join(name).canonicalize().unwrap()).unwrap();
        world.config.offline = true;
        let e = world.fetch(REPO).unwrap_err();
        assert!(matches!(&e, HubError::Incomplete { file, .. } if file == name), "{e}");
        assert!(e.hint().unwrap().contains("HF_HUB_OFFLINE"));
        // A hub that cannot be reached cannot bring it either.
        world.config.offline = false;
        world.hub.fault("info", &[Fault::Status(503); 3]);
        assert!(matches!(world.fetch(REPO), Err(HubError::Status { status: 503, .. })), "{name}");
        // One that can does.
        assert_eq!(world.fetch(REPO).unwrap(), dir);
        assert!(dir.join(name).is_file());
    }
    // What never was there is not missed.
    let mut world = World::new();
    let dir = world.fetch(REPO).unwrap();
    std::fs::remove_file(dir.join("chat_template.jinja")).unwrap();
    world.config.offline = true;
    assert_eq!(world.fetch(REPO).unwrap(), dir);
}

#[test]
fn every_file_that_loading_reads_is_needed_if_listed() {
    let small = [
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "quantize_config.json",
        "quant_config.json",
        "hf_quant_config.json",
    ];
    let world = World::new();
    let mut files: Vec<(&str, &[u8])> = small.iter().map(|name| (*name, name.as_bytes())).collect();
    files.extend([("model.safetensors", &b"w"[..]), ("notes.json", b"{}")]);
    world.hub.publish(REPO, "main", SHA, &files);
    for name in small {
        world.hub.fault(name, &[Fault::Status(404)]);
        let e = world.fetch(REPO).unwrap_err();
        assert_eq!(e.to_string(), format!("hub model {REPO}: download {name}: HTTP 404"));
        assert!(!world.repo_dir().join("refs/main").exists());
    }
    let dir = world.fetch(REPO).unwrap();
    assert_eq!(names(&dir).len(), small.len() + 1);
    for name in small {
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), name.as_bytes());
    }
}

#[test]
fn empty_files() {
    for bare in [false, true] {
        let world = World::new();
        world.hub.state().bare = bare;
        let files: [(&str, &[u8]); 3] =
            [("config.json", b"{}"), ("chat_template.jinja", b""), ("model.safetensors", b"w")];
        world.hub.publish(REPO, "main", SHA, &files);
        let dir = world.fetch(REPO).unwrap();
        assert_eq!(std::fs::read(dir.join("chat_template.jinja")).unwrap(), b"");
    }
}

#[test]
fn a_cached_file_of_another_size_is_replaced() {
    for length in [0, 100, 300_000] {
        let world = World::new();
        let dir = world.fetch(REPO).unwrap();
        let blob = dir.join("model.safetensors").canonicalize().unwrap();
        std::fs::write(&blob, vec![1; length]).unwrap();
        assert_eq!(world.fetch(REPO).unwrap(), dir);
        assert!(std::fs::read(&blob).unwrap() == weights(0));
        // Also where the snapshot has the file itself, as on systems without links.
        std::fs::remove_file(dir.join("model.safetensors")).unwrap();
        std::fs::write(dir.join("model.safetensors"), vec![1; length]).unwrap();
        world.fetch(REPO).unwrap();
        assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == weights(0));
    }
}

#[test]
fn processes_wait_for_each_other() {
    let mut world = World::new();
    world.config.stall_timeout = Duration::from_millis(400);
    let folder = world.home.0.join("hub/.locks/models--acme--tiny-vlm");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{}.lock", tag("model.safetensors", &weights(0))));
    let lock = std::fs::File::create(&path).unwrap();
    lock.lock().unwrap();
    let e = world.fetch(REPO).unwrap_err();
    let expected = format!("another process is downloading it (lock {})", path.display());
    assert!(matches!(e, HubError::Busy { .. }) && e.to_string().ends_with(&expected), "{e}");

    // While the other one gets on, we wait; then its file is ours.
    let other = std::thread::spawn({
        let part = world.part(&weights(0));
        move || {
            for step in 1..=8 {
                std::fs::write(&part, vec![0; step]).unwrap();
                std::thread::sleep(Duration::from_millis(150));
            }
            std::fs::write(&part, weights(0)).unwrap();
            std::fs::rename(&part, part.with_extension("")).unwrap();
            drop(lock);
        }
    });
    world.hub.take_log();
    let mut seen = Seen::default();
    let dir = fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap();
    other.join().unwrap();
    assert_eq!(seen.notices, ["model.safetensors: another process is downloading it; waiting"]);
    assert!(!world.hub.take_log().iter().any(|line| line.contains("safetensors")));
    assert!(std::fs::read(dir.join("model.safetensors")).unwrap() == weights(0));
}

#[test]
fn offline_the_endpoint_does_not_matter() {
    let world = World::new();
    let dir = world.fetch(REPO).unwrap();
    let home = world.home.0.to_str().unwrap();
    let vars = [("HF_ENDPOINT", "nonsense"), ("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
    let offline: HubConfig = crate::config(&vars);
    assert_eq!(fetch(&HubId::parse(REPO).unwrap(), &offline, &mut ()).unwrap(), dir);
}
