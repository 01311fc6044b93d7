//! `ocelli bench`: figures of this machine.

mod cold;

use std::collections::HashSet;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ocelli_bench::kernels::{self, BenchError, Cx};
use ocelli_bench::machine::Disturbed;
use ocelli_bench::model::{Asked, ModelReport, Options, Quantiles, measure};
use ocelli_bench::shapes::{Set, Shape, Shapes};
use ocelli_engine::devices::usual_dtype;
use ocelli_engine::image::{DecodeOptions, Rgb8Image, decode_bytes, decode_file};
use ocelli_engine::{OpTime, Precision};
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::{Backend, DeviceOptions};
use serde::Serialize;

use crate::args::{
    BenchArgs, BenchCommand, BenchDiffArgs, BenchKernelsArgs, BenchModelArgs, BenchPicturesArgs,
};
use crate::compare::{writable, write_page};
use crate::fail::{FAILED, Failure, Outcome, note, print, print_json};
use crate::open;
use crate::progress::Spinner;
use crate::run::peak_memory;
use crate::tune::model_shapes;
use crate::units::bytes;

/// Runs the command.
pub fn bench(args: &BenchArgs) -> Outcome {
    match &args.command {
        BenchCommand::Model(args) => model(args),
        BenchCommand::Kernels(args) => bench_kernels(args),
        BenchCommand::Pictures(args) => pictures(args),
        BenchCommand::Diff(args) => diff(args),
    }
}

/// The failure that an error of a benchmark is.
pub fn failure(error: BenchError) -> Failure {
    match error {
        BenchError::Nothing(_) => Failure::usage(format!("--only: {error}")),
        BenchError::Backend { .. } => open::no_device(Failure::new(error.to_string())),
        BenchError::Device(error) => open::no_device(error.into()),
        _ => Failure::new(error.to_string()),
    }
}

