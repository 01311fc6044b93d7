//! Conversations as tokens with the answers that are learnt.

use std::sync::Arc;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::text::Message;
use ocelli_engine::{Error, Pipeline, Prompt, Result};

use crate::augment::{Augment, prepared};
use crate::data::TrainRow;
use crate::exact::Asked;
use crate::learner::Draw;

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
    /// What is asked, of rows for validation whose answers are held against their texts.
    pub asked: Option<Arc<Asked>>,
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
        Ok(Self { prompt, pictures, labels, asked: None })
    }

    /// Tokens that are learnt.
    #[must_use]
    pub fn learnt(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }

    /// The tokens that are learnt, in order.
    pub fn right_tokens(&self) -> impl Iterator<Item = i32> + '_ {
        self.labels.iter().copied().filter(|&label| label != IGNORED)
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
    /// Whether rows for validation come with their questions.
    pub asks: bool,
}

impl Batcher<'_> {
    /// A row: its pictures read, changed as `augment` says, and resized; its conversation laid out.
    ///
    /// # Errors
    /// If a picture cannot be read, or as [`example`](Self::example).
    pub fn row(&self, row: &TrainRow, draw: Option<Draw>, augment: &Augment) -> Result<Example> {
        let images = augment.pictures(row, draw)?;
        let example = self.example(&row.messages, prepared(&*self.pipeline.processor, &images)?)?;
        self.asking(example, row, draw)
    }

    /// The example of a row with the question that its last answer is to, if it is for validation and such are asked.
    ///
    /// # Errors
    /// If the question cannot be laid out.
    pub fn asking(&self, example: Example, row: &TrainRow, draw: Option<Draw>) -> Result<Example> {
        let last = row.messages.iter().rposition(|message| message.role == "assistant");
        let Some(last) = last.filter(|_| self.asks && draw.is_none()) else { return Ok(example) };
        // Pictures of later messages are not shown.
        let places: usize = row.messages[..last].iter().map(Message::images).sum();
        let shown: Vec<&PreparedImage> =
            example.pictures.iter().take(places).map(|picture| &**picture).collect();
        let text = self.render(&row.messages[..last], true)?;
        let prompt = self.pipeline.processor.lay_out(&text, &shown, &self.pipeline.tokenizer)?;
        let answer = row.messages[last].content.plain("", "").trim().to_owned();
        let tokens = self.pipeline.tokenizer.encode_plain(&answer)?.len();
        Ok(Example { asked: Some(Arc::new(Asked { prompt, pictures: places, answer, tokens })), ..example })
    }

    /// A conversation, whose messages of the assistant are learnt: what the chat template writes for each of them after the header
    /// of an answer, up to the token that ends it; what a template writes after that, nobody is ever asked for. Of a model without a
    /// template it is one question, laid out as it is when the model answers, then the tokens of the answer and the one that ends it.
    ///
    /// # Errors
    /// If the conversation cannot be laid out, has no answer, or has more tokens than the model or `max_tokens` allow.
    pub fn example(&self, messages: &[Message], pictures: Vec<Arc<PreparedImage>>) -> Result<Example> {
        if self.pipeline.template.is_none() {
            return self.plain_example(messages, pictures);
        }
        let shown: Vec<&PreparedImage> = pictures.iter().map(|picture| &**picture).collect();
        let tokens = |text: &str| self.pipeline.processor.lay_out(text, &shown, &self.pipeline.tokenizer);
        let whole_text = self.render(messages, false)?;
        let whole = tokens(&whole_text)?;
        self.check(&whole, pictures.len())?;
        let mut learnt = vec![false; whole.len()];
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
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
            let eos = self.pipeline.tokenizer.eos_ids();
            let ends = |token: &u32| eos.contains(token) || whole.stop.contains(token);
            let end = whole.tokens[from..to].iter().rposition(ends).map_or(to, |at| from + at + 1);
            learnt[from..end].fill(true);
        }
        Example::new(whole, pictures, &learnt)
    }

    /// As [`example`](Self::example), of a model without a template.
    fn plain_example(&self, messages: &[Message], pictures: Vec<Arc<PreparedImage>>) -> Result<Example> {
        let Some((last, asked)) = messages.split_last().filter(|(last, asked)| {
            last.role == "assistant" && asked.iter().all(|message| message.role != "assistant")
        }) else {
            let what = "messages: expected one answer behind all else, as the model has no chat template";
            return Err(Error::Train(what.into()));
        };
        let shown: Vec<&PreparedImage> = pictures.iter().map(|picture| &**picture).collect();
        let tokenizer = &self.pipeline.tokenizer;
        let mut prompt = self.pipeline.processor.lay_out(&self.render(asked, true)?, &shown, tokenizer)?;
        let before = prompt.len();
        prompt.append(tokenizer.encode_plain(&last.content.plain("", ""))?);
        if prompt.len() == before {
            return Err(Error::Train("expected an answer, found no token of one".into()));
        }
        let end = prompt.stop.first().or_else(|| tokenizer.eos_ids().first()).copied();
        prompt.append(end);
        self.check(&prompt, pictures.len())?;
        let learnt: Vec<bool> = (0..prompt.len()).map(|token| token >= before).collect();
        Example::new(prompt, pictures, &learnt)
    }

    /// Errors of a prompt that is too long, or whose places do not fit its pictures.
    fn check(&self, prompt: &Prompt, pictures: usize) -> Result<()> {
        let info = self.pipeline.model.info();
        let limit = self.max_tokens.min(info.max_positions);
        if prompt.len() > limit {
            return Err(Error::PromptTooLong { limit, found: prompt.len() });
        }
        prompt.check(pictures, info.embedded)
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
