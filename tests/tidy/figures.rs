//! Figures of the README, made from the records in `bench/record`.

use std::collections::BTreeMap;
use std::fmt::Write;

use ocelli_bench::record::{Record, Row};
use ocelli_tests::{holds_table, root};

/// Records of products in the formats of published checkpoints, with the name of the machine.
const PUBLISHED: [(&str, &str); 2] = [
    ("Xeon", "xeon-amx-2-threads/2026-11-29-published.json"),
    ("EPYC", "epyc-zen4-2-threads/2026-11-30-published.json"),
];

fn record(name: &str) -> Record {
    let path = root().join("bench/record").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    Record::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn number(row: &Row, field: &str) -> u64 {
    row.spec.get(field).and_then(serde_json::Value::as_u64).unwrap_or(0)
}

fn format(row: &Row) -> &str {
    row.spec.get("w").and_then(|w| w.as_str()).unwrap_or_default()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What a machine reaches in a format: shares of the reads beside at the shapes of a decoder, at a square one out of cache, and of the
/// speed of f32 weights with 256 rows.
fn reached(record: &Record, of: &str) -> [Option<f64>; 3] {
    let products = || record.rows.iter().filter(|row| row.op == "matmul" && row.picked);
    let rows = |m: u64| products().filter(move |row| format(row) == of && number(row, "m") == m);
    let square = |row: &Row| number(row, "n") == number(row, "k") && number(row, "n") > 8192;
    let speed = |row: &Row| row.flops as f64 / row.median_us;
    let against = |row: &Row| {
        let sizes = |row: &Row| (number(row, "m"), number(row, "n"), number(row, "k"));
        let f32 = products().find(|other| format(other) == "f32" && sizes(other) == sizes(row))?;
        Some(speed(row) / speed(f32))
    };
    [
        median(rows(1).filter(|row| !square(row)).map(|row| row.fraction).collect()),
        median(rows(1).filter(|row| square(row)).map(|row| row.fraction).collect()),
        median(rows(256).filter_map(against).collect()),
    ]
}

#[test]
fn products_of_published_formats() {
    let records = PUBLISHED.map(|(machine, name)| (machine, record(name)));
    let mut order: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, row) in records[1].1.rows.iter().enumerate().filter(|(_, row)| row.op == "matmul") {
        order.entry(format(row)).or_insert(number);
    }
    let mut formats: Vec<(&str, usize)> = order.into_iter().collect();
    formats.sort_by_key(|(_, number)| *number);

    let mut table = String::from("| weights |");
    for (machine, _) in &records {
        let _ = write!(table, " {machine}: one row, of reads | out of cache | 256 rows, of f32 |");
    }
    table += "\n| --- |";
    table += &" --- | --- | --- |".repeat(records.len());
    table.push('\n');
    for (of, _) in formats.into_iter().filter(|(of, _)| *of != "f32") {
        let _ = write!(table, "| `{of}` |");
        for (_, record) in &records {
            for share in reached(record, of) {
                let cell = share.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", 100.0 * share));
                let _ = write!(table, " {cell} |");
            }
        }
        table.push('\n');
    }
    assert!(table.lines().count() > 8, "{table}");
    holds_table(
        "README.md",
        "<!-- products of published formats, made by the tests -->",
        "<!-- end of products -->",
        &table,
    );
}

/// The record of copies of the demo model, by `the_demo_model_drifts_less` of the golden tests.
const CALIBRATED: &str = "xeon-amx-2-threads/2026-12-01-calibrated.jsonl";

/// Copies of the demo model: what they are off by, and what they get right.
#[test]
fn calibrated_copies() {
    let path = root().join("bench/record").join(CALIBRATED);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{CALIBRATED}: {error}"));
    let mut table = String::from(
        "| | outputs off by | nats | likeliest alike | right of 1756 |\n| --- | --- | --- | --- | --- |\n",
    );
    for (number, line) in text.lines().enumerate() {
        let row: serde_json::Value = serde_json::from_str(line)
            .unwrap_or_else(|error| panic!("{CALIBRATED}: line {}: {error}", number + 1));
        let figure = |field: &str| {
            row[field].as_f64().unwrap_or_else(|| panic!("{CALIBRATED}: line {}: {field}", number + 1))
        };
        assert_eq!(
            (&row["schema"], figure("rows")),
            (&"ocelli.calibrated.v1".into(), 1756.0),
            "{CALIBRATED}"
        );
        let nats = match figure("kl") {
            few if few < 5e-6 => "below 0.00001".to_owned(),
            nats => format!("{nats:.5}"),
        };
        let _ = writeln!(
            table,
            "| `{}` | {:.2}% | {nats} | {:.2}% | {:.2}% |",
            row["options"].as_str().unwrap_or_default(),
            100.0 * figure("output_error"),
            100.0 * figure("top1"),
            100.0 * figure("right") / figure("rows"),
        );
    }
    assert!(table.lines().count() > 20, "{table}");
    holds_table(
        "README.md",
        "<!-- calibrated copies, made by the tests -->",
        "<!-- end of copies -->",
        &table,
    );
}
