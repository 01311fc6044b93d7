//! Stage-by-stage parity with a reference directory.
//!
//! The directory holds `inputs.json` (cases with messages, picture names, processor arguments, ids) and
//! `golden.safetensors` (`<case>.<stage>` tensors); `tests/golden/README.md` describes both. Our own pixels and token
//! ids are compared with the stored ones; then the stored pixels are fed on, so that each later stage is compared on
//! equal inputs. References with tokens and logits alone are read too, see `verify/bare.rs`.

mod bare;
mod drawn;
mod dual;
mod rounding;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, PreparedImage, decode_file};
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Media, Request, generate};
use ocelli_engine::text::Message;
use ocelli_engine::weights::{StoredType, TensorFile};
use ocelli_engine::{Ctx, Error, Gives, Pipeline, Precision, Processor, Prompt, Result, Stage};
use ocelli_kernels::{Backend, DType, Device};
use ocelli_models::Leftovers;
use serde::{Deserialize, Serialize};

use crate::observe::{Values, observed};

/// Version of the report's layout.
pub const SCHEMA: &str = "ocelli.verify.v2";

/// Share of pixel values that may be off by one grey level.
const PIXEL_SHARE: f64 = 0.02;

/// What was compared and how far off it was.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of this layout.
    pub schema: &'static str,
    /// The model.
    pub model: String,
    /// The backend.
    pub backend: Backend,
    /// Type of activations.
    pub dtype: DType,
    /// Whether every case passed.
    pub pass: bool,
    /// The cases.
    pub cases: Vec<CaseReport>,
}

/// One case of the reference.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Its name.
    pub name: String,
    /// Whether every stage and the greedy tokens passed.
    pub pass: bool,
    /// The stages, in the order of computation.
    pub stages: Vec<StageReport>,
    /// Stages of floats that were compared.
    pub compared: usize,
    /// Stages that the reference has and the model does not show.
    pub not_shown: Vec<String>,
    /// Greedy tokens; none of a model that gives vectors.
    pub greedy: Greedy,
}

impl CaseReport {
    /// The first stage that is out of tolerance.
    #[must_use]
    pub fn first_divergence(&self) -> Option<&str> {
        let stage = self.stages.iter().find(|stage| !stage.pass).map(|stage| stage.name.as_str());
        let none = (self.compared == 0).then_some("no stage compared");
        stage.or(none).or((!self.pass).then_some("greedy"))
    }
}

/// One stage of a case.
#[derive(Clone, Debug, Serialize)]
pub struct StageReport {
    /// `pixels` (in grey levels), `token_ids`, `source_ids` and `position_ids` (numbers of differing ones), or the name of the reference's tensor:
    /// `vision_last_hidden`, `image_features`, `text_layer_first`, `logits_last8`, ...
    pub name: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
    /// Mean absolute difference, and the largest mean allowed, where the reference tells its own drift.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<(f64, f64)>,
    /// Whether the stage passed.
    pub pass: bool,
    /// What else is to be said: a shape that differs, the share of differing pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Greedy tokens of a case, stop tokens ignored.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Greedy {
    /// The reference's.
    pub expected: Vec<u32>,
    /// Ours.
    pub got: Vec<u32>,
    /// Tokens that have to be equal: all in f32; else those before the first whose margin the reference's own 16-bit run can flip.
    pub counted: usize,
}

#[derive(Deserialize)]
struct Inputs {
    cases: Vec<serde_json::Value>,
}

/// A case as a model of its kind has it.
fn read_case<T: serde::de::DeserializeOwned>(case: &serde_json::Value, reference: &Path) -> Result<T> {
    T::deserialize(case).map_err(|error| Error::Config {
        path: reference.join("inputs.json").display().to_string(),
        reason: format!("case {}: {error}", case.get("name").unwrap_or(&serde_json::Value::Null)),
    })
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(default)]
    images: Vec<String>,
    /// Absent: `prompt` goes to the processor as it is.
    messages: Option<Vec<Message>>,
    prompt: Option<String>,
    #[serde(default)]
    processor_kwargs: BTreeMap<String, serde_json::Value>,
    input_ids: Option<Vec<u32>>,
    /// What the decoder begins with, where that is not `input_ids`; those are what an encoder reads then, if the model has one.
    decoder_input_ids: Option<Vec<u32>>,
    greedy_ids: Vec<u32>,
}

