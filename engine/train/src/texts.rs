//! Texts that are learnt whole, or where tokens of them are hidden.

use std::sync::Arc;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::text::{Message, Tokenizer};
use ocelli_engine::{Error, Pipeline, Prompt, Result};

use crate::examples::{Example, IGNORED};
use crate::random::Random;

/// Lays texts out: pictures, the text, and the token that ends it.
pub struct Texts<'a> {
    /// The model's processor and tokenizer.
    pub pipeline: &'a Pipeline,
    /// Most tokens of a sequence.
    pub max_tokens: usize,
}

/// Tokens with their pictures before them.
pub struct LaidOut {
    prompt: Prompt,
    /// The first token of the text.
    first: usize,
}

impl Texts<'_> {
    fn limit(&self) -> usize {
        self.max_tokens.min(self.pipeline.model.info().max_positions)
    }

    /// The tokens of the messages' texts, behind their pictures: roles and templates have no part in it.
    ///
    /// # Errors
    /// If the text is empty, or the pictures cannot be laid out.
    pub fn lay_out(&self, messages: &[Message], pictures: &[Arc<PreparedImage>]) -> Result<LaidOut> {
        let Pipeline { processor, tokenizer, .. } = self.pipeline;
        let shown: Vec<&PreparedImage> = pictures.iter().map(|picture| &**picture).collect();
        let mark = processor.image_mark();
        let pieces: Vec<String> = messages.iter().map(|message| message.content.plain("", "")).collect();
        let text = pieces.iter().map(|piece| piece.trim()).filter(|piece| !piece.is_empty());
        let text = text.collect::<Vec<_>>().join("\n");
        if text.is_empty() {
            return Err(Error::Train("expected a text, found none".into()));
        }
        let before = mark.repeat(pictures.len());
        let mut prompt = processor.lay_out(&format!("{before}{text}"), &shown, tokenizer)?;
        let first = match pictures.is_empty() {
            true => 0,
            false => {
                let part = processor.lay_out(&before, &shown, tokenizer)?.tokens;
                part.iter().zip(&prompt.tokens).take_while(|(a, b)| a == b).count()
            }
        };
        let ends = tokenizer.eos_ids();
        if let Some(&end) = ends.first()
            && !prompt.tokens.last().is_some_and(|last| ends.contains(last))
        {
            prompt.append([end]);
        }
        prompt.check(pictures.len(), self.pipeline.model.info().embedded)?;
        Ok(LaidOut { prompt, first })
    }

    /// A text that is learnt whole, each token from what is before it. One of more tokens than a sequence may have becomes several,
    /// where it has no pictures.
    ///
    /// # Errors
    /// As [`lay_out`](Self::lay_out), and if a text with pictures is too long.
    pub fn whole(&self, messages: &[Message], pictures: Vec<Arc<PreparedImage>>) -> Result<Vec<Example>> {
        let LaidOut { prompt, first } = self.lay_out(messages, &pictures)?;
        let limit = self.limit();
        if prompt.len() > limit && pictures.is_empty() && limit > 1 {
            let pieces = prompt.tokens.chunks(limit).filter(|piece| piece.len() > 1);
            let of = |piece: &[u32]| {
                Example::new(Prompt::text(piece.to_vec()), Vec::new(), &vec![true; piece.len()])
            };
            return pieces.map(of).collect();
        }
        if prompt.len() > limit {
            return Err(Error::PromptTooLong { limit, found: prompt.len() });
        }
        let learnt: Vec<bool> = (0..prompt.len()).map(|at| at >= first).collect();
        Ok(vec![Example::new(prompt, pictures, &learnt)?])
    }

    /// A text with hidden tokens, which alone are learnt: each from what stands before it, hidden tokens among that, as the models' rows
    /// see no further.
    ///
    /// # Errors
    /// As [`lay_out`](Self::lay_out), and if the text is too long, or is a single token with nothing before it.
    pub fn masked(
        &self,
        messages: &[Message],
        pictures: Vec<Arc<PreparedImage>>,
        hiding: &Hiding,
        random: &mut Random,
    ) -> Result<Example> {
        let LaidOut { mut prompt, first } = self.lay_out(messages, &pictures)?;
        let limit = self.limit();
        if prompt.len() > limit {
            return Err(Error::PromptTooLong { limit, found: prompt.len() });
        }
        let ends = self.pipeline.tokenizer.eos_ids();
        // The first token of all has nothing before it.
        let places: Vec<usize> =
            (first.max(1)..prompt.len()).filter(|&at| !ends.contains(&prompt.tokens[at])).collect();
        if places.is_empty() {
            return Err(Error::Train("expected a text of two tokens or more to hide one, found less".into()));
        }
        let count = ((places.len() as f64 * hiding.share).round() as usize).max(1);
        let mut labels = vec![IGNORED; prompt.len()];
        for at in random.choose(count, places.len()) {
            let place = places[at];
            labels[place - 1] = prompt.tokens[place] as i32;
            if let Some(token) = hiding.instead(random) {
                prompt.tokens[place] = token;
            }
        }
        Ok(Example { prompt, pictures, labels, asked: None })
    }
}

