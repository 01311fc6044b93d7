//! Mirrors and proxies that do less than the hub, or wrong.

use std::time::{Duration, Instant};

use ocelli_engine::hub::{HubError, HubId, fetch};

use crate::server::{Fault, Hub, Redirect};
use crate::{REPO, SHA, SHA2, Seen, World, files, names, weights};

/// Nothing of the weights is in the cache.
fn assert_nothing_kept(world: &World) {
    let snapshot = world.repo_dir().join("snapshots").join(SHA);
    assert!(snapshot.join("model.safetensors").symlink_metadata().is_err());
    let blobs = world.repo_dir().join("blobs");
    let large = |name: &String| std::fs::metadata(blobs.join(name)).unwrap().len() > 1000;
    let kept: Vec<String> = names(&blobs).into_iter().filter(large).collect();
    assert!(kept.is_empty(), "{kept:?}");
    assert!(!world.repo_dir().join("refs/main").exists());
}

fn assert_whole(world: &World) {
    let dir = world.fetch(REPO).unwrap();
    assert_eq!(names(&dir).len(), 6);
    for (name, bytes) in files(&weights(0)) {
        if let Ok(found) = std::fs::read(dir.join(name)) {
            assert!(found == bytes, "{name}");
        }
    }
    assert!(names(&world.repo_dir().join("blobs")).iter().all(|name| !name.ends_with(".incomplete")));
}

#[test]
fn ranges_may_be_unknown() {
    for bare in [false, true] {
        for redirect in [Redirect::Nowhere, Redirect::Relative, Redirect::Weights] {
            let world = World::new();
            {
                let mut state = world.hub.state();
                (state.bare, state.no_ranges, state.redirect) = (bare, true, redirect);
            }
            // What has arrived is not written a second time.
            world.hub.fault(
                "model.safetensors",
                &[Fault::None, Fault::Cut(70_000), Fault::Cut(90_000)][usize::from(!bare)..],
            );
            let mut seen = Seen::default();
            fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap();
            assert_eq!(seen.notices.len(), 2, "{seen:?}");
            if !bare {
                assert_eq!(Some(seen.received), seen.bytes);
            }
            assert_whole(&world);
        }
    }
}

#[test]
fn content_range_may_be_missing() {
    let world = World::new();
    world.hub.fault("model.safetensors", &[Fault::Cut(70_000), Fault::NoContentRange]);
    assert_whole(&world);
}

#[test]
fn redirects_of_every_form() {
    for bare in [false, true] {
        let other = Hub::start();
        other.publish(REPO, "main", SHA, &files(&weights(0)));
        // The other host may know ranges or not, and has tags of its own.
        other.state().no_ranges = bare;
        for redirect in [
            Redirect::Relative,
            Redirect::Host(other.endpoint.clone()),
            Redirect::Host(other.endpoint.replace("http:", "")),
            Redirect::Host(format!("{}/x/./../", other.endpoint)),
        ] {
            let world = World::new();
            (world.hub.state().bare, world.hub.state().redirect) = (bare, redirect);
            assert_whole(&world);
        }
    }
    // A model that was renamed.
    let world = World::new();
    world.hub.state().redirect_info = Redirect::Location(format!("../../../../../moved/{REPO}"));
    assert!(matches!(world.fetch(REPO), Err(HubError::NotFound { .. })));
    assert_eq!(world.hub.take_log()[1], format!("/moved/{REPO} -"));
}