impl Case {
    /// Tokens of the decoder.
    fn tokens(&self) -> &[u32] {
        self.decoder_input_ids.as_ref().or(self.input_ids.as_ref()).map_or(&[], Vec::as_slice)
    }
}

/// Largest difference allowed to float stages in f32: 2e-4 on the CPU and 1e-3 on a GPU (design, section 6).
fn tolerance(backend: Backend) -> f64 {
    if backend == Backend::Cpu { 2e-4 } else { 1e-3 }
}

/// How much larger than in the reference's own run, in 16 bits or in f32 beside f64, the largest difference and the mean one may be. Both
/// runs round as often, at other places: the means of many thousand values agree closely, the largest of them less so.
const DRIFT: (f64, f64) = (2.0, 1.25);

/// [`DRIFT`] of the mean of `count` values. A mean of few varies: differences are about normal, so their sizes vary by 0.76 of their mean, and
/// the ratio of two means of `count` of them by `1.07 / sqrt(count)`, three times which is allowed, up to what the largest may be.
fn mean_drift(count: usize) -> f64 {
    (1.0 + 3.2 / (count.max(1) as f64).sqrt()).clamp(DRIFT.1, DRIFT.0)
}

/// Runs every case of `reference` through the model in `files`.
///
/// # Errors
/// If model or reference cannot be read. A difference is not an error: see [`Report::pass`].
pub fn verify(
    files: &ModelFiles,
    reference: &Path,
    device: &dyn Device,
    precision: Precision,
) -> Result<Report> {
    let (backend, tensors) = (device.caps().backend, reference.join("golden.safetensors"));
    let inputs: Option<Inputs> = ModelFiles::dir(reference).json("inputs.json")?;
    let mut cases = Vec::new();
    match inputs {
        None if tensors.is_file() && bare::is_bare(&TensorFile::open(&tensors)?) => {
            let golden = TensorFile::open(&tensors)?;
            cases.push(bare::verify_case(files, device, Ctx::new(device, precision)?, &golden)?);
        }
        inputs => {
            let inputs = match inputs {
                Some(inputs) => inputs,
                None => ModelFiles::dir(reference).require_json("inputs.json")?,
            };
            let golden = Golden(TensorFile::open(&tensors)?);
            for case in &inputs.cases {
                cases.push(verify_case(files, reference, device, precision, &golden, case)?);
            }
        }
    }
    if cases.is_empty() {
        let path = reference.join("inputs.json").display().to_string();
        return Err(Error::Config { path, reason: "expected at least one case, found none".into() });
    }
    Ok(Report {
        schema: SCHEMA,
        model: files.describe("").trim_end_matches(['/', ':']).to_owned(),
        backend,
        dtype: precision.dtype,
        pass: cases.iter().all(|case| case.pass),
        cases,
    })
}

struct Golden(TensorFile);

impl Golden {
    fn has(&self, case: &str, key: &str) -> bool {
        self.0.info(&format!("{case}.{key}")).is_some()
    }

    fn shape(&self, case: &str, key: &str) -> Vec<usize> {
        self.0.info(&format!("{case}.{key}")).map_or(Vec::new(), |info| info.shape.to_vec())
    }

    /// A tensor in f32; where the reference has `<key>.levels`, its values are numbers of these.
    fn floats(&self, case: &str, key: &str) -> Result<Vec<f32>> {
        let name = format!("{case}.{key}");
        let of_levels = format!("{name}.levels");
        if self.0.info(&of_levels).is_none() {
            return Ok(self.0.floats(&name)?);
        }
        let (levels, info) = (self.0.floats(&of_levels)?, self.0.info(&name));
        let bytes = self.0.bytes(&name)?;
        let numbers: Vec<usize> = match info.map(|info| info.dtype) {
            Some(StoredType::U8) => bytes.iter().map(|&b| b.into()).collect(),
            Some(StoredType::U16) => {
                bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect()
            }
            _ => return Err(Error::Request(format!("{name}: expected U8 or U16 beside its levels"))),
        };
        let value = |number: &usize| levels.get(*number).copied();
        numbers.iter().map(value).collect::<Option<_>>().ok_or_else(|| {
            Error::Request(format!("{name}: a value is no number of one of its {} levels", levels.len()))
        })
    }
}

