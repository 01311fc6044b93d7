//! Two records of one benchmark: what became slower or faster by more than they vary.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use crate::model::Quantiles;
use crate::record::{Record, spec_text};
use crate::{compare, record};

/// Version of the report's layout.
pub const SCHEMA: &str = "ocelli.bench.diff.v1";

/// The layout of `ocelli bench model --json`.
pub const MODEL_SCHEMA: &str = "ocelli.bench.model.v1";

/// A figure of a record.
#[derive(Clone, Debug, PartialEq)]
struct Figure {
    name: String,
    /// Whether larger is better.
    rate: bool,
    values: Quantiles,
    /// What plain reads beside it reached, of rows that memory bounds: the machine's own state.
    reads: Option<f64>,
}

/// How a figure changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What was measured.
    pub name: String,
    /// Before.
    pub before: Quantiles,
    /// After.
    pub after: Quantiles,
    /// How many times as fast it is.
    pub speed: f64,
    /// The verdict.
    pub verdict: Verdict,
}

/// What a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Slower by more than noise.
    Slower,
    /// Faster by more than noise.
    Faster,
    /// Within noise.
    Same,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Diff {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Figures that both records have.
    pub changes: Vec<Change>,
    /// Figures of one record alone.
    pub only_before: Vec<String>,
    /// Figures of the other alone.
    pub only_after: Vec<String>,
    /// What makes the records hard to compare: other machines.
    pub notes: Vec<String>,
}

/// Compares two records of one kind, `ocelli bench kernels --json`, `ocelli bench model --json` or `ocelli compare --json`. A change counts
/// if it is larger than `least`, a share, and the spreads from the 20th to the 80th percentile do not meet. Times of rows that memory
/// bounds are held against the reads beside them.
///
/// # Errors
/// If a record is none, or they are of different kinds.
pub fn diff(before: (&str, &str), after: (&str, &str), least: f64) -> Result<Diff, String> {
    let read = |(name, text): (&str, &str)| figures(text).map_err(|error| format!("{name}: {error}"));
    let ((old, of_old), (new, of_new)) = (read(before)?, read(after)?);
    if old.0 != new.0 {
        return Err(format!("{}: expected {}, found {}", after.0, old.0, new.0));
    }
    let mut notes = Vec::new();
    if old.1 != new.1 {
        notes.push(format!("other machines: {} and {}", old.1, new.1));
    }
    let find = |figures: &[Figure], name: &str| figures.iter().find(|figure| figure.name == name).cloned();
    let mut changes = Vec::new();
    for figure in &of_old {
        let Some(now) = find(&of_new, &figure.name) else { continue };
        changes.push(change(figure, &now, least));
    }
    let missing = |from: &[Figure], in_: &[Figure]| {
        from.iter().filter(|figure| find(in_, &figure.name).is_none()).map(|f| f.name.clone()).collect()
    };
    let (only_before, only_after) = (missing(&of_old, &of_new), missing(&of_new, &of_old));
    Ok(Diff { schema: SCHEMA, changes, only_before, only_after, notes })
}

fn change(old: &Figure, new: &Figure, least: f64) -> Change {
    // A machine that reads at half its speed says nothing about a kernel.
    let state = match (old.reads, new.reads) {
        (Some(old), Some(new)) if old > 0.0 && new > 0.0 => new / old,
        _ => 1.0,
    };
    let scaled =
        |q: Quantiles| Quantiles { median: q.median * state, p20: q.p20 * state, p80: q.p80 * state };
    let (a, b) = (old.values, scaled(new.values));
    let ratio = if old.rate { b.median / a.median } else { a.median / b.median };
    let speed = if ratio.is_finite() { ratio } else { 1.0 };
    let apart = a.p80 < b.p20 || b.p80 < a.p20;
    let verdict = match speed {
        _ if !apart => Verdict::Same,
        speed if speed < 1.0 - least => Verdict::Slower,
        speed if speed > 1.0 / (1.0 - least) => Verdict::Faster,
        _ => Verdict::Same,
    };
    Change { name: old.name.clone(), before: old.values, after: new.values, speed, verdict }
}

/// The kind and machine of a record, and its figures.
type Read = ((String, String), Vec<Figure>);

fn figures(text: &str) -> Result<Read, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let schema = value["schema"].as_str().unwrap_or("no schema").to_owned();
    let text_of = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    let machine = match &*schema {
        record::SCHEMA => {
            let record = Record::parse(text)?;
            for row in record.rows.iter().filter(|row| row.picked) {
                let name = format!("{} {} {}", row.backend, row.op, spec_text(&row.spec));
                let values = Quantiles { median: row.median_us, p20: row.p20_us, p80: row.p80_us };
                all.push(Figure { name, rate: false, values, reads: row.read_gbps });
            }
            format!("{} with {} threads", record.machine.cpu, record.machine.threads)
        }
        MODEL_SCHEMA => {
            quantiles(&value, "", &mut all);
            format!("{} {}, {} threads", text_of("backend"), text_of("device"), value["threads"])
        }
        compare::SCHEMA => {
            let report: compare::Report = serde_json::from_value(value).map_err(|error| error.to_string())?;
            for run in &report.candidates {
                let speed = serde_json::to_value(run.speed).map_err(|error| error.to_string())?;
                quantiles(&speed, &format!("{}: ", run.name), &mut all);
            }
            report.candidates.first().map(|run| run.device.clone()).unwrap_or_default()
        }
        other => {
            let known = [record::SCHEMA, MODEL_SCHEMA, compare::SCHEMA].join(", ");
            return Err(format!("schema: expected one of {known}, found {other}"));
        }
    };
    Ok(((schema, machine), all))
}

