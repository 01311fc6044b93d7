//! How many rows the model answers as they say.

use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Media, Request, generate};
use ocelli_engine::{Ctx, Pipeline, Prompt, Result};

use crate::examples::Example;

/// The question of a row, and what is to be answered.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The conversation up to its last answer.
    pub prompt: Prompt,
    /// Pictures of the example that it shows: the first ones.
    pub pictures: usize,
    /// The answer's text.
    pub answer: String,
    /// Its tokens.
    pub tokens: usize,
}

/// Questions that are answered together.
const AT_ONCE: usize = 16;

/// Tokens that an answer may have beyond the expected ones: the end, and a space that is written otherwise.
const MORE: usize = 4;

/// The share of the examples with a question whose greedy answer is the expected text, white space around both aside; `None` where none
/// has one.
///
/// # Errors
/// If the model cannot answer.
pub fn exact(cx: &mut Ctx, pipeline: &Pipeline, examples: &[Example]) -> Result<Option<f64>> {
    let asked: Vec<(&Example, &Asked)> =
        examples.iter().filter_map(|example| Some((example, example.asked.as_deref()?))).collect();
    let mut right = 0;
    for some in asked.chunks(AT_ONCE) {
        let requests = some.iter().map(|(example, asked)| Request {
            prompt: asked.prompt.clone(),
            media: (example.pictures.iter().take(asked.pictures))
                .map(|picture| Media::from((**picture).clone()))
                .collect(),
            params: SamplingParams { max_tokens: asked.tokens + MORE, ..SamplingParams::default() },
        });
        let on_text = |_: usize, _: ocelli_engine::scheduler::Piece<'_>| std::ops::ControlFlow::Continue(());
        let answers = generate(cx, &pipeline.model, &pipeline.tokenizer, requests.collect(), on_text)?;
        let pairs = answers.iter().zip(some);
        right += pairs.filter(|(answer, (_, asked))| answer.text.trim() == asked.answer.trim()).count();
    }
    Ok((!asked.is_empty()).then(|| right as f64 / asked.len() as f64))
}