/// `DIR/images/NAME`, else `DIR/../images/NAME`.
fn picture(reference: &Path, name: &str) -> PathBuf {
    let own = reference.join("images").join(name);
    if own.is_file() { own } else { reference.join("..").join("images").join(name) }
}

/// A reference's tensor with the part and layer whose values it holds.
type Place = (String, &'static str, Option<usize>);

fn verify_case(
    files: &ModelFiles,
    reference: &Path,
    device: &dyn Device,
    precision: Precision,
    golden: &Golden,
    case: &serde_json::Value,
) -> Result<CaseReport> {
    let mut cx = Ctx::new(device, precision)?;
    let mut loaded = ocelli_models::load_with(files, &mut cx, Leftovers::Refuse)?;
    if loaded.model.gives() == Gives::Vectors {
        return dual::verify_case(files, reference, device, cx, loaded, golden, &read_case(case, reference)?);
    }
    if case.get("generation_mode").is_some_and(|mode| mode == "image") {
        return drawn::verify_case(files, device, cx, loaded, golden, &read_case(case, reference)?);
    }
    let case: &Case = &read_case(case, reference)?;
    for (key, value) in &case.processor_kwargs {
        loaded.processor.set(key, &value.as_str().map_or_else(|| value.to_string(), str::to_owned))?;
    }
    let pipeline = Pipeline::new(files, loaded, device.caps().units)?;
    let mut stages = Vec::new();

    let pictures =
        case.images.iter().map(|name| decode_file(&picture(reference, name), &DecodeOptions::default()));
    let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
    let mut prepared = pipeline.prepare(&pictures)?;
    let processor = &*pipeline.processor;
    if golden.has(&case.name, "pixel_values") {
        let stored = golden.pixels(&case.name)?;
        let stored = without_padding(processor, &prepared, &golden.shape(&case.name, "pixel_values"), stored);
        stages.push(compare_pixels(processor, &prepared, &stored));
        prepared = with_stored_pixels(processor, prepared, &stored)?;
    }
    let images: Vec<&PreparedImage> = prepared.iter().collect();
    let laid_out = match &case.messages {
        Some(messages) => pipeline.lay_out(messages, &images)?,
        None => {
            let text = case.prompt.as_deref().unwrap_or_default();
            processor.lay_out(text, &images, &pipeline.tokenizer)?
        }
    };
    let layout = Layout::of(case, &laid_out);
    let tokens = if layout == Layout::Decoder { case.tokens() } else { &laid_out.tokens };
    stages.push(compare_ids("token_ids", &laid_out.tokens, tokens));
    if !laid_out.source.tokens.is_empty() {
        let expected = case.input_ids.as_deref().unwrap_or_default();
        stages.push(compare_ids("source_ids", &laid_out.source.tokens, expected));
    }
    if golden.has(&case.name, "position_ids") {
        stages.push(compare_positions(&laid_out, &golden.ints(&case.name, "position_ids")?));
    }

    // The stages are compared on the reference's tokens; where they are no others, so are the places of features.
    let same = laid_out.tokens.len() == tokens.len();
    let prompt = if same { Prompt { tokens: tokens.to_vec(), ..laid_out } } else { laid_out };
    let (seen, features) = observed(&mut cx, &pipeline, &prepared, &prompt, (&[], 8))?;
    let (backend, dtype) = (device.caps().backend, precision.coarsest());
    let (mut compared, mut not_shown, mut own) = (0, Vec::new(), None);
    for (key, part, layer) in golden.places(&case.name, layout, pipeline.model.info().layers, &seen)? {
        let Some(got) = seen.get(&(part, layer)) else {
            not_shown.push(key);
            continue;
        };
        let mut expected = golden.unpadded(&case.name, &key)?;
        if AFTER_ANSWER.contains(&&*key) {
            expected.truncate(got.len());
        }
        let mut stage = golden.compare_with(&case.name, &key, got, &expected, (tolerance(backend), dtype))?;
        if !stage.pass && golden.silent_of_rounding(&case.name, &key, dtype) {
            if own.is_none() {
                own = Some(rounding::measure(&mut cx, &pipeline, &prepared, &prompt, &seen)?);
            }
            let own = own.as_ref().and_then(|own| own.get(&(part, layer))).copied().unwrap_or_default();
            let limit = tolerance(backend) + own * DRIFT.0;
            stage = golden.compare_with(&case.name, &key, got, &expected, (limit, dtype))?;
        }
        stages.push(stage);
        compared += 1;
    }

    let params = SamplingParams {
        max_tokens: case.greedy_ids.len().max(1),
        ignore_eos: true,
        ..SamplingParams::default()
    };
    let media = features.into_iter().map(Media::from).collect();
    let request = Request { prompt, media, params };
    let answers = generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], |_, _| {
        std::ops::ControlFlow::Continue(())
    })?;
    let got = answers.into_iter().next().map(|answer| answer.token_ids).unwrap_or_default();
    let counted = match dtype {
        DType::F32 => case.greedy_ids.len(),
        _ => golden.firm_tokens(&case.name, "greedy_")?.min(case.greedy_ids.len()),
    };
    let greedy = got.get(..counted) == case.greedy_ids.get(..counted);
    Ok(CaseReport {
        name: case.name.clone(),
        pass: greedy && compared > 0 && stages.iter().all(|stage| stage.pass),
        stages,
        compared,
        not_shown,
        greedy: Greedy { expected: case.greedy_ids.clone(), got, counted },
    })
}

