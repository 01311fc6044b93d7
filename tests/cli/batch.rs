//! `ocelli batch`: rows in, rows out, whatever ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Done, Temp, command, example, json as parse, ocelli};

fn eval(name: &str) -> PathBuf {
    ocelli_tests::root().join("models/demo/eval").join(name)
}

/// The rows of a file of results by their id; none is there twice, and none is half a row.
fn rows(path: &Path) -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    let rows: Vec<Value> = text.lines().map(parse).collect();
    let by_id: BTreeMap<String, Value> =
        rows.iter().map(|row| (row["id"].as_str().unwrap().to_owned(), row.clone())).collect();
    assert_eq!(by_id.len(), rows.len(), "an id is there twice");
    by_id
}

/// What is the same in every run of a row.
fn answers(rows: &BTreeMap<String, Value>) -> Vec<(String, String)> {
    rows.iter().map(|(id, row)| (id.clone(), row["text"].as_str().unwrap_or_default().to_owned())).collect()
}

fn batch(args: &[&str]) -> Done {
    ocelli(&[&["batch"], args].concat())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A list of the first questions of the evaluation, with the answers that the model is known to give.
fn questions(temp: &Temp, count: usize) -> (PathBuf, Vec<(String, String)>) {
    let lines = std::fs::read_to_string(eval("eval.jsonl")).unwrap();
    let known = std::fs::read_to_string(eval("answers.jsonl")).unwrap();
    let (mut list, mut expected) = (String::new(), Vec::new());
    for (number, (line, known)) in lines.lines().zip(known.lines()).take(count).enumerate() {
        let mut row = parse(line);
        let id = format!("q{number:04}");
        row["id"] = json!(id);
        row["image"] = json!(eval(row["image"].as_str().unwrap()));
        list += &format!("{row}\n");
        expected.push((id, parse(known)["f32"]["text"].as_str().unwrap().to_owned()));
    }
    (temp.write("list.jsonl", list), expected)
}

/// The evaluation's own file, its columns named, gives the evaluation's answers row by row.
#[test]
fn the_evaluation_again() {
    let temp = Temp::new();
    let out = temp.path("out.jsonl");
    let done = batch(&[
        text(&eval("eval.jsonl")),
        "--prompt-column",
        "question",
        "--max-tokens",
        "64",
        "--ordered",
        "--json",
        "--out",
        text(&out),
    ]);
    let report = done.json();
    let known = std::fs::read_to_string(eval("answers.jsonl")).unwrap();
    let written = std::fs::read_to_string(&out).unwrap();
    assert_eq!(known.lines().count(), written.lines().count());
    for (number, (known, row)) in known.lines().zip(written.lines()).enumerate() {
        let (known, row) = (parse(known), parse(row));
        assert_eq!(row["id"], (number + 1).to_string(), "in the order of the list");
        assert_eq!(row["text"], known["f32"]["text"], "row {}", number + 1);
        assert!(
            row["finish_reason"] == "stop" && row["tokens"].as_u64().unwrap() > 0 && row["ms"].is_number()
        );
    }
    assert_eq!((&report["rows"], &report["failed"]), (&json!(1756), &json!(0)));
    assert!(report["pictures_per_s"].as_f64().unwrap() > 0.0);
    // Each picture is seen once, whatever is asked about it.
    assert_eq!(report["reused_pictures"], 1756 - 200);
}

/// Folders, names with stars, CSV and Parquet; fields in prompts; several prompts a picture; captions beside pictures.
#[test]
fn inputs_and_outputs() {
    let temp = Temp::new();
    let folder = temp.path("pictures");
    std::fs::create_dir_all(folder.join("more")).unwrap();
    std::fs::copy(example("01.png"), folder.join("a.png")).unwrap();
    std::fs::copy(example("02.png"), folder.join("more/b.png")).unwrap();
    std::fs::write(folder.join("notes.txt"), "no picture").unwrap();
    let count = "How many objects are there?";
    let alone =
        |name: &str| ocelli(&["run", "--image", text(&example(name)), count]).well().trim().to_owned();
    let (first, second) = (alone("01.png"), alone("02.png"));

    let out = temp.path("out.jsonl");
    batch(&[text(&folder), "--prompt", count, "--sidecar", "txt", "--out", text(&out), "-q"]).well();
    let found = rows(&out);
    assert_eq!(answers(&found), [("a.png".into(), first.clone()), ("more/b.png".into(), second.clone())]);
    let caption = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    assert_eq!((caption("a.txt"), caption("more/b.txt")), (first.clone(), second.clone()));
    let again = batch(&[
        text(&folder),
        "--prompt",
        count,
        "--sidecar",
        "txt",
        "--out",
        text(&temp.path("other.jsonl")),
    ]);
    again.fails(1, &["is there already"]);

    let star = folder.join("*.png");
    batch(&[
        text(&star),
        "--prompt",
        count,
        "--prompt",
        "Caption this image.",
        "--out",
        text(&out),
        "--overwrite",
        "-q",
    ])
    .well();
    let found = rows(&out);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a.png#1", "a.png#2"]);
    assert_eq!((&found["a.png#1"]["text"], &found["a.png#1"]["prompt"]), (&json!(first), &json!(count)));

    let csv = temp
        .write("list.csv", "name,file,what\nx,pictures/a.png,objects\ny,\"pictures/more/b.png\",objects\n");
    let named =
        ["--image-column", "file", "--id-column", "name", "--prompt", "How many {{ what }} are there?"];
    let table = temp.path("out.parquet");
    batch(&[&[text(&csv), "--out", text(&table), "-q"], &named[..]].concat()).well();
    // The table is an input too, of the same rows.
    let back = temp.path("back.jsonl");
    batch(&[text(&table), "--out", text(&back), "--prompt", "Count the objects.", "-q"]).well();
    assert_eq!(answers(&rows(&back)), [("x".into(), first), ("y".into(), second)]);
    let rest: Vec<_> = std::fs::read_dir(&temp.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!rest.iter().any(|name| name.to_str().unwrap().contains(".rows")), "{rest:?}");
    // Nothing is left to do, and the table stays.
    let before = std::fs::read(&table).unwrap();
    batch(&[&[text(&csv), "--out", text(&table), "--resume", "-q"], &named[..]].concat()).well();
    assert_eq!(std::fs::read(&table).unwrap(), before);
}

/// A row that cannot be answered is a row with an error; the others go on, and the exit code says that some failed.
#[test]
fn bad_rows() {
    let temp = Temp::new();
    let picture = example("01.png");
    let list = [
        json!({"id": "good", "image": picture, "prompt": "Count the objects."}),
        json!({"id": "absent", "image": "nowhere.png", "prompt": "Count the objects."}),
        json!({"id": "broken", "image": "broken.png", "prompt": "Count the objects."}),
        json!({"id": "mute", "image": picture}),
        json!({"id": "mark", "image": picture, "prompt": "<image>"}),
        json!({"id": "long", "image": picture, "prompt": "many words ".repeat(3000)}),
        json!({"id": "last", "images": [picture], "prompt": "Count the objects."}),
    ];
    temp.write("broken.png", b"\x89PNG\r\n\x1a\nand nothing more");
    let list = temp.write("list.jsonl", list.map(|row| format!("{row}\n")).concat());
    let out = temp.path("out.jsonl");
    let done = batch(&[text(&list), "--out", text(&out), "-q"]);
    assert_eq!(done.code, Some(3), "{done:?}");
    assert!(done.stderr.contains("5 of 7 rows failed"), "{done:?}");
    let found = rows(&out);
    for (id, part) in [
        ("absent", "nowhere.png"),
        ("broken", "broken.png"),
        ("mute", "no prompt: no field `prompt`"),
        ("mark", "`<image>`"),
        ("long", "expected at most"),
    ] {
        let error = found[id]["error"].as_str().unwrap();
        assert!(error.contains(part) && found[id].get("text").is_none(), "{id}: {error}");
    }
    assert!(found["good"]["text"] == "two" && found["last"]["text"] == "two");

    // They stay as they are, unless they are to be tried again.
    temp.write("nowhere.png", std::fs::read(example("01.png")).unwrap());
    let resumed = batch(&[text(&list), "--out", text(&out), "--resume", "--json", "-q"]);
    assert_eq!((resumed.code, &parse(&resumed.stdout)["rows"]), (Some(0), &json!(0)));
    let again = batch(&[text(&list), "--out", text(&out), "--resume", "--retry-errors", "-q"]);
    assert!(again.code == Some(3) && rows(&out)["absent"]["text"] == "two", "{again:?}");

    let few =
        batch(&[text(&list), "--out", text(&out), "--overwrite", "--max-errors", "1", "--ordered", "-q"]);
    few.fails(1, &[" rows failed, more than --max-errors"]);
}

#[test]
fn wrong_arguments() {
    let temp = Temp::new();
    let picture = example("01.png");
    let (picture, out) = (text(&picture), temp.path("out.jsonl"));
    let fails = |args: &[&str], code: i32, parts: &[&str]| {
        batch(&[args, &["--out", text(&out)]].concat()).fails(code, parts);
        assert!(!out.exists(), "{args:?}");
    };
    fails(&[text(&temp.path("absent"))], 1, &["no such file or folder"]);
    fails(&[text(&temp.path("*.png")), "--prompt", "x"], 1, &["*.png: no such file"]);
    fails(&[picture, picture, "--prompt", "x"], 1, &["rows 1 and 2 have the same id `01.png`"]);
    fails(&[picture, "--prompt", "x", "--shard", "2/2"], 2, &["expected I/N"]);
    fails(&[picture, "--prompt", "x", "--prompt", "y", "--sidecar", "txt"], 2, &["one caption"]);
    fails(&[picture, "--prompt", "x", "--sidecar", "png"], 1, &["over a picture"]);
    let list = temp.write("list.jsonl", "{\"image\": \"a.png\"}\n{\"image\": \n");
    fails(&[text(&list)], 1, &["line 2: not JSON"]);
    let list = temp.write("list.jsonl", "{\"image\": 7}\n");
    fails(&[text(&list)], 1, &["line 1: pictures: expected a path"]);
    fails(&[text(&list), "--image-column", "picture"], 1, &["no field `picture`; found image"]);
    fails(&[text(&temp.write("empty.jsonl", ""))], 1, &["no rows"]);
    fails(&[picture], 2, &["no prompt: no row has a field `prompt`"]);
    fails(&[picture, "--prompt-column", "question"], 2, &["no row has a field `question`"]);
    // What only the model can refuse comes before the file too, also before one is replaced.
    fails(&[picture, "--prompt", "x", "--regex", "a(b"], 2, &["--regex: "]);
    fails(&[picture, "--prompt", "x", "--model", text(&temp.path("nobody"))], 1, &["no such directory"]);
    let kept = temp.write("kept.jsonl", "what was there\n");
    for wrong in [["--regex", "a(b"], ["--model", "no/body/here"]] {
        let args = [picture, "--prompt", "x", "--overwrite", "--out", text(&kept)];
        assert!(batch(&[&args[..], &wrong].concat()).code.is_some_and(|code| code != 0));
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "what was there\n");
    }
    let asked = batch(&[
        picture,
        "--prompt",
        "{{ what }} of {{ id }}",
        "--out",
        text(&temp.path("what.jsonl")),
        "-q",
    ]);
    assert_eq!(asked.code, Some(3));
    let error = rows(&temp.path("what.jsonl"))["01.png"]["error"].as_str().unwrap().to_owned();
    assert_eq!(error, "--prompt: no field `what`; the row has id, image");
    let folder = temp.path("no/out.jsonl");
    batch(&[picture, "--prompt", "x", "--out", text(&folder)]).fails(1, &["no such folder"]);
    temp.write("out.jsonl", "something else\n");
    batch(&[picture, "--prompt", "x", "--out", text(&out)]).fails(1, &["is there already"]);
    batch(&[picture, "--prompt", "x", "--out", text(&out), "--resume"])
        .fails(1, &["line 1: no row of results"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "something else\n");
}

/// Parts of the work in any number of runs are the whole of it.
#[test]
fn shards() {
    let temp = Temp::new();
    let (list, expected) = questions(&temp, 25);
    let mut all = BTreeMap::new();
    for part in 0..3 {
        let out = temp.path(&format!("{part}.jsonl"));
        let shard = format!("{part}/3");
        batch(&[text(&list), "--prompt-column", "question", "--shard", &shard, "--out", text(&out), "-q"])
            .well();
        let found = rows(&out);
        assert!(found.len() >= 8, "{}", found.len());
        all.extend(found);
    }
    assert_eq!(answers(&all), expected);
}

/// A full disk ends the run; what was written before is whole.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk() {
    let temp = Temp::new();
    let (list, _) = questions(&temp, 5);
    let done = batch(&[text(&list), "--prompt-column", "question", "--out", "/dev/full", "-q"]);
    done.fails(1, &["/dev/full: No space left on device"]);
}

