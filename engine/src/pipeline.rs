//! From messages and pictures to requests: what a command needs around a [`Vlm`].

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use crate::ctx::Ctx;
use crate::drawing::{DrawingParams, Guide};
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::image::{PreparedImage, Rgb8Image};
use crate::prompt::{Features, Prompt};
use crate::regions::Regions;
use crate::sample::{Form, Grammar, Grammars, SamplingParams};
use crate::scheduler::{Media, Picture, Request, generate};
use crate::shown::Shown;
use crate::text::{ChatTemplate, Message, RenderOptions, Tokenizer};
use crate::video::Video;
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
    /// How it draws, where it does and a request does not say.
    pub drawing: DrawingParams,
    /// What compiles forms of answers, once one is asked for.
    grammars: OnceLock<Result<Grammars, String>>,
}

impl Pipeline {
    /// Loads tokenizer and template of a model. Errors if the model gives no answers.
    pub fn new(files: &ModelFiles, loaded: Loaded, threads: usize) -> Result<Self> {
        let Model::Vlm(model) = loaded.model else {
            return Err(Error::other_kind(files, &loaded.model, Gives::Answers));
        };
        let tokenizer = loaded.tokenizer.wait()?.with_added(&loaded.processor.added_tokens())?;
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
        let drawing = match model.painter() {
            Some(_) => DrawingParams::of(files)?,
            None => DrawingParams::default(),
        };
        Ok(Self {
            model,
            processor: loaded.processor,
            tokenizer,
            template,
            threads,
            options,
            drawing,
            grammars: OnceLock::new(),
        })
    }

    /// The prompt of a conversation, pictures still marked by one token each. A model without a chat template gets the
    /// texts of the messages as they are.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        self.render_with(messages, &self.options)
    }

    /// As [`render`](Self::render), with options that are not its own.
    pub fn render_with(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        match &self.template {
            Some(template) => Ok(template.render(messages, options)?),
            None => {
                let mark = self.processor.image_mark();
                let video = self.processor.video().map_or("", |video| video.mark());
                Ok(messages.iter().map(|message| message.content.plain(mark, video)).collect())
            }
        }
    }

    /// Resizes and tiles pictures.
    pub fn prepare(&self, images: &[Rgb8Image]) -> Result<Vec<PreparedImage>> {
        self.processor.prepare_all(images, self.threads)
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
        self.laid_out(&self.render(messages)?, images)
    }

    /// Tokens of a rendered conversation.
    pub(crate) fn laid_out(&self, text: &str, images: &[&PreparedImage]) -> Result<Prompt> {
        let prompt = self.processor.lay_out(text, images, &self.tokenizer)?;
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
        messages: &[Message],
        images: &[Rgb8Image],
        params: SamplingParams,
    ) -> Result<Request> {
        self.request_with_videos(messages, images, &[], params)
    }

    /// As [`request`](Self::request), about pictures and videos: the messages place both in order. Errors if the family takes no videos.
    pub fn request_with_videos(
        &self,
        messages: &[Message],
        images: &[Rgb8Image],
        videos: &[Video],
        params: SamplingParams,
    ) -> Result<Request> {
        params.validate()?;
        let shown = self.shown(messages, images, videos)?;
        let pictures = self.prepare_shown(&shown, &|_, _| {})?;
        let prompt = self.lay_out_shown(messages, &shown, &pictures)?;
        let media = pictures.into_iter().map(Media::Picture).collect();
        Ok(Request { prompt, media, params })
    }

    /// Resizes and tiles a picture of a request that has `count`. Where these are several, `ready` is told of it: the tower can begin
    /// with it while the next is prepared (`Client::expect`).
    pub fn prepare_one_of(
        &self,
        image: &Rgb8Image,
        count: usize,
        ready: &dyn Fn(&Arc<Picture>),
    ) -> Result<Arc<Picture>> {
        let prepared = self.processor.prepare_one_of(image, count, self.threads)?;
        let picture = Arc::new(Picture::from(prepared));
        if count > 1 {
            ready(&picture);
        }
        Ok(picture)
    }

    /// A rendered conversation, or any text that is to go on, as a request; marks in it stand for the pictures. Where there are
    /// several, `ready` is told of each as soon as it is prepared: the tower can begin with it (`Client::expect`).
    pub fn request_rendered(
        &self,
        text: &str,
        images: &[Rgb8Image],
        params: SamplingParams,
        ready: &(dyn Fn(&Arc<Picture>) + Sync),
    ) -> Result<Request> {
        params.validate()?;
        let several = images.len() > 1;
        let pictures = self.prepare_shown(&Shown::of_images(images), &|_, picture| {
            if several {
                ready(picture);
            }
        })?;
        let prompt = self.laid_out(text, &pictures.iter().map(|picture| &***picture).collect::<Vec<_>>())?;
        let media = pictures.into_iter().map(Media::Picture).collect();
        Ok(Request { prompt, media, params })
    }

    /// Compiles a form of answers, for [`SamplingParams::grammar`]. The first one takes longer.
    ///
    /// # Errors
    /// What is wrong with the form, and if the model's tokens allow none.
    pub fn grammar(&self, form: &Form) -> Result<Grammar> {
        let made = || {
            Grammars::new(&self.tokenizer).map_err(|error| match error {
                Error::Grammar(why) => why,
                other => other.to_string(),
            })
        };
        let grammars = self.grammars.get_or_init(made);
        grammars.as_ref().map_err(|why| Error::Grammar(why.clone()))?.compile(form)
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

    /// What guides a drawing of what a prompt asks for. Errors if the family does not draw.
    pub fn guide(&self, prompt: &str) -> Result<Guide> {
        let family = self.model.info().family;
        let Some(processor) = self.processor.drawing() else {
            return Err(Error::Request(format!("models of family {family} do not draw")));
        };
        processor.lay_out(&self.render(&[Message::user(0, prompt)])?, &self.tokenizer)
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
            params.iter().map(|params| self.request(messages, images, steps(params))).collect();
        generate(cx, &self.model, &self.tokenizer, requests?, |_, _| ControlFlow::Continue(()))?;
        Ok(())
    }
}
