//! `ocelli classify`: how well labels fit pictures.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;

use crate::args::ClassifyArgs;
use crate::fail::{Failure, Outcome, print, print_json};
use crate::progress::Spinner;
use crate::{open, vectors};

#[derive(Serialize)]
struct Output<'a> {
    schema: &'static str,
    model: &'a str,
    pictures: Vec<Picture<'a>>,
}

#[derive(Serialize)]
struct Picture<'a> {
    picture: String,
    /// The most likely first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<Label<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Label<'a> {
    label: &'a str,
    probability: f64,
    logit: f32,
}

/// Runs the command: exit code 1 if any picture has no result.
pub fn classify(args: &ClassifyArgs) -> Outcome {
    let labels: Vec<&str> = args.labels.iter().map(|label| label.trim()).collect();
    if labels.contains(&"") {
        return Err(Failure::usage("--labels: expected labels with commas between, found an empty one"));
    }
    let pictures = vectors::list(&args.pictures)?;
    let (device, precision) = open::device(&args.device)?;
    if !args.json {
        open::tell_vectors(args.vectors.model.as_deref());
    }
    let spinner = Spinner::new("loading the model");
    let (pipeline, mut cx) = open::vectors(&args.vectors, &*device, precision)?;
    let usual = if args.vectors.model.is_some() { "a photo of a {}." } else { "a {}" };
    let template = args.template.as_deref().unwrap_or(usual);
    let tokens = labels.iter().map(|label| pipeline.tokens(&template.replace("{}", label)));
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    spinner.say("reading labels");
    let texts = pipeline.texts(&mut cx, &tokens)?;
    drop(spinner);

    let scoring = pipeline.model.scoring();
    let mut results = Vec::new();
    let failed = vectors::of_pictures(&args.vectors, &pipeline, &mut cx, &pictures, |path, vector| {
        let mut result = Picture { picture: path.display().to_string(), labels: Vec::new(), error: None };
        match vector {
            Err(failure) => result.error = Some(failure.message().to_owned()),
            Ok(vector) => {
                let logits: Vec<f32> = texts.iter().map(|text| scoring.logit(vector, text)).collect();
                let chances = scoring.probabilities(&logits);
                let of = |((&label, &logit), probability)| Label { label, probability, logit };
                result.labels = labels.iter().zip(&logits).zip(chances).map(of).collect();
                result.labels.sort_by(|a, b| b.logit.total_cmp(&a.logit));
            }
        }
        if args.json {
            results.push(result);
            return Ok(());
        }
        if result.error.is_none() { print(&table(&result)) } else { Ok(()) }
    })?;
    if args.json {
        let model = args.vectors.model.as_deref().unwrap_or("demo");
        print_json(&Output { schema: "ocelli.classify.v1", model, pictures: results })?;
    }
    vectors::end(failed, pictures.len())?;
    Ok(ExitCode::SUCCESS)
}

fn table(picture: &Picture<'_>) -> String {
    let mut text = format!("{}\n", picture.picture);
    for Label { label, probability, .. } in &picture.labels {
        let _ = writeln!(text, "  {:>6.2} %  {label}", probability * 100.0);
    }
    text
}
