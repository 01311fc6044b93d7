//! Tokens and passwords go to the endpoint alone, and are never shown.

use ocelli_engine::hub::{Endpoint, HubError, HubId, fetch};

use crate::server::{Fault, Hub, Redirect};
use crate::{REPO, SHA, Seen, World, files, weights};

/// What each request of a hub was authorized with, by the kinds of paths.
fn authorized(hub: &Hub) -> Vec<(String, Option<String>)> {
    let all = std::mem::take(&mut hub.state().authorized);
    all.into_iter().map(|(path, with)| (path.split('/').nth(1).unwrap().to_owned(), with)).collect()
}

fn elsewhere() -> Hub {
    let other = Hub::start();
    other.publish(REPO, "main", SHA, &files(&weights(0)));
    other
}

#[test]
fn no_other_host_gets_the_token() {
    for bare in [false, true] {
        let mut world = World::new();
        let other = elsewhere();
        world.config.token = Some("secret".into());
        world.hub.state().token = Some("secret".into());
        world.hub.state().bare = bare;
        world.hub.state().redirect = Redirect::Host(other.endpoint.clone());
        world.hub.fault("config.json", &[Fault::Cut(3)]);
        world.fetch(REPO).unwrap();
        let (ours, theirs) = (authorized(&world.hub), authorized(&other));
        assert!(theirs.len() >= 6 && theirs.iter().all(|(_, with)| with.is_none()), "{theirs:?}");
        assert!(
            ours.len() >= 7 && ours.iter().all(|(_, with)| with.as_deref() == Some("Bearer secret")),
            "{ours:?}"
        );
    }
}

#[test]
fn nor_does_another_name_or_scheme_of_the_same_host() {
    let mut world = World::new();
    world.config.token = Some("secret".into());
    let port = world.hub.endpoint.rsplit(':').next().unwrap().to_owned();
    world.hub.state().redirect = Redirect::Host(format!("http://localhost:{port}"));
    world.fetch(REPO).unwrap();
    let ours = authorized(&world.hub);
    let content: Vec<_> = ours.iter().filter(|(path, _)| path == "content").collect();
    assert!(content.len() == 6 && content.iter().all(|(_, with)| with.is_none()), "{ours:?}");

    // The description of the model is sent on as well.
    let other = elsewhere();
    let mut world = World::new();
    world.config.token = Some("secret".into());
    world.hub.state().redirect_info = Redirect::Host(other.endpoint.clone());
    world.fetch(REPO).unwrap();
    assert!(authorized(&other).iter().all(|(path, with)| path == "api" && with.is_none()));
}

#[test]
fn redirects_within_the_endpoint_keep_the_token() {
    let mut world = World::new();
    world.config.token = Some("secret".into());
    for redirect in [Redirect::Relative, Redirect::Host(world.hub.endpoint.clone())] {
        let _ = std::fs::remove_dir_all(world.repo_dir());
        world.hub.state().redirect = redirect;
        world.fetch(REPO).unwrap();
        let ours = authorized(&world.hub);
        assert_eq!(ours.iter().filter(|(path, _)| path == "content").count(), 6);
        assert!(ours.iter().all(|(_, with)| with.as_deref() == Some("Bearer secret")), "{ours:?}");
    }
}

#[test]
fn user_and_password_of_the_endpoint() {
    let mut world = World::new();
    let other = elsewhere();
    let address = world.hub.endpoint.replace("http://", "http://us%65r:pass%3Aword@");
    world.config.endpoint = Endpoint::parse(&address).unwrap();
    world.hub.state().redirect = Redirect::Host(other.endpoint.clone());
    world.fetch(REPO).unwrap();
    let (ours, theirs) = (authorized(&world.hub), authorized(&other));
    // base64 of `user:pass:word`
    assert!(ours.iter().all(|(_, with)| with.as_deref() == Some("Basic dXNlcjpwYXNzOndvcmQ=")), "{ours:?}");
    assert!(theirs.iter().all(|(_, with)| with.is_none()), "{theirs:?}");

    // No error, hint or notice shows them.
    let mut shown = vec![format!("{:?}", world.config)];
    let mut note = |result: Result<_, HubError>| {
        let error = result.unwrap_err();
        shown.push(format!("{error} {error:?} {:?}", error.hint()));
    };
    note(world.fetch("acme/nothing"));
    note(world.fetch(&format!("{REPO}@v9")));
    world.hub.state().redirect_info = Redirect::Itself;
    note(world.fetch("acme/nothing"));
    world.hub.state().redirect_info =
        Redirect::Location("http://us%65r:pass%3Aword@127.0.0.1:1/?sign=pass".into());
    note(world.fetch("acme/tiny-vlm@v9"));
    world.hub.state().redirect_info = Redirect::Weights;
    for status in [401, 403, 404, 500] {
        world.hub.fault("info", &[Fault::Status(status); 3]);
        note(world.fetch("acme/nothing"));
    }
    let mut seen = Seen::default();
    world.hub.fault("info", &[Fault::Status(500); 3]);
    fetch(&HubId::parse(REPO).unwrap(), &world.config, &mut seen).unwrap();
    shown.extend(seen.notices);
    assert_eq!(shown.len(), 10);
    let port = Endpoint::parse("http://x:y@127.0.0.1:1x").unwrap_err();
    shown.push(port.to_string());
    for text in shown {
        assert!(!text.contains("pass") && !text.contains("user") && !text.contains("us%65r"), "{text}");
    }
}

#[test]
fn a_token_that_no_header_can_carry() {
    let mut world = World::new();
    world.config.token = Some("sec\nret".into());
    let e = world.fetch(REPO).unwrap_err();
    assert!(e.to_string().starts_with("HF_TOKEN: expected an access token"), "{e}");
    assert!(!format!("{e:?}").contains("ret\""), "{e:?}");
}