/// How tokens are hidden.
#[derive(Clone, Debug)]
pub struct Hiding {
    /// Share of a text's tokens.
    pub share: f64,
    /// What stands for a hidden token; without it a random one does.
    pub mask: Option<u32>,
    /// Tokens that random ones are among: those that are no special ones.
    words: Vec<u32>,
}

impl Hiding {
    /// As BERT hides tokens: of ten eight become the mask, one a random token, and one stays.
    ///
    /// # Errors
    /// If a mask is named that is no token.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, share: f64, mask: Option<&str>) -> Result<Self> {
        let mask = match mask {
            Some(text) => Some(tokenizer.token_to_id(text).ok_or_else(|| {
                Error::Train(format!("the tokenizer has no token `{text}` to hide others by"))
            })?),
            None => tokenizer
                .named_id("mask_token")
                .or_else(|| ["[MASK]", "<mask>"].into_iter().find_map(|text| tokenizer.token_to_id(text))),
        };
        if mask.is_some_and(|mask| mask as usize >= vocab) {
            return Err(Error::Train("the model has no embedding of the mask token".into()));
        }
        let last = tokenizer.vocab_size().min(vocab) as u32;
        let words = (0..last).filter(|&id| tokenizer.id_to_token(id).is_some() && !tokenizer.is_added(id));
        Ok(Self { share, mask, words: words.collect() })
    }

    /// What a hidden token becomes; `None`: it stays.
    fn instead(&self, random: &mut Random) -> Option<u32> {
        let word = self.words.get(random.below(self.words.len())).copied();
        match random.below(10) {
            0 => None,
            1 => word,
            _ => self.mask.or(word),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_ten_hidden_tokens_eight_are_masks() {
        let hiding = Hiding { share: 0.15, mask: Some(7), words: vec![1, 2, 3] };
        let mut random = Random::new(5);
        let (mut masks, mut words, mut stay) = (0, 0, 0);
        for _ in 0..10_000 {
            match hiding.instead(&mut random) {
                None => stay += 1,
                Some(7) => masks += 1,
                Some(word) => words += usize::from((1..4).contains(&word)),
            }
        }
        assert_eq!(masks + words + stay, 10_000);
        // Five standard deviations of each count, at most 40.
        assert!((7800..8200).contains(&masks) && (850..1150).contains(&words), "{masks} {words} {stay}");
        let no_mask = Hiding { mask: None, ..hiding };
        let found: Vec<_> = (0..1000).filter_map(|_| no_mask.instead(&mut random)).collect();
        assert!(found.iter().all(|word| (1..4).contains(word)) && found.len() > 800);
    }
}