/// What a reference of a model with an encoder of text tells of.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    /// `inputs_embeds` and the text layers are the decoder's, which begins with `decoder_input_ids`.
    Decoder,
    /// They are the encoder's, and the decoder's are `decoder_layer_first`, `decoder_layer_last` and `logits_first8`, over the
    /// whole answer.
    Encoder,
}

impl Layout {
    fn of(case: &Case, prompt: &Prompt) -> Self {
        let alone = case.decoder_input_ids.is_none() && !prompt.source.tokens.is_empty();
        if alone { Self::Encoder } else { Self::Decoder }
    }
}

/// Tensors with a row for each token of the answer, of which the prompt's pass gives the first.
const AFTER_ANSWER: [&str; 3] = ["decoder_layer_first", "decoder_layer_last", "logits_first8"];

/// The part and layer whose values a reference's tensor `key` holds, with its place in the order of computation. `layers`: how many
/// layers the encoder and the decoder have.
fn stage_of(
    key: &str,
    layout: Layout,
    layers: (usize, usize),
) -> Option<(usize, &'static str, Option<usize>)> {
    let (encoder, decoder) = (layers.0.saturating_sub(1), layers.1.saturating_sub(1));
    let text = Stage::text_layer(0).part;
    Some(match (key, layout) {
        ("vision_last_hidden", _) => (0, Stage::TOWER.part, None),
        ("qformer_last_hidden", _) => (1, "qformer_last_hidden", None),
        ("image_features", _) => (2, Stage::FEATURES.part, None),
        ("inputs_embeds", Layout::Encoder) => (3, "encoder_embeds", None),
        ("text_layer_first", Layout::Encoder) => (4, "encoder_layer", Some(0)),
        ("text_layer_last", Layout::Encoder) => (5, "encoder_layer", Some(encoder)),
        ("question_hidden", _) => (6, "question_hidden", None),
        ("encoder_last_hidden", _) => (6, "encoder_last_hidden", None),
        ("inputs_embeds", _) => (7, Stage::EMBEDDINGS.part, None),
        ("text_layer_first", _) | ("decoder_layer_first", Layout::Encoder) => (8, text, Some(0)),
        ("text_layer_last", _) | ("decoder_layer_last", Layout::Encoder) => (9, text, Some(decoder)),
        ("logits_last8", _) | ("logits_first8", Layout::Encoder) => (10, Stage::LOGITS.part, None),
        _ => (6, "deepstack_features", Some(key.strip_prefix("deepstack_features_")?.parse().ok()?)),
    })
}

/// Tensors that are maps of places if they have four axes.
const MAPS: [&str; 2] = ["vision_last_hidden", "decoded"];

/// `[n, channels, places]` as `[n, places, channels]`.
fn channels_last(values: &[f32], channels: usize, places: usize) -> Vec<f32> {
    let maps = values.chunks_exact((channels * places).max(1));
    let rows = maps.flat_map(|map| (0..places).map(move |place| map.iter().skip(place).step_by(places)));
    rows.flatten().copied().collect()
}

