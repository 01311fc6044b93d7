//! `ocelli kernels`: which variants there are, and which one runs.

use std::fmt::Write;
use std::process::ExitCode;

use ocelli_kernels::{
    Backend, BackendOp, Caps, DeviceOptions, OP_NAMES, OpVisitor, Picks, Row, for_each_op, spec,
};
use serde_json::json;

use crate::args::{KernelsArgs, KernelsCommand};
use crate::fail::{Failure, Outcome, print, print_json};
use crate::{open, tune};

/// Runs the command.
pub fn kernels(args: &KernelsArgs) -> Outcome {
    match &args.command {
        KernelsCommand::List { op, json } => list(op.as_deref(), *json)?,
        KernelsCommand::Why { op, spec, backend, arch, json } => {
            let caps = match arch {
                Some(_) if !cfg!(feature = "cuda") => {
                    return Err(Failure::new(
                        "backend cuda: this binary was built without the `cuda` feature",
                    ));
                }
                Some(arch) => Caps::of_arch(*arch),
                None => capabilities(backend.backend().unwrap_or(Backend::Cpu))?,
            };
            let picks = open::picks()?;
            let picks = if arch.is_some() { picks } else { ocelli_engine::devices::tuned(&caps, picks) };
            why(op, &spec.join(" "), &caps, &picks, *json)?;
        }
        KernelsCommand::Compile(args) => crate::compile::compile(args)?,
        KernelsCommand::Tune(args) => tune::tune(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a kernel would be chosen for: this machine's first device, or for wgpu, where there is none, a device with no more
/// than the limits of WebGPU.
fn capabilities(backend: Backend) -> Result<Caps, Failure> {
    match (backend, ocelli_kernels::open(backend, &DeviceOptions::default())) {
        (_, Ok(device)) => Ok(device.caps().clone()),
        (Backend::Wgpu, Err(_)) if cfg!(feature = "wgpu") => {
            Ok(Caps { backend, device: "any WebGPU device".into(), ..Caps::default() })
        }
        (Backend::Cuda, Err(error)) if cfg!(feature = "cuda") => Err(Failure::from(error)
            .hint("--arch sm_90a (or another architecture) explains the choice for a typical GPU")),
        (_, Err(error)) => Err(error.into()),
    }
}

fn known(op: &str) -> Result<(), Failure> {
    if OP_NAMES.contains(&op) {
        return Ok(());
    }
    Err(Failure::usage(format!("no op `{op}`")).hint(format!("ops: {}", OP_NAMES.join(", "))))
}

/// Names of variants, or why there are none.
type Names = Result<Vec<&'static str>, &'static str>;

struct List<'a> {
    only: Option<&'a str>,
    ops: Vec<(&'static str, Backend, Names)>,
}

impl OpVisitor for List<'_> {
    fn visit<O: BackendOp>(&mut self) {
        if self.only.is_none_or(|only| only == O::NAME) {
            let built =
                Backend::ALL.into_iter().filter(|backend| ocelli_kernels::missing(*backend).is_none());
            self.ops.extend(built.map(|backend| (O::NAME, backend, O::variants(backend))));
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
        let (mut variants, mut absent) = (Vec::new(), Vec::new());
        for (op, backend, rows) in &all.ops {
            match rows {
                Ok(rows) => variants
                    .extend(rows.iter().map(|row| json!({"op": op, "backend": backend, "variant": row}))),
                Err(why) => absent.push(json!({"op": op, "backend": backend, "reason": why})),
            }
        }
        return print_json(
            &json!({ "schema": "ocelli.kernels.list.v1", "rows": variants, "absent": absent }),
        );
    }
    let mut text = String::new();
    for (op, backend, rows) in &all.ops {
        let said = rows.as_ref().map_or_else(|why| format!("none: {why}"), |rows| rows.join(", "));
        let _ = writeln!(text, "{op:<14} {backend:<5} {said}");
    }
    print(&text)
}

struct Why<'a> {
    op: &'a str,
    text: &'a str,
    caps: &'a Caps,
    picks: &'a Picks,
    found: Option<Result<Found, String>>,
}

struct Found {
    spec: String,
    rows: Vec<Row>,
    /// Why there are none, if so.
    absent: Option<&'static str>,
    /// Whether another variant than the estimates' runs.
    preferred: bool,
}

impl OpVisitor for Why<'_> {
    fn visit<O: BackendOp>(&mut self) {
        if O::NAME == self.op {
            let read = spec::text::read::<O::Spec>(self.text);
            self.found = Some(read.map(|spec| {
                let (mut rows, absent) = match O::explain(&spec, self.caps) {
                    Ok(rows) => (rows, None),
                    Err(why) => (Vec::new(), Some(why)),
                };
                let preferred = self.picks.mark(O::NAME, &spec, &mut rows);
                Found { spec: spec::text::write(&spec), rows, absent, preferred }
            }));
        }
    }
}

fn why(op: &str, text: &str, caps: &Caps, picks: &Picks, as_json: bool) -> Result<(), Failure> {
    known(op)?;
    let mut question = Why { op, text, caps, picks, found: None };
    for_each_op(&mut question);
    let Found { spec, rows, absent, preferred } = match question.found {
        Some(Ok(found)) => found,
        Some(Err(error)) => return Err(Failure::usage(format!("{op}: {error}"))),
        None => return Err(Failure::usage(format!("no op `{op}`"))),
    };
    let backend = caps.backend;
    if as_json {
        let mut answer = json!({
            "schema": "ocelli.kernels.why.v1", "op": op, "spec": spec, "backend": backend, "device": caps.device,
            "preferred": preferred, "rows": rows,
        });
        if let Some(why) = absent {
            answer["absent"] = why.into();
        }
        match backend {
            Backend::Cpu => {
                answer["isa"] = caps.isa.name().into();
                answer["threads"] = caps.units.into();
            }
            Backend::Wgpu => answer["wgpu"] = serde_json::to_value(caps.wgpu)?,
            Backend::Cuda => answer["cuda"] = serde_json::to_value(caps.cuda)?,
        }
        return print_json(&answer);
    }
    let at = match backend {
        Backend::Cpu => format!(" at {}, {} threads", isa_text(caps), caps.units),
        Backend::Cuda => format!(", {}, {} multiprocessors", caps.cuda.arch, caps.units),
        Backend::Wgpu => String::new(),
    };
    let mut out = format!("{op} {spec}\n{backend}: {}{at}\n", caps.device);
    for row in &rows {
        let mark = if row.picked { "->" } else { "  " };
        let said = match (&row.rejected, row.est_us) {
            (Some(reason), _) => format!("rejected: {reason}"),
            (None, Some(us)) => format!("about {us:.1} us"),
            (None, None) => String::new(),
        };
        let _ = writeln!(out, "{mark} {:<20} {said}", row.variant);
    }
    if let Some(why) = absent {
        let _ = writeln!(out, "   no kernels: {why}");
    }
    if preferred {
        out.push_str("the choice is a measured or a forced one, not that of the estimates\n");
    }
    print(&out)
}

/// The instruction set with its extensions.
fn isa_text(caps: &Caps) -> String {
    let mut text = caps.isa.name().to_owned();
    if caps.int8_dot {
        text.push_str(" vnni");
    }
    if caps.bf16_dot {
        text.push_str(" bf16");
    }
    if caps.amx {
        text.push_str(" amx");
    }
    text
}
