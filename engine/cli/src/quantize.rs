//! `ocelli quantize`: writes a quantized copy of a model.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::process::ExitCode;

use ocelli_engine::weights::{
    Checkpoint, Layout, QuantizeError, QuantizeOptions, QuantizeScheme, Quantized, quantize as write,
};
use ocelli_kernels::DType;
use serde::Serialize;

use crate::args::{FormatArg, IncludeArg, LayoutArg, QuantizeArgs, ScalesArg};
use crate::fail::{Failure, Outcome, print, print_json};
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Bytes;
use crate::units::bytes;

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    out: String,
    /// Number of matrices written in each format.
    formats: BTreeMap<String, usize>,
    /// Tensors that stayed as they were.
    kept: usize,
    bytes_before: u64,
    bytes_after: u64,
    files: &'a [String],
}

impl QuantizeArgs {
    fn options(&self) -> QuantizeOptions {
        let scheme = match self.format {
            FormatArg::Int4 => QuantizeScheme::Int4,
            FormatArg::Int8 => QuantizeScheme::Int8,
            FormatArg::Fp8 => QuantizeScheme::Fp8,
            FormatArg::Nf4 => QuantizeScheme::Nf4,
            FormatArg::Mxfp4 => QuantizeScheme::Mxfp4,
            FormatArg::Nvfp4 => QuantizeScheme::Nvfp4,
        };
        let mut options = QuantizeOptions::new(scheme);
        options.layout = match self.layout {
            Some(LayoutArg::CompressedTensors) => Layout::CompressedTensors,
            Some(LayoutArg::Mlx) => Layout::Mlx,
            Some(LayoutArg::Bitsandbytes) => Layout::Bitsandbytes,
            None if scheme == QuantizeScheme::Nf4 => Layout::Bitsandbytes,
            None => Layout::CompressedTensors,
        };
        options.group = self.group;
        options.zero_points = self.zero_point;
        options.scales = match self.scales {
            ScalesArg::Stored => None,
            ScalesArg::F32 => Some(DType::F32),
            ScalesArg::Bf16 => Some(DType::BF16),
            ScalesArg::F16 => Some(DType::F16),
        };
        for part in &self.include {
            match part {
                IncludeArg::Tower => options.tower = true,
                IncludeArg::Connector => options.connector = true,
                IncludeArg::Head => options.head = true,
            }
        }
        options.force = self.force;
        options
    }
}

/// Runs the command.
pub fn quantize(args: &QuantizeArgs) -> Outcome {
    let files = open::files(args.which.model())?;
    let roles = match ocelli_models::roles(&files) {
        Ok(roles) => roles,
        // What is quantized already is told as such.
        Err(error) => match Checkpoint::open(&files) {
            Ok(checkpoint) if checkpoint.quantization().is_some() => HashMap::new(),
            _ => return Err(error.into()),
        },
    };
    let gentle = Gentle::begin();
    let mut bar = Bytes::new();
    let done =
        write(&files, &args.out, &|module| roles.get(module).copied(), &args.options(), &mut |progress| {
            bar.at(progress.name, progress.done, progress.total);
            if gentle.asked() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    drop(bar);
    let Quantized { formats, kept, bytes_before, bytes_after, files } = done?;
    drop(gentle);
    let formats: BTreeMap<String, usize> =
        formats.into_iter().map(|(format, count)| (format.to_string(), count)).collect();
    let (model, out) = (args.which.model().unwrap_or("demo"), args.out.display().to_string());
    if args.json {
        print_json(&Output {
            schema: "ocelli.quantize.v1",
            model,
            out,
            formats,
            kept,
            bytes_before,
            bytes_after,
            files: &files,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let listed: Vec<String> = formats.iter().map(|(format, count)| format!("{count} {format}")).collect();
    print(&format!(
        "{out}: {} matrices, {kept} tensors as they were; {} instead of {}\n",
        listed.join(", "),
        bytes(bytes_after),
        bytes(bytes_before)
    ))?;
    Ok(ExitCode::SUCCESS)
}

impl From<QuantizeError> for Failure {
    fn from(error: QuantizeError) -> Self {
        let text = error.to_string();
        match error {
            QuantizeError::Options(_) => Self::usage(text),
            QuantizeError::Exists(_) => Self::new(text).hint("--force replaces a model that is there"),
            QuantizeError::Cancelled => Self::interrupted(text),
            _ => Self::new(text),
        }
    }
}
