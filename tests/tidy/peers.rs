//! Tables of the README beside other programs, made from the records in `bench/record`.

use ocelli_tests::{holds_table, root};
use serde_json::{Map, Value};

/// The lines of a record.
fn lines(name: &str) -> Vec<Value> {
    let path = root().join("bench/record").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let line = |(i, line): (usize, &str)| {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: line {}: {error}", i + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// The classes of all lines of a record: stages that were measured in runs of their own lie in lines of their own.
fn stages(name: &str) -> Value {
    let mut all = Map::new();
    for line in lines(name) {
        for (class, of) in line["classes"].as_object().into_iter().flatten() {
            let rows = all.entry(class.clone()).or_insert_with(|| Value::Object(Map::new()));
            for (stage, row) in of.as_object().into_iter().flatten() {
                rows[stage] = row.clone();
            }
        }
    }
    serde_json::json!({ "classes": all })
}

fn number(value: &Value, path: &[&str]) -> f64 {
    let found = path.iter().fold(value, |value, name| &value[*name]);
    found.as_f64().unwrap_or_else(|| panic!("{}: expected a number, found {found}", path.join(": ")))
}

/// A table of these columns, with a row of cells for each of `rows`.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&head.map(str::to_owned)) + &line(&["---"; N].map(str::to_owned));
    rows.into_iter().for_each(|row| text += &line(&row));
    text
}

/// One `ocelli batch` of many pictures beside one picture at a time and llama.cpp's server; the records have a line for each run.
#[test]
fn batches() {
    let runs = [
        ("Xeon with AMX", "xeon-amx-2-threads/2026-12-01-batch.jsonl", 0, "one tile"),
        ("Xeon with AMX", "xeon-amx-2-threads/2026-12-01-batch.jsonl", 1, "one tile"),
        ("Xeon with AMX", "xeon-amx-2-threads/2026-12-01-batch.jsonl", 2, "5 tiles"),
        ("the same before AMX was used", "xeon-amx-2-threads/2026-12-01-batch.jsonl", 3, "5 tiles"),
        ("Xeon", "xeon-avx512-2-threads/2026-11-29-batch.jsonl", 0, "one tile"),
    ];
    let rows = runs.map(|(machine, name, line, tiles)| {
        let run = &lines(name)[line];
        let rounds = run["rounds"].as_array().expect("rounds");
        let speed = |of: &str| {
            let mut all: Vec<f64> =
                rounds.iter().filter_map(|round| round[of]["pictures_per_s"].as_f64()).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).map_or_else(|| "-".to_owned(), |speed| format!("{speed:.2}"))
        };
        let times = |of: &str| run["ratios"][of].as_f64().map(|ratio| format!("{ratio:.2}"));
        let alone = times("alone").unwrap_or_else(|| format!("{:.2}", number(run, &["ratio"])));
        let dtype = run["options"].as_str().filter(|options| !options.is_empty());
        [
            format!(
                "{machine}, {}",
                dtype.map_or_else(|| "f32".to_owned(), |options| format!("`{options}`"))
            ),
            tiles.to_owned(),
            speed("together"),
            speed("alone"),
            speed("llama-server"),
            alone,
            times("llama-server").unwrap_or_else(|| "-".to_owned()),
            rounds.len().to_string(),
        ]
    });
    let head = [
        "machine, arithmetic",
        "a picture",
        "at once",
        "one at a time",
        "llama.cpp's server",
        "times one at a time",
        "times the server",
        "rounds",
    ];
    let table = table(head, rows);
    holds_table("README.md", "<!-- batches, made by the tests -->", "<!-- end of batches -->", &table);
}

/// The table of a record of prompts and answers, each beside the best of the peers: llama.cpp unless it says otherwise.
fn prompts_and_answers(record: &Value) -> String {
    let classes = [
        ("bf16", ["ocelli f32", "ocelli bf16"], "bf16, f32 arithmetic / `--dtype bf16`, against BF16"),
        (
            "int8",
            ["ocelli exact", "ocelli int8"],
            "int8 in groups of 32, exact / `--fast-int8`, against Q8_0",
        ),
        (
            "int4",
            ["ocelli exact", "ocelli int8"],
            "int4 in groups of 32, exact / `--fast-int8`, against Q4_0",
        ),
    ];
    let stages = ["prefill 512", "decode, depth 128", "decode, depth 1024"];
    let rows = classes.map(|(class, ours, title)| {
        let cell = |stage: &str| {
            let row = &record["classes"][class][stage];
            let of = |kind: &str, who: &str| number(row, &[kind, who]);
            let [ratio, speed] = [("ratio", 2), ("median", 0)]
                .map(|(kind, digits)| ours.map(|who| format!("{:.digits$}", of(kind, who))).join(" / "));
            let peer = row["best_peer"].as_str().unwrap_or("llama.cpp");
            let name = if peer == "llama.cpp" { String::new() } else { format!(" of {peer}") };
            format!("{ratio} ({speed} against {:.0}{name})", of("median", peer))
        };
        let [a, b, c] = stages.map(cell);
        [title.to_owned(), a, b, c]
    });
    table(["weights", "prompt of 512", "answer at depth 128", "answer at depth 1024"], rows)
}