#[test]
fn redirects_end() {
    for (redirect, reason) in [
        (Redirect::Itself, "more than 10 redirects"),
        (Redirect::Missing, "HTTP 302: a redirect without Location"),
        (Redirect::Location(String::new()), "HTTP 302: Location: expected an address, found nothing"),
        (Redirect::Location("ftp://x/y".into()), "HTTP 302: Location: expected http:// or https://"),
        (Redirect::Location("http://".into()), "HTTP 302: Location: expected a host"),
    ] {
        for bare in [false, true] {
            let world = World::new();
            (world.hub.state().bare, world.hub.state().redirect) = (bare, redirect.clone());
            let e = world.fetch(REPO).unwrap_err();
            assert!(matches!(e, HubError::Answer { .. }), "{e}");
            let what = if bare { "ask for config.json" } else { "download config.json" };
            let start = format!("hub model {REPO}: {what}: unexpected answer of {}/", world.hub.endpoint);
            assert!(e.to_string().starts_with(&start) && e.to_string().ends_with(reason), "{e}");
            assert!(e.hint().unwrap().contains("HF_ENDPOINT"));
            assert!(world.hub.take_log().len() <= 12);
        }
        // Of the description: like a hub that cannot be reached.
        let world = World::new();
        world.hub.state().redirect_info = redirect.clone();
        let e = world.fetch(REPO).unwrap_err();
        assert!(e.to_string().ends_with(reason), "{e}");
        assert!(world.hub.take_log().len() <= 11);
        world.hub.state().redirect_info = Redirect::Weights;
        let dir = world.fetch(REPO).unwrap();
        world.hub.state().redirect_info = redirect;
        let mut seen = Seen::default();
        assert_eq!(fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap(), dir);
        assert!(seen.notices[0].ends_with("; the cached copy is used"), "{seen:?}");
    }
}

#[test]
fn other_content_is_refused_and_not_kept() {
    for bare in [false, true] {
        let world = World::new();
        world.hub.state().bare = bare;
        world.hub.fault("model.safetensors", &[Fault::WrongBytes]);
        let e = world.fetch(REPO).unwrap_err();
        assert!(matches!(e, HubError::Content { .. }), "{e}");
        let expected = format!(
            "hub model {REPO}: model.safetensors: expected content with SHA-256 {}, found ",
            crate::server::tag("x.safetensors", &weights(0))
        );
        assert!(e.to_string().starts_with(&expected), "{e}");
        assert!(e.hint().is_some());
        assert_nothing_kept(&world);
        assert_whole(&world);
    }
    // Files of the repository itself have Git's hashes.
    let world = World::new();
    world.hub.fault("tokenizer_config.json", &[Fault::WrongBytes]);
    let e = world.fetch(REPO).unwrap_err().to_string();
    assert!(e.contains("tokenizer_config.json: expected content with Git hash "), "{e}");
    assert_whole(&world);
}

#[test]
fn pieces_that_do_not_fit_are_fetched_once_more() {
    let world = World::new();
    std::fs::create_dir_all(world.repo_dir().join("blobs")).unwrap();
    for leftover in [vec![7; 50_000], vec![7; 200_000], vec![7; 300_000]] {
        std::fs::write(world.part(&weights(0)), leftover).unwrap();
        assert_whole(&world);
        std::fs::remove_dir_all(world.repo_dir().join("snapshots")).unwrap();
        let blob = world.part(&weights(0)).with_extension("");
        std::fs::remove_file(blob).unwrap();
    }
    // Damaged each time: refused after the second.
    std::fs::write(world.part(&weights(0)), vec![7; 50_000]).unwrap();
    world.hub.fault("model.safetensors", &[Fault::None, Fault::WrongBytes, Fault::None]);
    world.hub.take_log();
    assert!(matches!(world.fetch(REPO), Err(HubError::Content { .. })));
    assert_eq!(crate::ranges(&world.hub.take_log(), "model.safetensors"), ["bytes=50000-", "-"]);
}

#[test]
fn other_sizes_are_refused_and_not_kept() {
    for length in [0, 1, 199_999, 200_001, 400_000] {
        for no_ranges in [false, true] {
            let world = World::new();
            let other = Hub::start();
            let bytes: Vec<u8> = weights(0).into_iter().cycle().take(length).collect();
            other.publish(REPO, "main", SHA, &files(&bytes));
            other.state().no_ranges = no_ranges;
            world.hub.state().redirect = Redirect::Host(other.endpoint.clone());
            let e = world.fetch(REPO).unwrap_err();
            let expected = format!("model.safetensors: expected 200000 bytes, found {length}");
            assert!(e.to_string().ends_with(&expected), "{e}");
            assert!(other.take_log().len() < 20);
            assert_nothing_kept(&world);
        }
    }
}

