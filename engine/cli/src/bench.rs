//! `ocelli bench`: figures of this machine.

use std::ops::ControlFlow;
use std::process::ExitCode;

use ocelli_bench::kernels::BenchError;
use ocelli_bench::model::{ModelReport, Options, Quantiles, measure};
use ocelli_engine::image::{DecodeOptions, Rgb8Image, decode_file};
use serde::Serialize;

use crate::args::{BenchArgs, BenchCommand, BenchKernelsArgs, BenchModelArgs};
use crate::fail::{Failure, Outcome, print, print_json};
use crate::open;
use crate::progress::Spinner;

/// Runs the command.
pub fn bench(args: &BenchArgs) -> Outcome {
    match &args.command {
        BenchCommand::Model(args) => model(args),
        BenchCommand::Kernels(args) => kernels(args),
    }
}

fn kernels(args: &BenchKernelsArgs) -> Outcome {
    let options = ocelli_bench::kernels::Options {
        backend: args.backend.backend().unwrap_or_default(),
        threads: args.threads.map(usize::from),
        only: args.only.clone(),
        all_variants: args.all,
        ..ocelli_bench::kernels::Options::default()
    };
    let spinner = Spinner::new("measuring roofs");
    let outcome = ocelli_bench::kernels::run(&options, &mut |row| {
        spinner.say(&format!("{} {}", row.op, ocelli_bench::record::spec_text(&row.spec)));
    })
    .map_err(|error| match error {
        BenchError::Nothing(_) => Failure::usage(format!("--only: {error}")),
        _ => Failure::new(error.to_string()),
    })?;
    drop(spinner);
    for note in &outcome.notes {
        tracing::warn!("left out: {note}");
    }
    if args.json {
        print_json(&outcome.record)?;
    } else {
        print(&outcome.record.table())?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    backend: ocelli_kernels::Backend,
    device: &'a str,
    isa: &'static str,
    threads: usize,
    dtype: ocelli_kernels::DType,
    image: (usize, usize),
    #[serde(flatten)]
    report: &'a ModelReport,
}

fn model(args: &BenchModelArgs) -> Outcome {
    let (device, precision) = open::device(&args.device)?;
    let (pipeline, mut cx) = open::pipeline(&args.model, &*device, precision)?;
    let image = match &args.image {
        Some(path) => decode_file(path, &DecodeOptions::default())?,
        None => noise(args.image_size)?,
    };
    let options = Options { prompt: args.prompt.clone(), max_tokens: args.max_tokens, runs: args.runs };
    let spinner = Spinner::new("warming up");
    let report = measure(&mut cx, &pipeline, &image, &options, &mut |run| {
        spinner.say(&format!("{run} of {} runs", args.runs));
        ControlFlow::Continue(())
    })?;
    drop(spinner);
    let caps = device.caps();
    let model = args.model.model.as_deref().unwrap_or("demo");
    if args.json {
        print_json(&Output {
            schema: "ocelli.bench.model.v1",
            model,
            backend: caps.backend,
            device: &caps.device,
            isa: caps.isa.name(),
            threads: caps.units,
            dtype: precision.dtype,
            image: (image.width(), image.height()),
            report: &report,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |name: &str, q: Quantiles, unit: &str| {
        format!("{name:<12} {:>10.1} {unit:<9} ({:.1} to {:.1})\n", q.median, q.p20, q.p80)
    };
    let mut text = format!(
        "{model} on {} {}, {} with {} threads, {}: median of {} runs (20th to 80th percentile)\n",
        caps.backend,
        caps.device,
        caps.isa.name(),
        caps.units,
        precision.dtype,
        report.runs
    );
    text += &format!(
        "picture {}x{} in {} tiles, prompt of {} tokens, answer of {}\n",
        image.width(),
        image.height(),
        report.tiles,
        report.prompt_tokens,
        report.decode_tokens + 1
    );
    text += &row("resize", report.resize_ms, "ms");
    text += &row("encode", report.encode_ms, "ms");
    text += &row("first token", report.first_token_ms, "ms");
    text += &row("prefill", report.prefill_tokens_per_s, "tokens/s");
    text += &row("decode", report.decode_tokens_per_s, "tokens/s");
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A picture of even noise, the same one each time.
fn noise((width, height): (usize, usize)) -> Result<Rgb8Image, Failure> {
    let mut state = 1u64;
    let pixels = (0..width * height * 3).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    Rgb8Image::from_raw(width, height, pixels.collect())
        .ok_or_else(|| Failure::usage(format!("--image-size: {width}x{height} is no picture")))
}