/// The fields of an object that are medians with a spread.
fn quantiles(value: &Value, prefix: &str, all: &mut Vec<Figure>) {
    for (key, field) in value.as_object().into_iter().flatten() {
        let Ok(values) = serde_json::from_value::<Quantiles>(field.clone()) else { continue };
        // What was not there took no time.
        if values.median > 0.0 && !key.ends_with("share") {
            let rate = key.ends_with("per_s");
            all.push(Figure { name: format!("{prefix}{key}"), rate, values, reads: None });
        }
    }
}

impl Diff {
    /// Whether anything became slower.
    #[must_use]
    pub fn is_slower(&self) -> bool {
        self.changes.iter().any(|change| change.verdict == Verdict::Slower)
    }

    /// The changes beyond noise, the worst first, and how many there are of each kind.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        let mut told: Vec<&Change> =
            self.changes.iter().filter(|change| change.verdict != Verdict::Same).collect();
        told.sort_by(|a, b| a.speed.total_cmp(&b.speed));
        for change in &told {
            let word = if change.verdict == Verdict::Slower { "slower" } else { "faster" };
            let _ = writeln!(
                text,
                "{word}  {:>5.2} x  {:>12.1} -> {:>12.1}  {}",
                change.speed, change.before.median, change.after.median, change.name
            );
        }
        let count = |verdict| self.changes.iter().filter(|change| change.verdict == verdict).count();
        let _ = writeln!(
            text,
            "{} slower, {} faster, {} within noise; {} only before, {} only after",
            count(Verdict::Slower),
            count(Verdict::Faster),
            count(Verdict::Same),
            self.only_before.len(),
            self.only_after.len()
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(decode: [f64; 3], encode: [f64; 3]) -> String {
        let q = |[p20, median, p80]: [f64; 3]| format!(r#"{{"median":{median},"p20":{p20},"p80":{p80}}}"#);
        format!(
            r#"{{"schema":"{MODEL_SCHEMA}","backend":"cpu","device":"d","threads":2,"decode_tokens_per_s":{},"encode_ms":{}}}"#,
            q(decode),
            q(encode)
        )
    }

    #[test]
    fn only_changes_beyond_noise_count() {
        let before = model([95.0, 100.0, 105.0], [9.9, 10.0, 10.1]);
        let verdicts = |after: &str| {
            let diff = diff(("a", &before), ("b", after), 0.05).expect("a diff");
            diff.changes.iter().map(|change| (change.name.clone(), change.verdict)).collect::<Vec<_>>()
        };
        let of = |decode, encode| {
            vec![("decode_tokens_per_s".to_owned(), decode), ("encode_ms".to_owned(), encode)]
        };
        use Verdict::{Faster, Same, Slower};
        assert_eq!(verdicts(&before), of(Same, Same));
        assert_eq!(verdicts(&model([60.0, 80.0, 99.0], [12.0, 12.5, 13.0])), of(Same, Slower));
        assert_eq!(verdicts(&model([120.0, 125.0, 130.0], [8.0, 8.5, 9.0])), of(Faster, Faster));
        // Apart, and yet small.
        assert_eq!(verdicts(&model([95.0, 100.0, 105.0], [10.2, 10.3, 10.4])), of(Same, Same));
    }

    #[test]
    fn other_kinds_and_broken_files_are_refused_by_name() {
        let model = model([1.0; 3], [1.0; 3]);
        let error = |text: &str| diff(("a.json", &model), ("b.json", text), 0.05).expect_err("an error");
        assert!(error("{").starts_with("b.json: "));
        assert!(error(r#"{"schema":"x"}"#).contains("found x"));
        let compared = format!(
            r#"{{"schema":"{}","model":"m","requests":[],"tokens":1,"runs":1,"pass":true,"candidates":[]}}"#,
            compare::SCHEMA
        );
        assert!(error(&compared).contains("expected ocelli.bench.model.v1, found ocelli.compare.v1"));
    }

    #[test]
    fn a_machine_that_reads_slower_is_no_slower_kernel() {
        let figure = |us: f64, reads: f64| Figure {
            name: "matmul".into(),
            rate: false,
            values: Quantiles { median: us, p20: us * 0.99, p80: us * 1.01 },
            reads: Some(reads),
        };
        let verdict = |us, reads| change(&figure(10.0, 30.0), &figure(us, reads), 0.05).verdict;
        assert_eq!(verdict(20.0, 15.0), Verdict::Same);
        assert_eq!(verdict(20.0, 30.0), Verdict::Slower);
        assert_eq!(verdict(10.0, 15.0), Verdict::Faster);
    }
}