/// Killed at any moment and gone on with, a run gives the rows that it would have given, each once.
#[test]
fn killed_at_any_moment() {
    let temp = Temp::new();
    let (list, expected) = questions(&temp, 500);
    let out = temp.path("out.jsonl");
    let args = ["batch", text(&list), "--prompt-column", "question", "--out", text(&out), "-q", "--resume"];
    let (mut kills, mut state, mut seen) = (0, 1u64, 0);
    loop {
        let mut child = command(&args).spawn().unwrap();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (start, wait) = (Instant::now(), Duration::from_micros((state >> 33) % 140_000));
        while start.elapsed() < wait && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if kills < 100 && child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            continue;
        }
        assert!(child.wait().unwrap().success());
        let found = rows(&out);
        assert!(found.len() >= seen);
        seen = found.len();
        if kills >= 100 || seen == expected.len() {
            break;
        }
    }
    assert_eq!(answers(&rows(&out)), expected);
    assert!(kills > 20, "{kills} kills");
}

/// Ctrl-C keeps what is done.
#[test]
#[cfg(unix)]
fn interrupted() {
    let temp = Temp::new();
    let (list, expected) = questions(&temp, 1756);
    let out = temp.path("out.jsonl");
    let args = ["batch", text(&list), "--prompt-column", "question", "--out", text(&out), "-q"];
    let child = command(&args).spawn().unwrap();
    let start = Instant::now();
    while std::fs::metadata(&out).map_or(0, |file| file.len()) < 500 {
        assert!(start.elapsed() < Duration::from_secs(60), "no row is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    crate::interrupt::interrupt(&child);
    let done = crate::ended(child);
    done.fails(130, &["interrupted: ", " rows are done, "]);
    let found = rows(&out);
    assert!((1..1756).contains(&found.len()), "{}", found.len());
    let resumed: BTreeMap<_, _> = expected.into_iter().collect();
    assert!(answers(&found).iter().all(|(id, text)| resumed[id] == *text));
}

/// Two runs do not write to one file.
#[test]
fn one_at_a_time() {
    let temp = Temp::new();
    let (list, _) = questions(&temp, 1756);
    let out = temp.path("out.jsonl");
    let args = ["batch", text(&list), "--prompt-column", "question", "--out", text(&out), "-q"];
    let mut child = command(&args).spawn().unwrap();
    let start = Instant::now();
    while std::fs::metadata(&out).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "no row is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    ocelli(&[&args[..], &["--resume"]].concat()).fails(1, &["another process writes to it"]);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What the model sees in pictures is kept for other runs.
#[test]
fn features_are_kept_on_disk() {
    let temp = Temp::new();
    let (list, expected) = questions(&temp, 30);
    let (out, cache) = (temp.path("out.jsonl"), temp.path("cache"));
    for known in [false, true] {
        let args =
            [text(&list), "--prompt-column", "question", "--out", text(&out), "--overwrite", "--json", "-q"];
        let report = batch(&[&args[..], &["--cache-dir", text(&cache)]].concat()).json();
        let found = rows(&out);
        let pictures: BTreeSet<String> = found.values().map(|row| row["image"].to_string()).collect();
        assert!(pictures.len() > 2 && answers(&found) == expected);
        let encoded = if known { 0 } else { pictures.len() };
        assert_eq!(report["reused_pictures"], 30 - encoded, "{report}");
    }
}
