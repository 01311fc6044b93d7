//! The record of a benchmark: what `--json` prints and what `bench/record/` keeps.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::machine::{Disturbed, Machine};
use crate::roof::Roofs;

/// The version of [`Record`]'s form.
pub const SCHEMA: &str = "ocelli.bench.kernels.v1";

/// All rows of one run on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: String,
    /// Where it ran.
    pub machine: Machine,
    /// What the machine can do at most, measured in the same run.
    pub roofs: Roofs,
    /// What disturbed the run, as far as the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturbed: Option<Disturbed>,
    /// One row for each kernel and shape.
    pub rows: Vec<Row>,
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// `matmul`, `attention`, ..., or `tower` for a whole vision tower.
    pub op: String,
    /// `cpu`, `wgpu` or `cuda`.
    pub backend: String,
    /// Name of the kernel variant.
    pub variant: String,
    /// Whether selection picks this variant for this spec.
    pub picked: bool,
    /// The spec's fields that differ from their default, and types of the operands.
    pub spec: Map<String, Value>,
    /// Bytes that have to be read and written.
    pub bytes: u64,
    /// Operations that have to be done; a multiply-add is two.
    pub flops: u64,
    /// Half of the runs took no longer, in microseconds.
    pub median_us: f64,
    /// A fifth of the runs took no longer.
    pub p20_us: f64,
    /// Four fifths of the runs took no longer.
    pub p80_us: f64,
    /// The median of runs on the operands of the run before, which lie in caches as far as these hold them; `median_us` is that of runs
    /// on operands that do not. Of rows with so few bytes that there were several sets of operands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_us: Option<f64>,
    /// Which of the roofs bounds this row.
    pub roof: Roof,
    /// What plain reads between the runs, by the same threads, reached at the median, in 1e9 bytes per second; of rows that
    /// memory bounds on a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_gbps: Option<f64>,
    /// The time that the roof allows divided by the median: 1 is the roof. With [`read_gbps`](Self::read_gbps): median over the
    /// runs of the time that the reads just before and after allow, their mean, divided by the run's.
    pub fraction: f64,
}

/// A roof that a row is held against: the name of the field of [`Roofs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Roof {
    /// f32 multiply-adds.
    FmaF32Gflops,
    /// int8 multiply-adds.
    Int8Gops,
    /// bf16 dot products.
    Bf16Gflops,
    /// f16 multiply-adds.
    F16Gflops,
    /// Products of f16 matrices.
    MatrixF16Gflops,
    /// Streaming reads.
    ReadGbps,
}

impl Roof {
    /// Short name for tables.
    pub fn label(self) -> &'static str {
        match self {
            Roof::FmaF32Gflops => "fma f32",
            Roof::Int8Gops => "int8",
            Roof::Bf16Gflops => "bf16",
            Roof::F16Gflops => "fma f16",
            Roof::MatrixF16Gflops => "matrix f16",
            Roof::ReadGbps => "read",
        }
    }

    /// The measured figure for `threads` all or one, in 1e9 per second; `None` where the machine has no such
    /// instruction.
    pub fn of(self, roofs: &Roofs, one_thread: bool) -> Option<f64> {
        let (all, one) = match self {
            Roof::FmaF32Gflops => (Some(roofs.fma_f32_gflops), roofs.fma_f32_gflops_1t),
            Roof::Int8Gops => (Some(roofs.int8_gops), roofs.int8_gops_1t),
            Roof::Bf16Gflops => (roofs.bf16_gflops, roofs.bf16_gflops_1t),
            Roof::F16Gflops => (roofs.f16_gflops, None),
            Roof::MatrixF16Gflops => (roofs.matrix_f16_gflops, None),
            Roof::ReadGbps => (Some(roofs.read_gbps), roofs.read_gbps_1t),
        };
        if one_thread { one.or(all) } else { all }
    }
}

/// The roof that allows the least speed to work of `flops` operations of kind `math` and `bytes` bytes, and the
/// microseconds it allows.
///
/// A missing `math` roof counts as the f32 one.
pub fn bound(roofs: &Roofs, one_thread: bool, math: Roof, flops: u64, bytes: u64) -> (Roof, f64) {
    let always = |roof: Roof, all: f64| roof.of(roofs, one_thread).unwrap_or(all);
    let (math, rate) = match math.of(roofs, one_thread) {
        Some(rate) => (math, rate),
        None => (Roof::FmaF32Gflops, always(Roof::FmaF32Gflops, roofs.fma_f32_gflops)),
    };
    let read = always(Roof::ReadGbps, roofs.read_gbps);
    let compute_us = flops as f64 / rate / 1e3;
    let read_us = bytes as f64 / read / 1e3;
    if compute_us >= read_us { (math, compute_us) } else { (Roof::ReadGbps, read_us) }
}

