//! Conversations as tokens with the answers that are learnt.

use std::sync::Arc;

use ocelli_engine::image::{DecodeOptions, PreparedImage};
use ocelli_engine::text::Message;
use ocelli_engine::{Error, Pipeline, Prompt, Result};

use crate::data::TrainRow;

/// A token without a loss.
pub const IGNORED: i32 = -100;

/// One conversation.
#[derive(Clone)]
pub struct Example {
    /// All its tokens, those of answers included, with the places of pictures.
    pub prompt: Prompt,
    /// Its pictures.
    pub pictures: Vec<Arc<PreparedImage>>,
    /// For each token the one after it, if that is learnt, else [`IGNORED`].
    pub labels: Vec<i32>,
}

impl Example {
    /// An example of tokens, of which those where `learnt` is true are learnt from what is before them.
    ///
    /// # Errors
    /// If nothing is learnt.
    pub fn new(prompt: Prompt, pictures: Vec<Arc<PreparedImage>>, learnt: &[bool]) -> Result<Self> {
        let next = prompt.tokens.iter().zip(learnt).skip(1);
        let mut labels: Vec<i32> =
            next.map(|(&token, &learnt)| if learnt { token as i32 } else { IGNORED }).collect();
        labels.push(IGNORED);
        if labels.iter().all(|&label| label == IGNORED) {
            return Err(Error::Train("expected an answer with at least one token, found none".into()));
        }
        Ok(Self { prompt, pictures, labels })
    }

    /// Tokens that are learnt.
    #[must_use]
    pub fn learnt(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }

    /// The first token that one which is learnt follows: logits are wanted from there on.
    #[must_use]
    pub fn first(&self) -> usize {
        self.labels.iter().position(|&label| label != IGNORED).unwrap_or(self.labels.len())
    }
}

/// Makes examples of conversations.
pub struct Batcher<'a> {
    /// The model's processor, tokenizer and template.
    pub pipeline: &'a Pipeline,
    /// Most tokens of an example.
    pub max_tokens: usize,
}

impl Batcher<'_> {
    /// A row: its pictures read and resized, its conversation laid out.
    ///
    /// # Errors
    /// If a picture cannot be read, or as [`example`](Self::example).
    pub fn row(&self, row: &TrainRow) -> Result<Example> {
        let images: Vec<_> = row
            .pictures
            .iter()
            .map(|picture| picture.decode(&DecodeOptions::default()))
            .collect::<Result<_, _>>()?;
        let prepared: Vec<Arc<PreparedImage>> = images
            .iter()
            .map(|image| self.pipeline.processor.prepare_one_of(image, images.len(), 1).map(Arc::new))
            .collect::<Result<_>>()?;
        self.example(&row.messages, prepared)
    }

    /// A conversation, whose messages of the assistant are learnt: what the chat template writes for each of them after the header
    /// of an answer, the end of the turn included. Without a template it is their texts, and the end token.
    ///
    /// # Errors
    /// If the conversation cannot be laid out, has no answer, or has more tokens than the model or `max_tokens` allow.
    pub fn example(&self, messages: &[Message], pictures: Vec<Arc<PreparedImage>>) -> Result<Example> {
        let shown: Vec<&PreparedImage> = pictures.iter().map(|picture| &**picture).collect();
        let tokens = |text: &str| self.pipeline.processor.lay_out(text, &shown, &self.pipeline.tokenizer);
        let whole_text = self.render(messages, false)?;
        let whole = tokens(&whole_text)?;
        let limit = self.max_tokens.min(self.pipeline.model.info().max_positions);
        if whole.len() > limit {
            return Err(Error::PromptTooLong { limit, found: whole.len() });
        }
        whole.check(pictures.len(), self.pipeline.model.info().embedded)?;
        let mut learnt = vec![false; whole.len()];
        for (at, message) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            // What is before a picture has fewer of them: such beginnings are compared as texts alone.
            let (before, after) =
                (self.render(&messages[..at], true)?, self.render(&messages[..=at], false)?);
            let (from, to) = (
                self.place(&whole_text, &whole, &before, &tokens)?,
                self.place(&whole_text, &whole, &after, &tokens)?,
            );
            if from >= to {
                return Err(Error::Train(format!(
                    "messages[{at}]: expected an answer, found no token of one"
                )));
            }
            learnt[from..to].fill(true);
            let _ = message;
        }
        Example::new(whole, pictures, &learnt)
    }

    fn render(&self, messages: &[Message], answer: bool) -> Result<String> {
        let mut options = self.pipeline.options.clone();
        options.add_generation_prompt = answer;
        self.pipeline.render_with(messages, &options)
    }

    /// How many tokens a beginning of the text has.
    fn place(
        &self,
        text: &str,
        whole: &Prompt,
        beginning: &str,
        tokens: &dyn Fn(&str) -> Result<Prompt>,
    ) -> Result<usize> {
        if !text.starts_with(beginning) {
            return Err(Error::Train(
                "the chat template writes a conversation otherwise once it goes on: answers cannot be told from it".into(),
            ));
        }
        if beginning.len() == text.len() {
            return Ok(whole.len());
        }
        let part = tokens(beginning)?.tokens;
        if whole.tokens.starts_with(&part) {
            return Ok(part.len());
        }
        // The last tokens of the beginning and the first ones after it may have become others together.
        Ok(part.iter().zip(&whole.tokens).take_while(|(a, b)| a == b).count())
    }
}