#[test]
fn prompts_and_answers_of_an_epyc() {
    let table = prompts_and_answers(&stages("epyc-zen4-2-threads/2026-11-28-peers.jsonl"));
    holds_table(
        "README.md",
        "<!-- prompts and answers, made by the tests -->",
        "<!-- end of answers -->",
        &table,
    );
}

#[test]
fn prompts_and_answers_of_a_xeon() {
    let table = prompts_and_answers(&stages("xeon-amx-2-threads/2026-12-01-peers.jsonl"));
    let begin = "<!-- prompts and answers of the Xeon, made by the tests -->";
    holds_table("README.md", begin, "<!-- end of the Xeon's answers -->", &table);
}

/// The tower beside OpenVINO and transformers, where they were measured.
#[test]
fn towers() {
    let records = ["epyc-zen4-2-threads/2026-11-29-tower.jsonl", "xeon-amx-2-threads/2026-12-01-peers.jsonl"]
        .map(stages);
    let rows = [
        ("bf16", "f32", "f32", "f32"),
        ("bf16", "bf16", "bf16", "bf16"),
        (
            "int8",
            "int8 (`--fast-int8 --dtype bf16` on groups of 32; OpenVINO with NNCF)",
            "int8 bf16",
            "int8",
        ),
    ]
    .map(|(class, title, ours, theirs)| {
        let [epyc, xeon] = [0, 1].map(|i: usize| {
            let medians = &records[i]["classes"][class]["tower, one tile"]["median"];
            let speed = |who: String| {
                medians[&who].as_f64().map_or_else(|| "-".to_owned(), |speed| format!("{speed:.2}"))
            };
            ["ocelli", "OpenVINO", "transformers"]
                .map(|who| speed(format!("{who} {}", if who == "ocelli" { ours } else { theirs })))
        });
        [title.to_owned(), epyc.join(" / "), xeon.join(" / ")]
    });
    let head = ["arithmetic", "EPYC: Ocelli / OpenVINO / transformers", "Xeon with AMX: the same"];
    let table = table(head, rows);
    holds_table("README.md", "<!-- towers, made by the tests -->", "<!-- end of towers -->", &table);
}

/// Pictures decoded beside Pillow.
#[test]
fn pictures() {
    let record = &lines("xeon-avx512-2-threads/2026-11-29-pictures.jsonl")[0];
    let names = [
        ("jpeg", "JPEG, quality 90, chroma halved"),
        ("progressive jpeg", "the same, progressive"),
        ("jpeg, whole chroma", "JPEG, quality 90, whole chroma"),
        ("webp", "WebP, quality 90"),
        ("png", "PNG"),
    ];
    let all = record["rows"].as_array().expect("rows");
    assert_eq!(all.len(), names.len(), "the record has other pictures");
    let rows = names.map(|(name, title)| {
        let row =
            all.iter().find(|row| row["picture"] == name).unwrap_or_else(|| panic!("no picture {name}"));
        let ms = |of: &str| format!("{:.0} ms", number(row, &[of]));
        [title.to_owned(), ms("ocelli_ms"), ms("pillow_ms"), format!("{:.2}", number(row, &["time_ratio"]))]
    });
    let table = table(["file", "Ocelli", "Pillow", "time ratio"], rows);
    holds_table("README.md", "<!-- pictures, made by the tests -->", "<!-- end of pictures -->", &table);
}

/// From the start of a server to its first token, beside llama.cpp's.
#[test]
fn cold_starts() {
    let record = lines("xeon-amx-2-threads/2026-12-01-cold.jsonl").swap_remove(0);
    let titles = [
        ("text", "a text"),
        ("picture", "a picture of 5 tiles"),
        ("picture, files dropped", "the same, no file in memory"),
    ];
    let rows = titles.map(|(asked, title)| {
        let found = record["rows"].as_array().and_then(|rows| rows.iter().find(|row| row["asked"] == asked));
        let row = found.unwrap_or_else(|| panic!("no row {asked}"));
        let cell = |field: &str, scale: f64, digits: usize| {
            let of = |who: &str| {
                let rounds = row["rounds"].as_array().map_or(&[][..], Vec::as_slice);
                let mut all: Vec<f64> = rounds.iter().map(|round| number(&round[who], &[field])).collect();
                all.sort_by(f64::total_cmp);
                format!("{:.digits$}", all[all.len() / 2] / scale)
            };
            let ratio = |who: &str| format!("{:.2}", number(&row["ratios"][field], &[who]));
            let ours = ["ocelli", "ocelli bf16"];
            format!(
                "{} against {} ({})",
                ours.map(of).join(" / "),
                of("llama-server"),
                ours.map(ratio).join(" / ")
            )
        };
        [title.to_owned(), cell("first_token_ms", 1.0, 0), cell("peak_bytes", 1e6, 0)]
    });
    let table = table(["asked about", "ms to the first token", "peak memory, MB"], rows);
    holds_table(
        "README.md",
        "<!-- cold starts, made by the tests -->",
        "<!-- end of cold starts -->",
        &table,
    );
}
