//! Benchmark of a whole model: time to encode a picture, tokens a second of prompt and of answer.

use std::ops::ControlFlow;
use std::time::Instant;

use ocelli_engine::image::Rgb8Image;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Request, generate};
use ocelli_engine::text::Message;
use ocelli_engine::{Ctx, Error, OpTime, Phase, Pipeline, Prompt, Result, Timings};
use serde::{Deserialize, Serialize};

use crate::machine::{Disturbed, Watch, energy_joules};

/// What the model is asked.
#[derive(Clone, Debug)]
pub enum Asked {
    /// About pictures.
    Pictures {
        /// The pictures of each request that is answered at once; those of two requests differ, or they are encoded once.
        requests: Vec<Vec<Rgb8Image>>,
        /// The prompt.
        prompt: String,
        /// Tokens that the prompt is filled up to with made-up ones; 0 leaves it as it is.
        depth: usize,
    },
    /// So many made-up tokens of text.
    Tokens(usize),
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the model is asked.
    pub asked: Asked,
    /// Tokens of the answer; the model's own end tokens do not end it.
    pub max_tokens: usize,
    /// Runs that count, after one that does not.
    pub runs: usize,
    /// Whether one more run times each op.
    pub ops: bool,
}

/// Half of the runs, a fifth and four fifths of them gave no more than this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// The median.
    pub median: f64,
    /// The 20th percentile.
    pub p20: f64,
    /// The 80th percentile.
    pub p80: f64,
}

impl Quantiles {
    /// Of these values, in any order; zeros without any.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * values.len().saturating_sub(1) as f64).round() as usize;
            values.get(index).copied().unwrap_or(0.0)
        };
        Self { median: at(0.5), p20: at(0.2), p80: at(0.8) }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ModelReport {
    /// Runs that count.
    pub runs: usize,
    /// Requests of a run, answered together.
    pub batch: usize,
    /// Pictures of a request.
    pub images: usize,
    /// Tiles of the pictures of a run.
    pub tiles: usize,
    /// Tokens of the prompts of a run, those of pictures included.
    pub prompt_tokens: usize,
    /// Tokens made by the decode steps of a run.
    pub decode_tokens: usize,
    /// Milliseconds to resize and tile the pictures of a run.
    pub resize_ms: Quantiles,
    /// Milliseconds of tower and connector.
    pub encode_ms: Quantiles,
    /// The tower's part of them.
    pub tower_ms: Quantiles,
    /// The connector's.
    pub connector_ms: Quantiles,
    /// Milliseconds until the first token of each request is there: resize, encode and prefill of all.
    pub first_token_ms: Quantiles,
    /// Pictures a second, answers included; absent without any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures_per_s: Option<Quantiles>,
    /// Tokens of the prompt a second, the tower's time left out.
    pub prefill_tokens_per_s: Quantiles,
    /// Tokens of the answer a second, after the first.
    pub decode_tokens_per_s: Quantiles,
    /// Share of the decode steps in which the host prepared work for a device beside it; 0 where the host does the work.
    pub decode_encode_share: Quantiles,
    /// Bytes of weights as stored.
    pub weight_bytes: u64,
    /// Most bytes of activations at once.
    pub activation_bytes: u64,
    /// Most bytes of activations that tower and connector take at once.
    pub encode_activation_bytes: u64,
    /// Joules of a run, of the machine's processors, where the system tells them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joules: Option<Quantiles>,
    /// What else happened on the machine.
    pub disturbed: Disturbed,
    /// Time of each op in a run of its own, the longest of each stage first; empty unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ops: Vec<OpTime>,
    /// Milliseconds of the stages of that run that are outside its ops.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outside_ops_ms: Vec<(Phase, f64)>,
}

