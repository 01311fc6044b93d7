//! `ocelli run --video`.

use crate::{Temp, example, golden, ocelli};

#[test]
fn frames_of_a_folder() {
    let frames = Temp::new();
    for (number, name) in ["01.png", "02.png", "03.png", "04.png"].into_iter().enumerate() {
        frames.write(&format!("{number:04}.png"), std::fs::read(example(name)).unwrap());
    }
    let dir = frames.0.to_str().unwrap();
    for family in ["smolvlm", "internvl"] {
        let model = golden(family);
        let args = [
            "run",
            "--model",
            model.to_str().unwrap(),
            "--video",
            dir,
            "--max-tokens",
            "4",
            "--ignore-eos",
            "--json",
        ];
        let tokens = |more: &[&str]| {
            ocelli(&[&args[..], more, &["What happens?"]].concat()).json()["prompt_tokens"].as_u64().unwrap()
        };
        let (all, two) = (tokens(&[]), tokens(&["--max-frames", "2"]));
        assert!(all > two + 8, "{family}: {all} {two}");
        // The same frames in less time: only clocks differ.
        assert!(tokens(&["--fps", "2"]).abs_diff(all) <= 4, "{family}");
        ocelli(&[&args[..], &["--video", "absent"], &["What happens?"]].concat())
            .fails(1, &["--video", "absent"]);
        ocelli(&[&args[..], &["<video>"]].concat()).fails(2, &["<video>"]);
        let empty = Temp::new();
        let args = ["run", "--model", model.to_str().unwrap(), "--video", empty.0.to_str().unwrap(), "x"];
        assert_ne!(ocelli(&args).code, Some(0));
    }
    for model in ["idefics3", "llava"] {
        let model = golden(model);
        let args = ["run", "--model", model.to_str().unwrap(), "--video", dir, "What happens?"];
        ocelli(&args).fails(1, &["video", "takes none"]);
    }
    ocelli(&["run", "--video", dir, "--fps", "0", "x"]).fails(2, &["--fps"]);
    ocelli(&["run", "--video", dir, "--messages", "x.json"]).fails(1, &["x.json"]);
}

#[test]
fn files_need_ffmpeg() {
    let dir = Temp::new();
    let file = dir.write("a.mp4", "no video");
    let args =
        ["run", "--model", golden("smolvlm").to_str().unwrap(), "--video", file.to_str().unwrap(), "x"]
            .map(str::to_owned);
    let done = crate::ended(crate::command(&args).env("PATH", "/nowhere").spawn().unwrap());
    done.fails(1, &["a.mp4", "ffmpeg"]);
    assert!(done.stderr.contains("folder with the frames"), "{done:?}");
}
