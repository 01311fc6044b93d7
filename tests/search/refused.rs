//! What is not an index, or not one of what is asked for.

use std::fs;

use ocelli_tests::command::{Temp, golden, ocelli};

use crate::{args, counts, drawn, index, like, siglip};

/// Where SQLite's header has the application's number.
const APPLICATION: usize = 68;

#[test]
fn files_that_are_no_index() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 40);
    let (picture, folder_arg) = (folder.join("0000.png"), folder.clone());
    let search =
        |idx: &std::path::Path| ocelli(&args(&[&"search", &idx, &"--image", &picture, &"--backend", &"cpu"]));
    let done = search(&idx);
    done.fails(1, &["idx", "no such index"]);
    assert!(done.stderr.contains("ocelli index DIR"), "{done:?}");
    search(&folder).fails(1, &["expected an index", "a folder"]);
    let garbage = temp.write("garbage", [7u8; 9000]);
    search(&garbage).fails(1, &["garbage", "expected an index"]);
    ocelli(&args(&[&"index", &folder_arg, &"--out", &garbage])).fails(1, &["garbage", "expected an index"]);
    assert_eq!(fs::read(&garbage).unwrap(), [7u8; 9000], "it is left as it is");
    search(&temp.write("empty", b"")).fails(1, &["empty", "another database"]);

    index(&folder, &idx, &siglip());
    let whole = fs::read(&idx).unwrap();
    let mut other = whole.clone();
    other[APPLICATION..APPLICATION + 4].copy_from_slice(&[0; 4]);
    search(&temp.write("other", &other)).fails(1, &["other", "another database"]);
    // Cut off, and with bytes that are not its own.
    let cut = temp.write("cut", &whole[..whole.len() / 2]);
    search(&cut).fails(1, &["cut", "damaged"]);
    let mut damaged = whole.clone();
    let (page, end) = (4096, damaged.len());
    damaged[page..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
    search(&temp.write("flipped", &damaged)).fails(1, &["flipped", "damaged"]);
}

#[test]
fn vectors_that_are_none_are_told_and_made_again() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 10);
    index(&folder, &idx, &siglip());
    let before = like(&idx, &folder.join("0001.png"), 10);
    // Numbers of a vector are changed: its bytes are found by those that `embed` gives.
    let text =
        ocelli(&args(&[&"embed", &"--backend", &"cpu", &"--model", &siglip(), &folder.join("0004.png")]))
            .well();
    let value = ocelli_tests::command::json(&text);
    let first: Vec<u8> = value["vector"].as_array().unwrap()[..4]
        .iter()
        .flat_map(|value| (value.as_f64().unwrap() as f32).to_le_bytes())
        .collect();
    let mut bytes = fs::read(&idx).unwrap();
    let place =
        bytes.windows(first.len()).position(|window| window == first).expect("the vector is in the file");
    bytes[place..place + 4].copy_from_slice(&9f32.to_le_bytes());
    fs::write(&idx, bytes).unwrap();
    ocelli(&args(&[&"search", &idx, &"x", &"--backend", &"cpu"]))
        .fails(1, &["damaged", "0004.png", "length 1"]);
    // It is made anew once its file is taken away and comes back.
    fs::rename(folder.join("0004.png"), temp.path("aside.png")).unwrap();
    index(&folder, &idx, &siglip());
    fs::rename(temp.path("aside.png"), folder.join("0004.png")).unwrap();
    assert_eq!(counts(&index(&folder, &idx, &siglip()))[6], 1);
    assert_eq!(like(&idx, &folder.join("0001.png"), 10), before);
}

#[test]
fn other_models_and_folders() {
    let temp = Temp::new();
    let (folder, idx) = (temp.path("drawn"), temp.path("idx"));
    drawn::folder(&folder, 3);
    index(&folder, &idx, &siglip());
    let clip = golden("clip");
    let picture = folder.join("0000.png");
    for line in [
        args(&[&"index", &folder, &"--out", &idx, &"--model", &clip]),
        args(&[&"search", &idx, &"--image", &picture, &"--model", &clip]),
    ] {
        let done = ocelli(&line);
        done.fails(1, &["idx: model: expected", "siglip", "found", "clip"]);
        assert!(done.stderr.contains("hint: vectors of different models cannot be compared"), "{done:?}");
    }
    // The same model that sees pictures in another way.
    ocelli(&args(&[&"index", &folder, &"--out", &idx, &"--processor", &"resample=3"]))
        .fails(1, &["settings of the image processor: expected those of its files, found resample=3"]);
    // A copy of the model is the same model.
    let copy = Temp::copy_of(&siglip());
    let moved = ocelli(&args(&[
        &"index",
        &folder,
        &"--out",
        &idx,
        &"--model",
        &copy.0,
        &"--json",
        &"--backend",
        &"cpu",
    ]))
    .json();
    assert_eq!(counts(&moved), [0, 0, 0, 0, 3, 0, 0]);
    assert_eq!(moved["model"], copy.0.canonicalize().unwrap().to_str().unwrap());
    // Another folder is another index; but a folder may be moved.
    let other = temp.path("other");
    drawn::folder(&other, 2);
    ocelli(&args(&[&"index", &other, &"--out", &idx])).fails(1, &["idx: folder: expected", "drawn", "other"]);
    let moved = temp.path("moved");
    fs::rename(&folder, &moved).unwrap();
    assert_eq!(counts(&index(&moved, &idx, &siglip())), [0, 0, 0, 0, 3, 0, 0]);
    assert_eq!(like(&idx, &moved.join("0002.png"), 1)[0].0, "0002.png");
}

#[test]
fn arguments() {
    let temp = Temp::new();
    let idx = temp.path("idx");
    let file = temp.write("file", "x");
    ocelli(&args(&[&"index", &temp.path("nowhere"), &"--out", &idx]))
        .fails(1, &["nowhere", "no such folder"]);
    ocelli(&args(&[&"index", &file, &"--out", &idx])).fails(1, &["file", "expected a folder"]);
    ocelli(&args(&[&"index", &temp.0, &"--out", &temp.path("no/idx")]))
        .fails(1, &["--out", "no such folder"]);
    ocelli(&args(&[&"index", &temp.0])).fails(2, &["--out"]);
    ocelli(&args(&[&"search", &idx])).fails(2, &["TEXT"]);
    ocelli(&args(&[&"search", &idx, &"x", &"--image", &file])).fails(2, &["--image"]);
    ocelli(&args(&[&"search"])).fails(2, &["IDX"]);
    index(&temp.0, &idx, &siglip());
    ocelli(&args(&[&"search", &idx, &" "])).fails(2, &["the text is empty"]);
    ocelli(&args(&[&"search", &idx, &"--image", &file, &"--backend", &"cpu"])).fails(1, &["file"]);
    ocelli(&args(&[&"search", &idx, &"--image", &"http://127.0.0.1/a.png"]))
        .fails(2, &["--image", "expected the name of a file"]);
    // An empty folder has an index too.
    assert_eq!(ocelli(&args(&[&"search", &idx, &"anything", &"--backend", &"cpu"])).well(), "");
}
