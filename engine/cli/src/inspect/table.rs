//! A report for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use ocelli_bench::plan::{Plan, Step};

use super::Report;
use crate::units::{bytes, count};

/// Most unused tensors and refusals that are named; JSON names all.
const NAMED: usize = 5;

impl Report {
    /// The report as text.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let family = self.family.map(|family| format!(", family {family}")).unwrap_or_default();
        let model_type = self.model_type.as_deref().unwrap_or("not stated");
        let _ = writeln!(text, "{}: model type {model_type}{family}", self.model);
        if !self.architectures.is_empty() {
            let _ = writeln!(text, "architecture  {}", self.architectures.join(", "));
        }
        let tensors = &self.tensors;
        let files = if tensors.files == 1 { String::new() } else { format!(" in {} files", tensors.files) };
        let _ = writeln!(
            text,
            "weights       {} tensors{files}, {}: {}",
            tensors.count,
            bytes(tensors.bytes),
            listed(&tensors.types)
        );
        if let Some(how) = &self.quantization {
            let _ = writeln!(text, "quantized     {how}");
        }
        let _ = writeln!(
            text,
            "device        {} {}, {} with {} threads, activations {}",
            self.backend, self.device, self.isa, self.threads, self.dtype
        );
        if let Some(processor) = &self.processor {
            let _ = writeln!(text, "processor     {processor}");
        }
        self.parts(&mut text);
        if let Some(plan) = &self.plan {
            write_plan(plan, &mut text);
        }
        if self.shared_prompts == Some(false) {
            let why = "not shared between prompts: the states of this model's layers cannot be taken from the middle of one";
            let _ = writeln!(text, "\nbeginnings    {why}");
        }
        let _ = writeln!(text, "\nfits          {}", self.fits.why);
        for reason in self.refused.iter().take(NAMED) {
            let _ = writeln!(text, "refused       {reason}");
        }
        if self.refused.len() > NAMED {
            let _ = writeln!(text, "refused       {} more", self.refused.len() - NAMED);
        }
        text
    }

    fn parts(&self, text: &mut String) {
        if self.parts.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{:<20} {:>12} {:>11}  matrices", "part", "parameters", "bytes");
        for part in &self.parts {
            let _ = writeln!(
                text,
                "{:<20} {:>12} {:>11}  {}",
                part.name,
                count(part.parameters),
                bytes(part.bytes),
                listed(&part.formats)
            );
        }
        let total: u64 = self.parts.iter().map(|part| part.bytes).sum();
        let _ = writeln!(text, "{:<20} {:>12} {:>11}", "all", count(self.parameters), bytes(total));
        if !self.unused.is_empty() {
            let named = self.unused.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if self.unused.len() > NAMED { ", ..." } else { "" };
            let _ = writeln!(text, "{} tensors are not used: {named}{more}", self.unused.len());
        }
        if self.made_bytes > 0 {
            let made = bytes(self.made_bytes);
            let _ = writeln!(
                text,
                "codes in an order or width that no kernel takes are stored anew beside the file, {made}"
            );
        }
        if let Some(reorder) = &self.reorder {
            let _ = writeln!(text, "{}", reorder.text());
        }
        if self.copied.tensors > 0 {
            let _ = writeln!(
                text,
                "{} tensors are not aligned in their file and are copied, {}",
                self.copied.tensors,
                bytes(self.copied.bytes)
            );
        }
    }
}

fn write_plan(plan: &Plan, text: &mut String) {
    let request = &plan.request;
    let sizes: Vec<String> =
        request.images.iter().map(|(width, height)| format!("{width}x{height}")).collect();
    let pictures = match &sizes[..] {
        [] => "no picture".to_owned(),
        [one] => format!("one picture of {one}"),
        all => format!("{} pictures of {}", all.len(), all.join(", ")),
    };
    let tiles = format!("{} tile{}", request.tiles, if request.tiles == 1 { "" } else { "s" });
    let (tokens, memory) = (request.prompt_tokens, &plan.memory);
    let kept = if request.max_tokens == 0 {
        let _ = writeln!(text, "\nplan for vectors of {pictures} and a text: {tiles}, {tokens} tokens");
        String::new()
    } else {
        let _ = writeln!(
            text,
            "\nplan for {pictures}: {tiles}, {} image tokens in a prompt of {tokens}, an answer of at most {}",
            request.image_tokens, request.max_tokens
        );
        let each = bytes(memory.kv_per_token);
        format!(", keys and values {} ({each} a token)", bytes(memory.kv_cache))
    };
    for ((width, height), picture) in request.images.iter().zip(&request.pictures) {
        let runs: Vec<String> = picture
            .tiles
            .chunk_by(|a, b| a == b)
            .map(|run| match run {
                [(width, height)] => format!("{width}x{height}"),
                run => format!("{} of {}x{}", run.len(), run[0].0, run[0].1),
            })
            .collect();
        let tokens = if picture.tokens > 0 { format!(", {} tokens", picture.tokens) } else { String::new() };
        let _ = writeln!(
            text,
            "picture of {width}x{height}: through the tower as {}{tokens}",
            runs.join(" and ")
        );
    }
    let _ = writeln!(
        text,
        "memory {}: weights {}{kept}, image features {}, activations {}",
        bytes(memory.total),
        bytes(memory.weights),
        bytes(memory.image_features),
        bytes(memory.activations)
    );
    for phase in &plan.phases {
        let _ = writeln!(text, "\n{}: {} flop, {} moved", phase.name, count(phase.flops), bytes(phase.bytes));
        let width = |of: fn(&Step) -> usize| phase.steps.iter().map(of).max().unwrap_or(0);
        let (module, op) = (width(|step| step.module.len()), width(|step| step.op.len()));
        let variant = width(|step| step.variant.unwrap_or("none").len());
        for step in &phase.steps {
            let _ = writeln!(
                text,
                "  {:<module$}  {:<op$}  {:<variant$}  x{:<4} {:>10}  {}",
                step.module,
                step.op,
                step.variant.unwrap_or("none"),
                step.count,
                bytes(step.weight_bytes),
                step.spec,
            );
        }
    }
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}
