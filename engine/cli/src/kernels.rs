//! `ocelli kernels`: which variants there are, and which one runs.

use std::fmt::Write;
use std::process::ExitCode;

use ocelli_kernels::cpu::{caps, isa::Isa};
use ocelli_kernels::{Backend, BackendOp, Caps, KernelError, OP_NAMES, OpVisitor, Row, for_each_op, spec};
use serde_json::{Value, json};

use crate::args::{KernelsArgs, KernelsCommand};
use crate::fail::{Failure, Outcome, print, print_json};

/// Runs the command.
pub fn kernels(args: &KernelsArgs) -> Outcome {
    let isa = Isa::detect().map_err(|error| KernelError::Device(error.to_string()))?;
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let caps = caps(isa, threads);
    match &args.command {
        KernelsCommand::List { op, json } => list(op.as_deref(), *json)?,
        KernelsCommand::Why { op, spec, backend, json } => {
            let backend = backend.backend().unwrap_or(Backend::Cpu);
            why(op, &spec.join(" "), backend, &caps, isa, *json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn known(op: &str) -> Result<(), Failure> {
    if OP_NAMES.contains(&op) {
        return Ok(());
    }
    Err(Failure::usage(format!("no op `{op}`")).hint(format!("ops: {}", OP_NAMES.join(", "))))
}

struct List<'a> {
    only: Option<&'a str>,
    ops: Vec<(&'static str, Vec<&'static str>)>,
}

impl OpVisitor for List<'_> {
    fn visit<O: BackendOp>(&mut self) {
        if self.only.is_none_or(|only| only == O::NAME) {
            self.ops.push((O::NAME, O::cpu_variants().iter().map(|row| row.name).collect()));
        }
    }
}

fn list(only: Option<&str>, as_json: bool) -> Result<(), Failure> {
    if let Some(op) = only {
        known(op)?;
    }
    let mut all = List { only, ops: Vec::new() };
    for_each_op(&mut all);
    if as_json {
        let rows: Vec<Value> = all
            .ops
            .iter()
            .flat_map(|(op, rows)| {
                rows.iter().map(move |row| json!({"op": op, "backend": "cpu", "variant": row}))
            })
            .collect();
        return print_json(&json!({ "schema": "ocelli.kernels.list.v1", "rows": rows }));
    }
    let mut text = String::new();
    for (op, rows) in &all.ops {
        let _ = writeln!(text, "{op:<14} cpu  {}", rows.join(", "));
    }
    print(&text)
}

struct Why<'a> {
    op: &'a str,
    text: &'a str,
    backend: Backend,
    caps: &'a Caps,
    found: Option<Result<(String, Vec<Row>), String>>,
}

impl OpVisitor for Why<'_> {
    fn visit<O: BackendOp>(&mut self) {
        if O::NAME == self.op {
            let read = spec::text::read::<O::Spec>(self.text);
            self.found =
                Some(read.map(|spec| (spec::text::write(&spec), O::explain(self.backend, &spec, self.caps))));
        }
    }
}

fn why(op: &str, text: &str, backend: Backend, caps: &Caps, isa: Isa, as_json: bool) -> Result<(), Failure> {
    known(op)?;
    if backend != Backend::Cpu {
        return Err(Failure::new(format!("backend {backend}: not built yet")));
    }
    let mut question = Why { op, text, backend, caps, found: None };
    for_each_op(&mut question);
    let (spec, rows) = match question.found {
        Some(Ok(found)) => found,
        Some(Err(error)) => return Err(Failure::usage(format!("{op}: {error}"))),
        None => return Err(Failure::usage(format!("no op `{op}`"))),
    };
    if as_json {
        return print_json(&json!({
            "schema": "ocelli.kernels.why.v1", "op": op, "spec": spec, "backend": backend, "isa": isa.to_string(),
            "threads": caps.units, "rows": rows,
        }));
    }
    let mut out = format!("{op} {spec}\n{backend}: {} at {isa}, {} threads\n", caps.device, caps.units);
    for row in &rows {
        let mark = if row.picked { "->" } else { "  " };
        let said = match (&row.rejected, row.est_us) {
            (Some(reason), _) => format!("rejected: {reason}"),
            (None, Some(us)) => format!("about {us:.1} us"),
            (None, None) => String::new(),
        };
        let _ = writeln!(out, "{mark} {:<20} {said}", row.variant);
    }
    print(&out)
}