fn bench_kernels(args: &BenchKernelsArgs) -> Outcome {
    args.html.as_deref().map(writable).transpose()?;
    let threads = args.threads.map(usize::from);
    let (picks, cache) = (open::picks()?, ocelli_engine::choices::cache_dir());
    let options = DeviceOptions { index: args.device, threads, picks, cache };
    let backend = open::backend(args.backend, &options)?;
    let set = match (args.decoders, args.published) {
        (true, _) => Set::Decoders,
        (_, true) => Set::Published,
        _ => Set::Usual,
    };
    let mut cx = Cx::open(backend, &options).map_err(failure)?;
    let only = args.only.as_deref();
    let mut shapes = match (&args.model, &args.shapes) {
        (Some(model), _) => {
            let caps = cx.target().caps().clone();
            let precision = Precision { dtype: usual_dtype(&caps), ..Precision::default() };
            model_shapes(model, &[PROMPT], &caps, precision, only)?
        }
        (None, Some(path)) => of_file(path, backend, only)?,
        (None, None) => kernels::shapes(backend, only, set).map_err(failure)?,
    };
    let mut seen = HashSet::new();
    shapes.retain(|shape| {
        let wanted = args.ops.is_empty() || args.ops.contains(&shape.op);
        wanted && seen.insert((shape.op.clone(), shape.spec.clone()))
    });
    if shapes.is_empty() {
        let asked = args.ops.join(", ");
        return Err(Failure::usage(format!("--op: none of the shapes is of {asked}")));
    }
    if !args.no_tune {
        let picks = ocelli_engine::devices::tuned(cx.target().caps(), options.picks);
        cx.target().prefer(picks);
    }
    if args.keep_going {
        cx.be_lenient();
    }
    let mut lines = args.rows.as_deref().map(appended).transpose()?;
    let mut unwritten = None;
    let spinner = Spinner::new("measuring roofs");
    let limit = Duration::from_secs(args.limit);
    let outcome = kernels::run(&mut cx, &shapes, args.all || args.assert, limit, &mut |row| {
        if let (Some(file), Ok(line)) = (&mut lines, serde_json::to_string(row))
            && let Err(error) = writeln!(file, "{line}").and_then(|()| file.flush())
        {
            unwritten = Some(error);
        }
        spinner.say(&format!("{} {}", row.op, ocelli_bench::record::spec_text(&row.spec)));
    })
    .map_err(failure)?;
    drop(spinner);
    if let (Some(error), Some(path)) = (unwritten, &args.rows) {
        return Err(Failure::new(format!("{}: {error}", path.display())));
    }
    for text in &outcome.notes {
        tracing::warn!("left out: {text}");
    }
    if let Some(path) = &args.html {
        write_page(path, &ocelli_bench::page::kernels(&outcome.record))?;
    }
    if args.json {
        print_json(&outcome.record)?;
    } else {
        print(&outcome.record.table())?;
        outcome.record.disturbed.iter().flat_map(Disturbed::words).for_each(|text| note(&text));
    }
    let missed = outcome.record.missed_picks();
    for text in &missed {
        tracing::warn!("{text}");
    }
    Ok(if args.assert && !missed.is_empty() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// A file that lines are appended to.
fn appended(path: &Path) -> Result<std::fs::File, Failure> {
    open::is_file_name(path)?;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|error| Failure::new(format!("{}: {error}", path.display())))
}

/// Tokens of text in the request that a model's ops are those of.
const PROMPT: usize = 32;

/// The shapes of a file that a backend runs.
fn of_file(path: &Path, backend: Backend, only: Option<&str>) -> Result<Vec<Shape>, Failure> {
    open::is_file_name(path)?;
    let bad = |reason: String| Failure::new(format!("{}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    let list = Shapes::parse(&text).map_err(bad)?;
    if let Some(of) = list.backend.filter(|of| *of != backend) {
        return Err(bad(format!("backend: expected {backend}, found {of}")));
    }
    let has = |shape: &Shape| {
        only.is_none_or(|part| [&shape.op, &shape.what, &shape.spec].iter().any(|text| text.contains(part)))
    };
    Ok(list.shapes.into_iter().filter(has).collect())
}

/// Compares two records: exit code 1 if anything is slower.
fn diff(args: &BenchDiffArgs) -> Outcome {
    let read = |path: &Path| {
        open::is_file_name(path)?;
        std::fs::read_to_string(path).map_err(|error| Failure::new(format!("{}: {error}", path.display())))
    };
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    let names = [&args.before, &args.after].map(|path| path.display().to_string());
    let found = ocelli_bench::diff::diff((&names[0], &before), (&names[1], &after), args.least / 100.0)
        .map_err(Failure::new)?;
    if args.json {
        print_json(&found)?;
    } else {
        print(&found.table())?;
    }
    Ok(if found.is_slower() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    backend: ocelli_kernels::Backend,
    device: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    api: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    driver: &'a str,
    isa: &'static str,
    threads: usize,
    dtype: ocelli_kernels::DType,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<(usize, usize)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cold_start: Option<cold::Starts>,
    peak_memory_bytes: Option<u64>,
    #[serde(flatten)]
    report: &'a ModelReport,
}

fn model(args: &BenchModelArgs) -> Outcome {
    args.image.iter().try_for_each(|path| open::is_file_name(path))?;
    // Before this process has the files.
    let cold_start = args.cold_start.then(|| cold::measure(args)).transpose()?;
    let (device, precision) = open::device(&args.device)?;
    let which = args.which();
    let (pipeline, mut cx) = open::pipeline(&which, &*device, precision)?;
    let asked = match (args.prompt_tokens, &args.image) {
        (Some(count), _) => Asked::Tokens(count),
        (None, image) => {
            let first = match image {
                Some(path) => decode_file(path, &DecodeOptions::default())?,
                None => noise(args.image_size, 1)?,
            };
            let size = (first.width(), first.height());
            let picture = |number: usize| match number {
                0 => Ok(first.clone()),
                _ => noise(size, number as u64 + 1),
            };
            let of_request = |request: usize| {
                (0..args.images).map(|number| picture(request * args.images + number)).collect()
            };
            let requests = (0..args.batch).map(of_request).collect::<Result<_, Failure>>()?;
            Asked::Pictures { requests, prompt: args.prompt.clone(), depth: args.depth }
        }
    };
    let image = match &asked {
        Asked::Pictures { requests, .. } => {
            requests.iter().flatten().next().map(|image| (image.width(), image.height()))
        }
        Asked::Tokens(_) => None,
    };
    let max_tokens = args.max_tokens.min(pipeline.model.info().max_positions);
    let options = Options { asked, max_tokens, runs: args.runs, ops: args.ops };
    let spinner = Spinner::new("warming up");
    let report = measure(&mut cx, &pipeline, &options, &mut |run| {
        spinner.say(&format!("{run} of {} runs", args.runs));
        ControlFlow::Continue(())
    })?;
    drop(spinner);
    let caps = device.caps();
    let model = which.model.as_deref().unwrap_or("demo");
    if args.json {
        print_json(&Output {
            schema: ocelli_bench::diff::MODEL_SCHEMA,
            model,
            backend: caps.backend,
            device: &caps.device,
            api: &caps.api,
            driver: &caps.driver,
            isa: caps.isa.name(),
            threads: caps.units,
            dtype: precision.dtype,
            image,
            cold_start,
            peak_memory_bytes: peak_memory(),
            report: &report,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, q: Quantiles, unit: &str| {
        format!("{name:<12} {:>10.1} {unit:<9} ({:.1} to {:.1})\n", q.median, q.p20, q.p80)
    };
    let how = match caps.backend {
        Backend::Cpu => format!("{} with {} threads", caps.isa.name(), caps.units),
        _ => format!("{}, {}", caps.api, caps.driver),
    };
    let mut text = format!(
        "{model} on {} {}, {how}, {}: median of {} runs (20th to 80th percentile)\n",
        caps.backend, caps.device, precision.dtype, report.runs
    );
    let several = report.batch > 1;
    if several {
        text += &format!("{} requests at once", report.batch);
    }
    if let Some((width, height)) = image {
        text += if several { " with " } else { "" };
        text += &match report.images {
            1 => format!("picture {width}x{height}"),
            count => format!("{count} pictures {width}x{height}"),
        };
        text += if several { " each" } else { "" };
        text += &match several {
            true => format!("; of all together {} tiles, ", report.tiles),
            false => format!(" in {} tiles, ", report.tiles),
        };
    } else if several {
        text += "; of all together ";
    }
    // Each answer has one token of its prompt's pass.
    let answers = report.decode_tokens + report.batch;
    text += &format!("prompt of {} tokens, answer of {answers}\n", report.prompt_tokens);
    if image.is_some() {
        text += &row("resize", report.resize_ms, "ms");
        text += &row("encode", report.encode_ms, "ms");
    }
    text += &row("first token", report.first_token_ms, "ms");
    text += &row("prefill", report.prefill_tokens_per_s, "tokens/s");
    text += &row("decode", report.decode_tokens_per_s, "tokens/s");
    if let Some(rate) = report.pictures_per_s {
        text += &row("pictures", rate, "a second");
    }
    if let Some(joules) = report.joules {
        text += &row("energy", joules, "J a run");
    }
    if let Some(starts) = cold_start {
        text += &row("cold start", starts.warm_ms, "ms, files in memory");
        if let Some(dropped) = starts.dropped_ms {
            text += &row("", dropped, "ms, files on disk");
        }
    }
    text += &format!(
        "weights {}, activations {} (encoding {})\n",
        bytes(report.weight_bytes),
        bytes(report.activation_bytes),
        bytes(report.encode_activation_bytes)
    );
    if caps.backend != Backend::Cpu {
        let share = report.decode_encode_share.median;
        text += &format!("the host prepares work in {:.0}% of the decode time\n", 100.0 * share);
    }
    print(&(text + &ops_table(&report)))?;
    report.disturbed.words().iter().for_each(|text| note(text));
    Ok(ExitCode::SUCCESS)
}

/// Where the time of each stage goes, the longest first; nothing if no op was timed.
fn ops_table(report: &ModelReport) -> String {
    let mut text = String::new();
    for &(phase, outside) in &report.outside_ops_ms {
        let rows: Vec<&OpTime> = report.ops.iter().filter(|row| row.phase == phase).collect();
        if rows.is_empty() {
            continue;
        }
        let total = outside + rows.iter().map(|row| row.ms).sum::<f64>();
        text += &format!("\n{phase:?}: {total:.2} ms\n");
        for row in rows {
            let each = 1e3 * row.ms / row.calls as f64;
            let (share, seconds) = (100.0 * row.ms / total, (row.ms / 1e3).max(1e-12));
            let (read, speed) = (row.bytes as f64 / seconds / 1e9, row.flops as f64 / seconds / 1e9);
            text += &format!(
                "{share:>5.1}%  {:<13} {:>7} x {each:>9.1} us {read:>7.1} GB/s {speed:>7.1} GFLOP/s  {}\n",
                row.op, row.calls, row.module
            );
        }
        text += &format!("{:>5.1}%  outside ops\n", 100.0 * outside / total);
    }
    text
}

#[derive(Serialize)]
struct Decoded {
    file: String,
    bytes: usize,
    width: usize,
    height: usize,
    decode_ms: Quantiles,
}

fn pictures(args: &BenchPicturesArgs) -> Outcome {
    let options = DecodeOptions::default();
    let mut rows = Vec::with_capacity(args.files.len());
    for path in &args.files {
        open::is_file_name(path)?;
        // With the errors of files that are no pictures.
        let picture = decode_file(path, &options)?;
        let file = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|error| Failure::new(format!("{file}: {error}")))?;
        let mut times = Vec::with_capacity(args.runs);
        for _ in 0..args.runs {
            let start = Instant::now();
            decode_bytes(&file, &bytes, &options)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        let (width, height, decode_ms) = (picture.width(), picture.height(), Quantiles::of(times));
        rows.push(Decoded { file, bytes: bytes.len(), width, height, decode_ms });
    }
    if args.json {
        print_json(&serde_json::json!({
            "schema": "ocelli.bench.pictures.v1", "isa": Isa::detect().map_err(|error| Failure::new(error.to_string()))?.level().name(), "runs": args.runs, "pictures": rows,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |row: &Decoded| {
        let Quantiles { median, p20, p80 } = row.decode_ms;
        let megapixels = (row.width * row.height) as f64 / 1e6;
        let speed = 1e3 * megapixels / median.max(1e-9);
        format!(
            "{median:>9.2} ms ({p20:.2} to {p80:.2}) {speed:>7.0} megapixels/s  {}x{}  {}\n",
            row.width, row.height, row.file
        )
    };
    print(&rows.iter().map(row).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// A picture of even noise, the same one each time for a seed.
fn noise((width, height): (usize, usize), seed: u64) -> Result<Rgb8Image, Failure> {
    let mut state = seed;
    let pixels = (0..width * height * 3).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    Rgb8Image::from_raw(width, height, pixels.collect())
        .ok_or_else(|| Failure::usage(format!("--image-size: {width}x{height} is no picture")))
}
