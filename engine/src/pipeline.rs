//! From messages and pictures to requests: what a command needs around a [`Vlm`].

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::{PreparedImage, Rgb8Image};
use crate::prompt::{Features, Prompt};
use crate::regions::Regions;
use crate::sample::SamplingParams;
use crate::scheduler::{Media, Request, generate};
use crate::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use crate::timing::Phase;
use crate::vlm::{Gives, Loaded, Model, Processor, Vlm};

/// A model with its processor, tokenizer and chat template.
pub struct Pipeline {
    /// The model.
    pub model: Arc<dyn Vlm>,
    /// What lays requests out for it.
    pub processor: Box<dyn Processor>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Threads that prepare pictures.
    pub threads: usize,
    /// How the chat template is rendered.
    pub options: RenderOptions,
}

impl Pipeline {
    /// Loads tokenizer and template of a model. Errors if the model gives no answers.
    pub fn new(files: &ModelFiles, loaded: Loaded, threads: usize) -> Result<Self> {
        let Model::Vlm(model) = loaded.model else {
            return Err(Error::other_kind(files, &loaded.model, Gives::Answers));
        };
        let tokenizer = Tokenizer::load(files)?;
        let vocab = model.info().embedded;
        if tokenizer.vocab_size() > vocab {
            tracing::debug!(
                tokenizer = tokenizer.vocab_size(),
                model = vocab,
                "the tokenizer knows more tokens"
            );
        }
        let template = ChatTemplate::load(files, &tokenizer)?;
        let options = RenderOptions::default();
        Ok(Self { model, processor: loaded.processor, tokenizer, template, threads, options })
    }

    /// The prompt of a conversation, pictures still marked by one token each. A model without a chat template gets the
    /// texts of the messages as they are.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        match &self.template {
            Some(template) => Ok(template.render(messages, &self.options)?),
            None => {
                let mark = self.processor.image_mark();
                Ok(messages.iter().map(|message| message.content.plain(mark)).collect())
            }
        }
    }

    /// Resizes and tiles pictures.
    pub fn prepare(&self, cx: &mut Ctx, images: &[Rgb8Image]) -> Result<Vec<PreparedImage>> {
        let start = std::time::Instant::now();
        let prepared = self.processor.prepare_all(images, self.threads);
        cx.timings.add(Phase::Resize, start.elapsed());
        prepared
    }

    /// Tokens of a conversation with the places of its pictures' features.
    pub fn lay_out(&self, messages: &[Message], images: &[&PreparedImage]) -> Result<Prompt> {
        let places: usize = messages.iter().map(Message::images).sum();
        if places != images.len() {
            return Err(Error::Request(format!(
                "messages: expected places for {} pictures, found {places}",
                images.len()
            )));
        }
        let prompt = self.processor.lay_out(&self.render(messages)?, images, &self.tokenizer)?;
        let info = self.model.info();
        if prompt.len() >= info.max_positions {
            return Err(Error::PromptTooLong { limit: info.max_positions - 1, found: prompt.len() });
        }
        prompt.check(images.len(), info.embedded)?;
        Ok(prompt)
    }

    /// A conversation about pictures as a request.
    pub fn request(
        &self,
        cx: &mut Ctx,
        messages: &[Message],
        images: &[Rgb8Image],
        params: SamplingParams,
    ) -> Result<Request> {
        params.validate()?;
        let prepared = self.prepare(cx, images)?;
        let prompt = self.lay_out(messages, &prepared.iter().collect::<Vec<_>>())?;
        let media = prepared.into_iter().map(|image| Media::Picture(Arc::new(image))).collect();
        Ok(Request { prompt, media, params })
    }

    /// What an answer says of places in a picture of `(width, height)`, of models whose answers name such.
    pub fn regions(
        &self,
        messages: &[Message],
        answer: &[u32],
        size: (usize, usize),
    ) -> Result<Option<Regions>> {
        self.processor.regions(&self.render(messages)?, answer, size, &self.tokenizer)
    }

    /// Features of pictures, by the tower.
    pub fn encode(&self, cx: &mut Ctx, images: &[PreparedImage]) -> Result<Vec<Features>> {
        self.model.encode(cx, &images.iter().collect::<Vec<_>>())
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
        generate(cx, &self.model, &self.tokenizer, requests?, |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }
}