impl Golden {
    /// The tensors of a case that are stages of a model, in the order of computation.
    fn stages(&self, case: &str, layout: Layout, decoder: usize, seen: &Values) -> Vec<Place> {
        let layers = (seen.keys().filter(|(part, _)| *part == "encoder_layer").count(), decoder);
        let keys = self.0.names().filter_map(|name| name.strip_prefix(case)?.strip_prefix('.'));
        let mut stages: Vec<_> = keys
            .filter_map(|key| stage_of(key, layout, layers).map(|stage| (stage, key.to_owned())))
            .collect();
        stages.sort();
        stages.into_iter().map(|((_, part, layer), key)| (key, part, layer)).collect()
    }

    /// As [`stages`](Self::stages), where pictures have features for several layers and those of the first are no tensor of their own:
    /// then `image_features` repeats one of `deepstack_features_0`, `_1`, ..., and the one that the model does not show is what image
    /// tokens become.
    fn places(&self, case: &str, layout: Layout, decoder: usize, seen: &Values) -> Result<Vec<Place>> {
        let mut places = self.stages(case, layout, decoder, seen);
        let deep = |place: &Place| place.1 == "deepstack_features";
        let mut hidden =
            places.iter_mut().filter(|place| deep(place) && !seen.contains_key(&(place.1, place.2)));
        if let (Some(first), None) = (hidden.next(), hidden.next()) {
            (first.1, first.2) = (Stage::FEATURES.part, None);
            let features = self.floats(case, "image_features")?;
            let mut same = None;
            for place in places.iter().filter(|place| place.0.starts_with("deepstack_features")) {
                if self.floats(case, &place.0)? == features {
                    same = Some((place.1, place.2));
                }
            }
            if let (Some(same), Some(place)) =
                (same, places.iter_mut().find(|place| place.0 == "image_features"))
            {
                (place.1, place.2) = same;
            }
        }
        Ok(places)
    }

    /// `pixel_values`; patches of all tiles side by side, `[1, 3, patch, patches * patch]` where there are `target_sizes`, one
    /// after the other.
    fn pixels(&self, case: &str) -> Result<Vec<f32>> {
        let (values, key) = (self.floats(case, "pixel_values")?, format!("{case}.pixel_values"));
        let shape = self.0.info(&key).map(|info| info.shape);
        match shape {
            Some([1, channels, patch, width]) if self.has(case, "target_sizes") && *patch > 0 => {
                let (channels, patch, width) = (*channels, *patch, *width);
                let of_patch = |first: usize| {
                    let lines = (0..channels * patch).map(move |line| line * width + first);
                    lines.flat_map(move |start| start..start + patch)
                };
                let places = (0..width / patch).flat_map(|number| of_patch(number * patch));
                Ok(places.map(|place| values[place]).collect())
            }
            _ => Ok(values),
        }
    }

    /// Whether the reference does not tell how coarsely it rounds a stage in f32.
    fn silent_of_rounding(&self, case: &str, key: &str, dtype: DType) -> bool {
        dtype == DType::F32 && !self.has(case, &format!("{key}.f32_drift"))
    }

    /// A tensor; of a tower's result without the patches that the reference fills tiles up with, `pixel_attention_mask [tiles,
    /// patches]`. Maps `[tiles, channels, height, width]`, as convolutions have them, become rows of places.
    fn unpadded(&self, case: &str, key: &str) -> Result<Vec<f32>> {
        let (values, mask) = (self.floats(case, key)?, "pixel_attention_mask");
        let shape = |key: &str| self.0.info(&format!("{case}.{key}")).map(|info| info.shape);
        if let (Some([_, channels, height, width]), true) = (shape(key), MAPS.contains(&key)) {
            return Ok(channels_last(&values, *channels, height * width));
        }
        let (Some([tiles, patches, d]), Some([rows, cols])) = (shape(key), shape(mask)) else {
            return Ok(values);
        };
        if key != "vision_last_hidden" || (tiles, patches) != (rows, cols) {
            return Ok(values);
        }
        let rows = values.chunks((*d).max(1)).zip(self.ints(case, mask)?);
        Ok(rows.filter(|(_, kept)| *kept != 0).flat_map(|(row, _)| row.iter().copied()).collect())
    }