#[test]
fn a_silent_connection_is_given_up() {
    let mut world = World::new();
    world.config.stall_timeout = Duration::from_millis(300);
    world.hub.fault("model.safetensors", &[Fault::Stall(70_000), Fault::Stall(0), Fault::Stall(10_000)]);
    let mut seen = Seen::default();
    fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap();
    assert_eq!(seen.notices.len(), 3);
    assert!(seen.notices[0].contains("nothing received for 0.3 s"), "{seen:?}");
    assert_whole(&world);

    let mut world = World::new();
    world.config.stall_timeout = Duration::from_millis(100);
    world.hub.fault("config.json", &[Fault::Stall(0); 20]);
    let start = Instant::now();
    let e = world.fetch(REPO).unwrap_err();
    assert!(e.to_string().ends_with("nothing received for 0.1 s"), "{e}");
    world.hub.fault("info", &[Fault::Stall(0)]);
    let e = world.fetch(REPO).unwrap_err();
    assert!(matches!(e, HubError::Network { .. } | HubError::Answer { .. }), "{e}");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn trouble_of_the_server_is_waited_out_for_a_while() {
    for bare in [false, true] {
        for file in ["config.json", "model.safetensors"] {
            for status in [429, 500, 503] {
                let world = World::new();
                (world.hub.state().bare, world.hub.state().redirect) = (bare, Redirect::Nowhere);
                world.hub.fault(file, &[Fault::Status(status); 2]);
                assert_whole(&world);
                std::fs::remove_dir_all(world.repo_dir()).unwrap();
                world.hub.fault(file, &[Fault::Status(status); 20]);
                let e = world.fetch(REPO).unwrap_err();
                assert_eq!(e.to_string(), format!("hub model {REPO}: download {file}: HTTP {status}"));
                assert_eq!(world.hub.state().faults[file].len(), 17, "one try and two more");
            }
        }
    }
}

#[test]
fn a_server_may_say_how_long_to_wait() {
    for name in ["info", "config.json"] {
        let world = World::new();
        world.hub.state().retry_after = Some(1);
        world.hub.fault(name, &[Fault::Status(429)]);
        let start = Instant::now();
        assert_whole(&world);
        assert!(start.elapsed() >= Duration::from_secs(1));
    }
}

#[test]
fn a_refusal_of_another_host_is_not_one_of_the_hub() {
    let world = World::new();
    let other = Hub::start();
    other.publish(REPO, "main", SHA, &files(&weights(0)));
    world.hub.state().redirect = Redirect::Host(other.endpoint.clone());
    other.fault("model.safetensors", &[Fault::Status(403)]);
    let e = world.fetch(REPO).unwrap_err();
    let expected = format!("hub model {REPO}: download model.safetensors from {}: HTTP 403", other.endpoint);
    assert_eq!(e.to_string(), expected);
}

#[test]
fn tags_of_other_servers() {
    let world = World::new();
    {
        let mut state = world.hub.state();
        (state.bare, state.redirect, state.etag) = (true, Redirect::Nowhere, Some("W/\"5f-1a.b_c\""));
    }
    // All files have the same tag, so one is enough to ask for.
    world.hub.publish(REPO, "main", SHA2, &[("config.json", b"same"), ("model.safetensors", b"same")]);
    let dir = world.fetch(REPO).unwrap();
    assert_eq!(std::fs::read(dir.join("config.json")).unwrap(), b"same");
    assert_eq!(names(&world.repo_dir().join("blobs")), ["5f-1a.b_c"]);
    for bad in ["", "\"\"", "\"../x\"", "\".x\"", "\"a/b\"", "\"a b\""] {
        world.hub.state().etag = Some(bad);
        std::fs::remove_dir_all(world.repo_dir()).unwrap();
        let e = world.fetch(REPO).unwrap_err().to_string();
        assert!(e.contains("ETag: expected letters and digits, found "), "{e}");
        std::fs::create_dir_all(world.repo_dir()).unwrap();
    }
}
