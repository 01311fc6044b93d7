//! `ocelli kernels tune`: the fastest variants on this device, kept for other commands.

use std::collections::HashSet;
use std::fmt::Write;
use std::time::Duration;

use ocelli_bench::kernels::{self, BenchError, Cx};
use ocelli_bench::plan::{Plan, Wanted};
use ocelli_bench::shapes::{Set, Shape};
use ocelli_bench::tune;
use ocelli_engine::choices::{Choice, Loaded, Table, cache_dir};
use ocelli_engine::weights::Checkpoint;
use ocelli_engine::{Ctx, Error, Precision};
use ocelli_kernels::{Caps, DeviceOptions};
use ocelli_models::Leftovers;
use serde_json::{Value, json};

use crate::args::TuneArgs;
use crate::bench::failure;
use crate::fail::{Failure, print, print_json};
use crate::open;
use crate::progress::Spinner;

/// Tokens of text in the requests that a model is planned with: the sizes of ops depend on them.
const PROMPTS: [usize; 3] = [32, 512, 2048];

/// Runs the command.
pub fn tune(args: &TuneArgs) -> Result<(), Failure> {
    let cache = cache_dir().ok_or_else(|| {
        Failure::new("there is no directory for caches").hint("set OCELLI_CACHE to a directory to write to")
    })?;
    let threads = args.device.threads.map(usize::from);
    let options = DeviceOptions { index: args.device.device, threads, ..DeviceOptions::default() };
    let backend = open::backend(args.device.backend, &options)?;
    let embedded = match kernels::shapes(backend, args.only.as_deref(), Set::Usual) {
        // The model may have what is asked for.
        Err(BenchError::Nothing(_)) if args.model.is_some() => vec![],
        shapes => shapes.map_err(failure)?,
    };
    let mut cx = Cx::open(backend, &options).map_err(failure)?;
    let caps = cx.target().caps().clone();
    let mut shapes = match &args.model {
        Some(model) => {
            model_shapes(model, &PROMPTS, &caps, args.device.precision(&caps), args.only.as_deref())?
        }
        None => vec![],
    };
    shapes.extend(embedded);
    if shapes.is_empty() {
        return Err(failure(BenchError::Nothing(args.only.clone().unwrap_or_default())));
    }
    let mut seen = HashSet::new();
    shapes.retain(|shape| seen.insert((shape.op.clone(), shape.spec.clone())));

    let path = Table::path(&cache, &caps);
    let mut table = match Table::load(&path, &caps) {
        Loaded::Fits(table) => table,
        _ => Table::new(&caps),
    };
    let spinner = Spinner::new("measuring roofs");
    let found = tune::tune(&mut cx, &shapes, Duration::from_secs(args.limit), &mut |shape| {
        spinner.say(&format!("{} {}", shape.op, shape.spec));
    })
    .map_err(failure)?;
    drop(spinner);
    table.merge(&found.choices);
    table.save(&path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    for note in &found.notes {
        tracing::warn!("left out: {note}");
    }
    if args.json {
        let rows: Vec<Value> = found.choices.iter().map(row).collect();
        return print_json(&json!({
            "schema": "ocelli.kernels.tune.v1", "device": table.device, "path": path, "rows": rows,
            "left_out": found.notes, "kept": table.rows.len(),
        }));
    }
    print(&text(&found.choices, &caps, &path.display().to_string()))
}

fn row(choice: &Choice) -> Value {
    json!({
        "op": choice.op, "spec": choice.spec, "variant": choice.variant, "us": choice.us,
        "estimated": choice.estimated, "estimated_us": choice.estimated_us, "candidates": choice.candidates,
        "gain": choice.gain(),
    })
}

fn text(choices: &[Choice], caps: &Caps, path: &str) -> String {
    let mut text = format!("{}: {}\n", caps.backend, caps.device);
    let widest = |cell: fn(&Choice) -> usize| choices.iter().map(cell).max().unwrap_or(0);
    let (ops, specs) = (widest(|c| c.op.len()), widest(|c| c.spec.len()));
    let variants = widest(|c| c.variant.len());
    for choice in choices {
        let Choice { op, spec, variant, us, estimated, .. } = choice;
        let _ = write!(text, "{op:<ops$}  {spec:<specs$}  {variant:<variants$} {us:>10.1} us");
        let _ = match estimated == variant {
            true => writeln!(text),
            false => writeln!(text, "  {:.2} x as fast as {estimated}", choice.gain()),
        };
    }
    let changed = choices.iter().filter(|choice| choice.variant != choice.estimated).count();
    let _ =
        writeln!(text, "{changed} of {} choices differ from the estimates'; kept in {path}", choices.len());
    text
}

/// The ops that requests to a model run, found without its weights.
pub fn model_shapes(
    model: &str,
    prompts: &[usize],
    caps: &Caps,
    precision: Precision,
    only: Option<&str>,
) -> Result<Vec<Shape>, Failure> {
    let files = open::files(Some(model))?;
    let checkpoint = Checkpoint::open(&files).map_err(Error::from)?.planned();
    let mut shapes = vec![];
    for &prompt_tokens in prompts {
        let (mut cx, log) = Ctx::dry(caps.clone(), precision);
        let loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Ignore)?;
        let wanted = Wanted { images: vec![(512, 512)], prompt_tokens, max_tokens: 64 };
        let plan = match Plan::make(&wanted, &files, loaded, &mut cx, &log, 0) {
            Ok(plan) => plan,
            // Longer prompts than the model takes.
            Err(_) if !shapes.is_empty() => break,
            Err(error) => return Err(error.into()),
        };
        let steps = plan.phases.into_iter().flat_map(|phase| phase.steps);
        shapes.extend(steps.map(|step| Shape { what: step.module, op: step.op.to_owned(), spec: step.spec }));
    }
    if let Some(only) = only {
        shapes.retain(|shape| [&shape.op, &shape.what, &shape.spec].iter().any(|text| text.contains(only)));
    }
    Ok(shapes)
}
