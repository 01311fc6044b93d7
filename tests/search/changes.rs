//! Folders that change, and processes that end.

use std::fs;
use std::time::{Duration, Instant};

use ocelli_tests::command::{Temp, command, demo, ocelli};

use crate::{args, counts, drawn, index, like, report, siglip};

#[test]
fn only_what_is_new_is_computed() {
    let temp = Temp::new();
    let (folder, idx, model) = (temp.path("drawn"), temp.path("idx"), siglip());
    drawn::folder(&folder, 20);
    fs::write(folder.join("notes.txt"), "no picture").unwrap();
    assert_eq!(counts(&index(&folder, &idx, &model)), [20, 0, 0, 0, 0, 0, 20]);
    // Nothing has changed. The model is that of the index.
    let again =
        || ocelli(&args(&[&"index", &folder, &"--out", &idx, &"--json", &"--backend", &"cpu"])).json();
    assert_eq!(counts(&again()), [0, 0, 0, 0, 20, 0, 0]);
    // One is written anew as it was: its time alone differs.
    drawn::draw(&folder.join("0000.png"), 0);
    assert_eq!(counts(&again()), [0, 0, 0, 0, 20, 0, 0]);
    // One has other content, one is moved, one is copied, one is gone, one is new.
    drawn::draw(&folder.join("0001.png"), 101);
    fs::create_dir(folder.join("inner")).unwrap();
    fs::rename(folder.join("0002.png"), folder.join("inner/moved.png")).unwrap();
    fs::copy(folder.join("0003.png"), folder.join("copy.png")).unwrap();
    fs::remove_file(folder.join("0004.png")).unwrap();
    drawn::draw(&folder.join("new.PNG"), 102);
    let made = again();
    assert_eq!(counts(&made), [2, 1, 1, 1, 17, 0, 2], "{made}");
    assert_eq!(made["pictures"], 21);
    let found = like(&idx, &folder.join("inner/moved.png"), 21);
    assert_eq!((found.len(), &*found[0].0), (21, "inner/moved.png"));
    let names: Vec<&str> = found.iter().map(|(name, _)| &**name).collect();
    assert!(!names.contains(&"0002.png") && !names.contains(&"0004.png"), "{names:?}");
    let found = like(&idx, &folder.join("copy.png"), 2);
    assert_eq!([&*found[0].0, &*found[1].0], ["0003.png", "copy.png"], "equal scores in the order of names");
    assert_eq!(found[0].1, found[1].1);
    // A content that came back is computed again: its vector went with it.
    drawn::draw(&folder.join("0004.png"), 4);
    assert_eq!(counts(&again()), [1, 0, 0, 0, 21, 0, 1]);
    // The same as an index that is made at once.
    let whole = temp.path("whole");
    index(&folder, &whole, &model);
    let picture = folder.join("0007.png");
    assert_eq!(like(&idx, &picture, 22), like(&whole, &picture, 22));
    // All are gone.
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    assert_eq!(counts(&again()), [0, 0, 0, 22, 0, 0, 0]);
    drawn::draw(&temp.path("query.png"), 1);
    assert_eq!(like(&idx, &temp.path("query.png"), 3), []);
}

#[test]
fn a_bad_picture_stops_nothing() {
    let temp = Temp::new();
    let (folder, idx, model) = (temp.path("drawn"), temp.path("idx"), siglip());
    drawn::folder(&folder, 20);
    for name in ["bad.png", "worse.jpg"] {
        fs::write(folder.join(name), "no picture").unwrap();
    }
    let whole = fs::read(folder.join("0005.png")).unwrap();
    fs::write(folder.join("0005.png"), &whole[..whole.len() / 2]).unwrap();
    let run = || {
        ocelli(&args(&[
            &"index",
            &folder,
            &"--out",
            &idx,
            &"--model",
            &model,
            &"--json",
            &"--backend",
            &"cpu",
        ]))
    };
    let done = run();
    assert_eq!(counts(&report(&done, 3)), [19, 0, 0, 0, 0, 3, 19]);
    for name in ["bad.png", "worse.jpg", "0005.png", "3 of 22 pictures failed"] {
        assert!(done.stderr.contains(name), "{done:?}");
    }
    // They are tried again, and told again.
    let done = run();
    assert_eq!(counts(&report(&done, 3)), [0, 0, 0, 0, 19, 3, 0]);
    assert!(done.stderr.contains("bad.png"), "{done:?}");
    // One that was good and is bad is not in the index any more.
    fs::write(folder.join("0005.png"), &whole).unwrap();
    fs::write(folder.join("0006.png"), "no picture").unwrap();
    assert_eq!(counts(&report(&run(), 3)), [1, 0, 0, 0, 18, 3, 1]);
    let found = like(&idx, &folder.join("0005.png"), 100);
    assert_eq!((found.len(), &*found[0].0), (19, "0005.png"));
    assert!(found.iter().all(|(name, _)| name != "0006.png"));
}

/// However a run ends, what it wrote is whole, and the next one goes on there.
#[test]
fn runs_that_were_killed_go_on() {
    let temp = Temp::new();
    let (folder, whole) = (temp.path("drawn"), temp.path("whole"));
    drawn::folder(&folder, 120);
    index(&folder, &whole, &demo());
    let expected = like(&whole, &folder.join("0100.png"), 120);
    let mut kept = 0;
    for (round, pause) in [0u64, 30, 90, 200].into_iter().enumerate() {
        let idx = temp.path(&format!("idx{round}"));
        let line = args(&[
            &"index",
            &folder,
            &"--out",
            &idx,
            &"--model",
            &demo(),
            &"--batch",
            &"4",
            &"--backend",
            &"cpu",
            &"-q",
        ]);
        let mut child = command(&line).spawn().unwrap();
        // From its first row on.
        let until = Instant::now() + Duration::from_secs(60);
        while !idx.exists() && child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "no index appears");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        let there = like(&idx, &folder.join("0100.png"), 120).len() as u64;
        kept += there;
        let made = index(&folder, &idx, &demo());
        assert_eq!(counts(&made), [120 - there, 0, 0, 0, there, 0, 120 - there], "{made}");
        let found = like(&idx, &folder.join("0100.png"), 120);
        assert_eq!(found, expected, "round {round}");
    }
    assert!(kept > 0, "no run wrote anything before it was killed");
}

#[cfg(unix)]
#[test]
fn signals_end_a_run_gently() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 600);
    let line = args(&[
        &"index",
        &folder,
        &"--out",
        &idx,
        &"--model",
        &demo(),
        &"--batch",
        &"4",
        &"--backend",
        &"cpu",
    ]);
    let child = command(&line).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !idx.exists() {
        assert!(Instant::now() < until, "no index appears");
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(60));
    // SAFETY: sends a signal to a process that this test started and has not waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let done = ocelli_tests::command::ended(child);
    done.fails(130, &["interrupted"]);
    let there = like(&idx, &folder.join("0000.png"), 1000).len();
    assert!(there < 600, "{there}");
}
