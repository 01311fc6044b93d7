//! From messages and pictures to requests: what a command needs around a [`Vlm`].

use std::ops::ControlFlow;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::generate::{Request, generate};
use crate::image::{PreparedImage, Rgb8Image};
use crate::sample::SamplingParams;
use crate::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use crate::timing::Phase;
use crate::vlm::Vlm;

/// A model with its tokenizer and chat template.
pub struct Pipeline {
    /// The model.
    pub model: Box<dyn Vlm>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Threads that prepare pictures.
    pub threads: usize,
}

impl Pipeline {
    /// Loads tokenizer and template of a model.
    pub fn new(files: &ModelFiles, model: Box<dyn Vlm>, threads: usize) -> Result<Self> {
        let tokenizer = Tokenizer::load(files)?;
        let vocab = model.info().vocab;
        if tokenizer.vocab_size() > vocab {
            tracing::debug!(
                tokenizer = tokenizer.vocab_size(),
                model = vocab,
                "the tokenizer knows more tokens"
            );
        }
        let template = ChatTemplate::load(files, &tokenizer)?;
        Ok(Self { model, tokenizer, template, threads })
    }

    /// The prompt of a conversation, pictures still marked by one token each. A model without a chat template gets the
    /// texts of the messages as they are.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        match &self.template {
            Some(template) => Ok(template.render(messages, &RenderOptions::default())?),
            None => {
                let token = self.tokenizer.id_to_token(self.model.info().image_token).unwrap_or_default();
                Ok(messages.iter().map(|message| message.content.plain(&token)).collect())
            }
        }
    }

    /// Resizes and tiles pictures.
    pub fn prepare(&self, cx: &mut Ctx, images: &[Rgb8Image]) -> Result<Vec<PreparedImage>> {
        let start = std::time::Instant::now();
        let prepared = images.iter().map(|image| self.model.prepare(image, self.threads)).collect();
        cx.timings.add(Phase::Resize, start.elapsed());
        prepared
    }

    /// Token ids of a rendered prompt, each picture's place filled.
    pub fn tokenize(&self, prompt: &str, images: &[PreparedImage]) -> Result<Vec<u32>> {
        let expanded = self.model.expand_prompt(prompt, images)?;
        Ok(self.tokenizer.encode(&expanded)?)
    }

    /// A conversation about pictures as a request; runs the tower.
    pub fn request(
        &self,
        cx: &mut Ctx,
        messages: &[Message],
        images: &[Rgb8Image],
        params: SamplingParams,
    ) -> Result<Request> {
        params.validate()?;
        let places: usize = messages.iter().map(Message::images).sum();
        if places != images.len() {
            return Err(Error::Request(format!(
                "messages: expected places for {} pictures, found {places}",
                images.len()
            )));
        }
        let prepared = self.prepare(cx, images)?;
        let prompt = self.tokenize(&self.render(messages)?, &prepared)?;
        let limit = self.model.info().max_positions;
        if prompt.len() >= limit {
            return Err(Error::Request(format!(
                "prompt: expected at most {} tokens, found {}",
                limit - 1,
                prompt.len()
            )));
        }
        let images = self.model.encode_images(cx, &prepared)?;
        Ok(Request { prompt, images, params })
    }

    /// The first steps of requests about the same pictures and messages, one for each of `params`, answered together. On a
    /// device that computes nothing this asks for the kernels that such requests need.
    pub fn rehearse(
        &self,
        cx: &mut Ctx,
        messages: &[Message],
        images: &[Rgb8Image],
        params: &[SamplingParams],
    ) -> Result<()> {
        // A first token, a step, and a step that may be recorded.
        let steps = |params: &SamplingParams| SamplingParams {
            max_tokens: params.max_tokens.min(3),
            ignore_eos: true,
            stop: vec![],
            ..params.clone()
        };
        let requests: Result<Vec<_>> =
            params.iter().map(|params| self.request(cx, messages, images, steps(params))).collect();
        generate(cx, &*self.model, &self.tokenizer, requests?, |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }
}