/// How many times as long as the fastest variant the picked one may take before its choice is called wrong: within this, which is
/// faster depends on the machine's state.
const PICK: f64 = 1.1;

impl Record {
    /// A record without rows.
    pub fn new(machine: Machine, roofs: Roofs) -> Record {
        Record { schema: SCHEMA.to_owned(), machine, roofs, disturbed: None, rows: vec![] }
    }

    /// Reads a record, refusing other schemas and figures that no run can give.
    pub fn parse(text: &str) -> Result<Record, String> {
        let record: Record = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if record.schema != SCHEMA {
            return Err(format!("schema: expected {SCHEMA}, found {}", record.schema));
        }
        for (i, row) in record.rows.iter().enumerate() {
            let ordered = 0.0 < row.p20_us && row.p20_us <= row.median_us && row.median_us <= row.p80_us;
            if !ordered || !row.fraction.is_finite() || row.fraction <= 0.0 {
                return Err(format!(
                    "rows[{i}] ({}): expected 0 < p20 <= median <= p80 and a fraction above 0, found {} {} {} and {}",
                    row.op, row.p20_us, row.median_us, row.p80_us, row.fraction
                ));
            }
        }
        Ok(record)
    }

    /// A table for people: the machine, its roofs, and a line for each row.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let m = &self.machine;
        let _ = match &m.adapter {
            Some(adapter) => writeln!(text, "{}, {}, {}", adapter.name, adapter.api, adapter.driver),
            None => writeln!(text, "{}, {} {}, {} threads", m.cpu, m.isa, m.features.join(" "), m.threads),
        };
        let _ = writeln!(text, "{}", self.roofs_text());
        text.push('\n');
        let rows: Vec<[String; 10]> = self.rows.iter().map(Row::cells).collect();
        let head = ["op", "spec", "variant", "median us", "p20", "p80", "warm", "G/s", "roof", "of roof"]
            .map(str::to_owned);
        let width = |column: usize| {
            rows.iter().chain([&head]).map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for row in [&head].into_iter().chain(&rows) {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let number = (3..8).contains(&i) || i == 9;
                let _ =
                    if number { write!(line, "{cell:>width$}  ") } else { write!(line, "{cell:<width$}  ") };
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

impl Record {
    /// Rows where another variant than the picked one is faster by more than both vary, in words.
    #[must_use]
    pub fn missed_picks(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for picked in self.rows.iter().filter(|row| row.picked) {
            let same =
                |row: &&Row| row.op == picked.op && row.backend == picked.backend && row.spec == picked.spec;
            let others = self.rows.iter().filter(same).filter(|row| !row.picked);
            let best = others.min_by(|a, b| a.median_us.total_cmp(&b.median_us));
            let Some(best) =
                best.filter(|best| best.median_us * PICK < picked.median_us && best.p80_us < picked.p20_us)
            else {
                continue;
            };
            missed.push(format!(
                "{} {}: {} takes {:.1} us, {} is picked and takes {:.1} us",
                picked.op,
                spec_text(&picked.spec),
                best.variant,
                best.median_us,
                picked.variant,
                picked.median_us
            ));
        }
        missed
    }

    /// The roofs in one line.
    pub(crate) fn roofs_text(&self) -> String {
        let each = [
            (Roof::FmaF32Gflops, "GFLOP/s", 0),
            (Roof::Int8Gops, "Gop/s", 0),
            (Roof::Bf16Gflops, "GFLOP/s", 0),
            (Roof::F16Gflops, "GFLOP/s", 0),
            (Roof::MatrixF16Gflops, "GFLOP/s", 0),
            (Roof::ReadGbps, "GB/s", 1),
        ];
        let on_cpu = self.machine.adapter.is_none();
        let figure = |(roof, unit, digits): (Roof, &str, usize)| {
            let all = roof.of(&self.roofs, false)?;
            let one = match roof.of(&self.roofs, true) {
                Some(one) if on_cpu => format!(" ({one:.digits$})"),
                _ => String::new(),
            };
            Some(format!("{} {all:.digits$}{one} {unit}", roof.label()))
        };
        let mut figures: Vec<String> = each.into_iter().filter_map(figure).collect();
        figures.extend(self.roofs.copy_gbps.map(|rate| format!("copy {rate:.1} GB/s")));
        figures.extend(self.roofs.launch_us.map(|us| format!("launch {us:.2} us")));
        format!("roofs{}: {}", if on_cpu { ", all threads (one)" } else { "" }, figures.join(", "))
    }
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let amount = if self.roof == Roof::ReadGbps { self.bytes } else { self.flops };
        let mark = if self.picked { "" } else { " (not picked)" };
        [
            self.op.clone(),
            spec_text(&self.spec),
            format!("{}{mark}", self.variant),
            format!("{:.1}", self.median_us),
            format!("{:.1}", self.p20_us),
            format!("{:.1}", self.p80_us),
            self.warm_us.map(|us| format!("{us:.1}")).unwrap_or_default(),
            format!("{:.1}", amount as f64 / self.median_us / 1e3),
            self.roof.label().to_owned(),
            format!("{:.0}%", 100.0 * self.fraction),
        ]
    }
}

/// The text spelling of a spec's fields: `m=1 n=8192 w=int4g128`.
pub fn spec_text(fields: &Map<String, Value>) -> String {
    let words = fields.iter().map(|(name, value)| match value {
        Value::String(text) => format!("{name}={text}"),
        other => format!("{name}={other}"),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocelli_kernels::cpu::isa::Isa;
    use serde_json::json;

    fn roofs() -> Roofs {
        Roofs {
            fma_f32_gflops: 200.0,
            fma_f32_gflops_1t: Some(100.0),
            int8_gops: 800.0,
            int8_gops_1t: Some(400.0),
            read_gbps: 20.0,
            read_gbps_1t: Some(10.0),
            ..Roofs::default()
        }
    }

    fn record() -> Record {
        let mut record = Record::new(Machine::describe(Isa::SCALAR, 2), roofs());
        record.rows.push(Row {
            op: "matmul".into(),
            backend: "cpu".into(),
            variant: "gemv".into(),
            picked: true,
            spec: json!({"m": 1, "n": 64, "k": 64, "w": "bf16"}).as_object().unwrap().clone(),
            bytes: 8192,
            flops: 8192,
            median_us: 2.0,
            p20_us: 1.0,
            p80_us: 3.0,
            warm_us: Some(1.5),
            roof: Roof::ReadGbps,
            read_gbps: Some(20.5),
            fraction: 0.2,
        });
        record
    }

    #[test]
    fn records_round_trip_and_bad_ones_are_refused() {
        let record = record();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(Record::parse(&text).unwrap(), record);
        assert!(text.contains("\"roof\":\"read_gbps\""));
        assert!(Record::parse(&text.replace("kernels.v1", "kernels.v0")).unwrap_err().contains("schema"));
        assert!(
            Record::parse(&text.replace("\"p20_us\":1.0", "\"p20_us\":9.0")).unwrap_err().contains("p20")
        );
        assert!(Record::parse(&text.replace("\"fraction\":0.2", "\"fraction\":-1.0")).is_err());
        assert!(Record::parse("{}").is_err());
    }

    #[test]
    fn the_tighter_roof_bounds() {
        let roofs = roofs();
        assert_eq!(bound(&roofs, false, Roof::FmaF32Gflops, 2_000_000, 1000), (Roof::FmaF32Gflops, 10.0));
        assert_eq!(bound(&roofs, false, Roof::FmaF32Gflops, 2000, 200_000), (Roof::ReadGbps, 10.0));
        assert_eq!(bound(&roofs, true, Roof::Int8Gops, 4_000_000, 0), (Roof::Int8Gops, 10.0));
        assert_eq!(bound(&roofs, true, Roof::Bf16Gflops, 1_000_000, 0), (Roof::FmaF32Gflops, 10.0));
    }

    #[test]
    fn a_faster_variant_that_is_not_picked_is_told() {
        let mut record = record();
        assert!(record.missed_picks().is_empty());
        let other = |median_us: f64, p80_us: f64| Row {
            picked: false,
            variant: "other".into(),
            median_us,
            p20_us: median_us,
            p80_us,
            ..record.rows[0].clone()
        };
        let (noisy, faster) = (other(0.9, 1.5), other(0.5, 0.6));
        record.rows.push(noisy);
        assert!(record.missed_picks().is_empty(), "within what both vary");
        record.rows.push(faster);
        let missed = record.missed_picks();
        assert!(missed.len() == 1 && missed[0].contains("other takes 0.5 us, gemv is picked"), "{missed:?}");
    }

    #[test]
    fn the_table_has_every_row() {
        let table = record().table();
        assert!(table.contains("m=1 n=64 k=64 w=bf16") && table.contains("20%"), "{table}");
        let (head, row) = (table.lines().nth(3).unwrap(), table.lines().nth(4).unwrap());
        assert_eq!(head.find("spec"), row.find("m=1"));
    }
}