/// Asks the model again and again. `progress` is told the number of each run as it is done, and
/// may end the benchmark.
///
/// # Errors
/// As a run of the model, and [`Error::Cancelled`].
pub fn measure(
    cx: &mut Ctx,
    pipeline: &Pipeline,
    options: &Options,
    progress: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<ModelReport> {
    let params =
        SamplingParams { max_tokens: options.max_tokens, ignore_eos: true, ..SamplingParams::default() };
    let mut all = Vec::with_capacity(options.runs);
    let (mut joules, mut encode_activation_bytes) = (Vec::new(), 0);
    if let Asked::Pictures { requests, .. } = &options.asked {
        // The tower comes first: what is at its peak now is its own.
        for images in requests.iter().take(1) {
            let prepared = pipeline.prepare(images)?;
            pipeline.encode(cx, &prepared)?;
        }
        encode_activation_bytes = cx.peak_activations() as u64;
    }
    let watch = Watch::begin();
    for run in 0..=options.runs {
        cx.timings = Timings::default();
        let (begin, energy) = (Instant::now(), energy_joules());
        let requests = requests(cx, pipeline, &options.asked, &params)?;
        generate(cx, &pipeline.model, &pipeline.tokenizer, requests, |_, _| ControlFlow::Continue(()))?;
        if run > 0 {
            all.push((cx.timings, begin.elapsed().as_secs_f64()));
            let spent = energy_joules().zip(energy).map(|(now, before)| now - before);
            // A counter that wrapped says nothing.
            joules.extend(spent.filter(|spent| *spent >= 0.0));
        }
        if progress(run).is_break() {
            return Err(Error::Cancelled);
        }
    }
    let (mut ops, mut outside_ops_ms) = (Vec::new(), Vec::new());
    if options.ops {
        cx.timings = Timings::default();
        let requests = requests(cx, pipeline, &options.asked, &params)?;
        cx.trace(true);
        let done =
            generate(cx, &pipeline.model, &pipeline.tokenizer, requests, |_, _| ControlFlow::Continue(()));
        ops = cx.trace(false).unwrap_or_default().rows();
        done?;
        let t = cx.timings;
        for (phase, ms) in [
            (Phase::Tower, t.tower_ms),
            (Phase::Connector, t.connector_ms),
            (Phase::Prefill, t.prefill_ms),
            (Phase::Decode, t.decode_ms),
        ] {
            let inside: f64 = ops.iter().filter(|row| row.phase == phase).map(|row| row.ms).sum();
            outside_ops_ms.push((phase, ms - inside));
        }
    }
    let disturbed = watch.end();
    let last = all.last().map(|(timings, _)| *timings).unwrap_or_default();
    let over = |value: fn(&Timings) -> f64| Quantiles::of(all.iter().map(|(t, _)| value(t)).collect());
    let (batch, images) = match &options.asked {
        Asked::Pictures { requests, .. } => (requests.len(), requests.first().map_or(0, Vec::len)),
        Asked::Tokens(_) => (1, 0),
    };
    let pictures = (images * batch) as f64;
    let pictures_per_s =
        (images > 0).then(|| Quantiles::of(all.iter().map(|(_, seconds)| pictures / seconds).collect()));
    Ok(ModelReport {
        runs: options.runs,
        batch,
        images,
        tiles: last.tiles,
        prompt_tokens: last.prefill_tokens,
        decode_tokens: last.decode_tokens,
        resize_ms: over(|t| t.resize_ms),
        encode_ms: over(|t| t.tower_ms + t.connector_ms),
        tower_ms: over(|t| t.tower_ms),
        connector_ms: over(|t| t.connector_ms),
        pictures_per_s,
        weight_bytes: pipeline.model.parts().iter().map(|part| part.bytes).sum(),
        activation_bytes: cx.peak_activations() as u64,
        encode_activation_bytes,
        joules: (joules.len() == options.runs).then(|| Quantiles::of(joules)),
        disturbed,
        first_token_ms: over(|t| t.resize_ms + t.tower_ms + t.connector_ms + t.prefill_ms),
        prefill_tokens_per_s: over(Timings::prefill_rate),
        decode_tokens_per_s: over(Timings::decode_rate),
        decode_encode_share: over(Timings::encode_share),
        ops,
        outside_ops_ms,
    })
}

fn requests(
    cx: &mut Ctx,
    pipeline: &Pipeline,
    asked: &Asked,
    params: &SamplingParams,
) -> Result<Vec<Request>> {
    let info = pipeline.model.info();
    let (vocab, limit) = (info.vocab as u64, info.max_positions.saturating_sub(1));
    let (Asked::Pictures { depth: found, .. } | Asked::Tokens(found)) = *asked;
    if found > limit {
        return Err(Error::PromptTooLong { limit, found });
    }
    // The same ones each time, all over the vocabulary.
    let made_up = |token: usize| (token as u64 * 7919 % vocab) as u32;
    match asked {
        Asked::Pictures { requests, prompt, depth } => {
            let each = requests.iter().map(|images| {
                let messages = [Message::user(images.len(), prompt.clone())];
                let ask = || pipeline.request(&messages, images, params.clone());
                let mut request = cx.timings.measure(Phase::Resize, ask)?;
                let len = request.prompt.len();
                request.prompt.append((len..*depth).map(made_up));
                Ok(request)
            });
            each.collect()
        }
        Asked::Tokens(count) => {
            let prompt = Prompt::text((0..*count).map(made_up).collect());
            Ok(vec![Request { prompt, media: Vec::new(), params: params.clone() }])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Quantiles;

    #[test]
    fn quantiles_of_few_values() {
        assert_eq!(Quantiles::of(vec![]), Quantiles::default());
        let q = Quantiles::of(vec![5.0, 1.0, 3.0, 4.0, 2.0]);
        assert_eq!((q.p20, q.median, q.p80), (2.0, 3.0, 4.0));
        let one = Quantiles::of(vec![7.0]);
        assert_eq!((one.p20, one.median, one.p80), (7.0, 7.0, 7.0));
    }
}