    fn compare(
        &self,
        case: &str,
        key: &str,
        got: &[f32],
        backend: Backend,
        dtype: DType,
    ) -> Result<StageReport> {
        self.compare_with(case, key, got, &self.unpadded(case, key)?, (tolerance(backend), dtype))
    }

    /// As [`compare`](Self::compare) with some of the values, and another bound for f32.
    fn compare_with(
        &self,
        case: &str,
        key: &str,
        got: &[f32],
        expected: &[f32],
        (tolerance, dtype): (f64, DType),
    ) -> Result<StageReport> {
        let max_abs = largest(got, expected);
        let mut note = (got.len() != expected.len())
            .then(|| format!("expected {} values, found {}", expected.len(), got.len()));
        let (mut limit, mut mean) = (tolerance, None);
        let rounding = format!("{key}.f32_drift");
        if dtype == DType::F32 && self.has(case, &rounding) {
            limit += self.floats(case, &rounding)?.first().map_or(0.0, |&max| f64::from(max)) * DRIFT.0;
        }
        if dtype != DType::F32 {
            let name = format!("{key}.bf16_drift");
            let drift = if self.has(case, &name) { self.floats(case, &name)? } else { Vec::new() };
            match drift[..] {
                [max, average] => {
                    // A stage that the reference's run does not change, as the embeddings of 16-bit weights, is held to f32's bound.
                    limit += f64::from(max) * DRIFT.0;
                    let most = tolerance + f64::from(average) * mean_drift(got.len());
                    mean = Some((average_of(got, expected), most));
                }
                _ => {
                    limit = 0.0;
                    note = Some(
                        "the reference does not tell its 16-bit drift; make it again with make.py".into(),
                    );
                }
            }
        }
        let within = max_abs <= limit && mean.is_none_or(|(mean, limit)| mean <= limit);
        Ok(StageReport {
            name: key.to_owned(),
            max_abs,
            tolerance: limit,
            mean,
            pass: note.is_none() && within,
            note,
        })
    }

    /// Greedy tokens before the first that the reference's own 16-bit run can flip: whose margin is no more than twice the largest
    /// difference of its logits. `prefix` is that of the names of both.
    fn firm_tokens(&self, case: &str, prefix: &str) -> Result<usize> {
        let [margins, drift] = ["margins", "drift"].map(|name| format!("{prefix}{name}"));
        if !self.has(case, &margins) || !self.has(case, &drift) {
            return Ok(0);
        }
        let (margins, drift) = (self.floats(case, &margins)?, self.floats(case, &drift)?);
        Ok(margins.iter().zip(&drift).take_while(|(margin, drift)| **margin > 2.0 * **drift).count())
    }

    fn ints(&self, case: &str, key: &str) -> Result<Vec<i64>> {
        Ok(self.0.ints(&format!("{case}.{key}"))?)
    }
}

/// The mean difference; infinite where one is not a number.
fn average_of(got: &[f32], expected: &[f32]) -> f64 {
    let sum: f64 = got.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).sum();
    let mean = sum / got.len().min(expected.len()).max(1) as f64;
    if mean.is_nan() { f64::INFINITY } else { mean }
}

fn compare_positions(prompt: &Prompt, expected: &[i64]) -> StageReport {
    let axes = (expected.len() / prompt.len().max(1)).clamp(1, 3);
    let got: Vec<i64> = (0..axes)
        .flat_map(|axis| (0..prompt.len()).map(move |token| i64::from(prompt.position(token)[axis])))
        .collect();
    compare_ids("position_ids", &got, expected)
}

/// The largest difference; infinite where one is not a number.
fn largest(got: &[f32], expected: &[f32]) -> f64 {
    got.iter().zip(expected).fold(0.0, |most: f64, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        if difference.is_nan() { f64::INFINITY } else { most.max(difference) }
    })
}

fn compare_ids<T: PartialEq>(name: &str, got: &[T], expected: &[T]) -> StageReport {
    let differing =
        got.iter().zip(expected).filter(|(a, b)| a != b).count() + got.len().abs_diff(expected.len());
    let note = (got.len() != expected.len())
        .then(|| format!("expected {} ids, found {}", expected.len(), got.len()));
    let (max_abs, pass) = (differing as f64, differing == 0);
    StageReport { name: name.into(), max_abs, tolerance: 0.0, mean: None, pass, note }
}

/// The stored values less those that fill pictures up to the size of the largest: tiles that are not there at the end of a picture
/// of `[pictures, tiles, 3, h, w]`, rows and columns of one of `[pictures, 3, h, w]`.
fn without_padding(
    processor: &dyn Processor,
    prepared: &[PreparedImage],
    shape: &[usize],
    stored: Vec<f32>,
) -> Vec<f32> {
    // All pictures may be one sample's.
    let shape = match shape {
        [1, rest @ ..] if rest.first() == Some(&prepared.len()) => rest,
        _ => shape,
    };
    if shape.first() != Some(&prepared.len()) || prepared.is_empty() {
        return stored;
    }
    let each = stored.len() / prepared.len();
    let mut kept = Vec::with_capacity(stored.len());
    for (image, values) in prepared.iter().zip(stored.chunks_exact(each.max(1))) {
        match (shape, &image.tiles[..]) {
            (&[_, 3, height, width], [tile]) if tile.height <= height && tile.width <= width => {
                for channel in values.chunks_exact(height * width) {
                    let rows = channel.chunks_exact(width).take(tile.height);
                    kept.extend(rows.flat_map(|row| row.iter().take(tile.width)));
                }
            }
            _ => kept.extend(values.iter().take(processor.pixel_values(image).len())),
        }
    }
    kept
}

fn compare_pixels(processor: &dyn Processor, prepared: &[PreparedImage], stored: &[f32]) -> StageReport {
    let own: Vec<f32> = prepared.iter().flat_map(|image| processor.pixel_values(image)).collect();
    let std = prepared.first().map_or(1.0, |image| f64::from(image.normalize.std[0].abs()));
    let max_abs = largest(&own, stored) * std;
    let off =
        own.iter().zip(stored).filter(|(a, b)| (f64::from(**a) - f64::from(**b)).abs() * std > 0.5).count();
    let share = off as f64 / stored.len().max(1) as f64;
    let note = if own.len() == stored.len() {
        (off > 0).then(|| format!("{:.2}% of values differ", share * 100.0))
    } else {
        Some(format!("expected {} values, found {}", stored.len(), own.len()))
    };
    // One level, with room for the rounding of the normalized values themselves.
    let pass = own.len() == stored.len() && max_abs <= 1.01 && share <= PIXEL_SHARE;
    StageReport { name: "pixels".into(), max_abs, tolerance: 1.01, mean: None, pass, note }
}

fn with_stored_pixels(
    processor: &dyn Processor,
    prepared: Vec<PreparedImage>,
    stored: &[f32],
) -> Result<Vec<PreparedImage>> {
    let mut rest = stored;
    let mut all = Vec::with_capacity(prepared.len());
    for image in prepared {
        let len = processor.pixel_values(&image).len();
        let replaced = rest.split_at_checked(len).and_then(|(own, after)| {
            rest = after;
            processor.with_pixel_values(&image, own)
        });
        all.push(replaced.ok_or_else(|| {
            Error::Request(format!("pixel_values: expected at least {len} more values, found {}", rest.len()))
        })?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A reference with numbers of two levels.
    fn of_levels(dtype: &str, numbers: &[u8]) -> Golden {
        let (end, count) = (8 + numbers.len(), numbers.len());
        let header = format!(
            r#"{{"a.pixel_values.levels":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"a.pixel_values":{{"dtype":"{dtype}","shape":[{count}],"data_offsets":[8,{end}]}}}}"#
        );
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.bytes());
        bytes.extend([-0.5f32, 0.25].iter().flat_map(|level| level.to_le_bytes()));
        bytes.extend(numbers);
        Golden(TensorFile::in_memory("golden.safetensors", Arc::from(bytes)).expect("a file"))
    }

    #[test]
    fn numbers_of_levels() {
        let found = of_levels("U8", &[1, 0, 1]).floats("a", "pixel_values").expect("values");
        assert_eq!(found, [0.25, -0.5, 0.25]);
        let error = |golden: Golden| golden.floats("a", "pixel_values").expect_err("no values").to_string();
        assert!(error(of_levels("U8", &[0, 2])).contains("one of its 2 levels"));
        assert!(error(of_levels("I8", &[0, 1])).contains("expected U8 or U16"));
    }
}
