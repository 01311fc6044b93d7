//! A prompt as a processor lays it out: tokens, the places of picture features among them, positions, and which tokens see each
//! other. The engine reads it and looks for nothing itself.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::kv::Extent;
use crate::tensor::Tensor;

/// Rows of one medium's features that stand for neighbouring tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Number of the medium (picture) in the request.
    pub media: usize,
    /// Rows of its features.
    pub rows: Range<usize>,
    /// Token that the first row stands for; the others follow.
    pub at: usize,
}

impl Span {
    /// Tokens that the rows stand for.
    #[must_use]
    pub fn tokens(&self) -> Range<usize> {
        self.at..self.at + self.rows.len()
    }
}

/// Positions of a prompt's tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// The number of each token, on every axis.
    #[default]
    Line,
    /// Three axes (time, row, column), and the position of the first token of the answer on each.
    Axes {
        /// Positions of each token.
        at: Vec<[i32; 3]>,
        /// Position of the token after the last.
        next: i32,
    },
}

/// Which rows of the memory tokens attend to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The first of these tokens; they go on to the next reach, the last ones to the end of the answer.
    pub from: usize,
    /// Rows: those of [`Prompt::memory`] of all media, then those of [`Prompt::rest`].
    pub rows: Range<usize>,
    /// Whether the tokens are before every picture, so that what follows attention takes nothing of it.
    pub early: bool,
}

/// What an encoder reads for the decoder to attend to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Token ids; each becomes a row of memory.
    pub tokens: Vec<u32>,
    /// Places of features among them, ascending.
    pub spans: Vec<Span>,
}

/// A prompt that is ready for the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Token ids. Those that features stand for may be any ids of the vocabulary.
    pub tokens: Vec<u32>,
    /// Places of features, ascending.
    pub spans: Vec<Span>,
    /// Positions of the tokens.
    pub positions: Positions,
    /// Ranges of tokens that see each other, whatever their order; ascending, without overlap. A pass never cuts one.
    pub blocks: Vec<Range<usize>>,
    /// Rows of memory that each medium has, [`Features::memory`]; none of those that are not listed.
    pub memory: Vec<usize>,
    /// Rows that it has behind those, likewise: they come after those of all media.
    pub rest: Vec<usize>,
    /// What an encoder reads, of models that have one: its rows are then the memory, and those of media are for the encoder alone.
    pub source: Source,
    /// Tokens that end the answer beside those of the tokenizer.
    pub stop: Vec<u32>,
    /// Which of the memory tokens attend to, ascending; all of it where nothing is listed, none before the first reach.
    pub reaches: Vec<Reach>,
}

impl Prompt {
    /// A prompt of text alone.
    #[must_use]
    pub fn text(tokens: Vec<u32>) -> Self {
        Self { tokens, ..Self::default() }
    }

    /// A prompt in which each token `image` stands for the next row of the features of media with so many `rows` each.
    ///
    /// # Errors
    /// If tokens and rows differ in number.
    pub fn with_image_tokens(tokens: Vec<u32>, image: u32, rows: &[usize]) -> Result<Self> {
        Self::with_tokens_of(tokens, &[image], rows)
    }

    /// As [`with_image_tokens`](Self::with_image_tokens), where several tokens stand for features.
    pub fn with_tokens_of(tokens: Vec<u32>, kinds: &[u32], rows: &[usize]) -> Result<Self> {
        let places: Vec<usize> = (0..tokens.len()).filter(|&i| kinds.contains(&tokens[i])).collect();
        let total: usize = rows.iter().sum();
        if places.len() != total {
            return Err(Error::Request(format!(
                "prompt: expected {total} image tokens for its {} pictures, found {}",
                rows.len(),
                places.len()
            )));
        }
        let mut spans: Vec<Span> = Vec::new();
        let mut places = places.into_iter();
        for (media, &rows) in rows.iter().enumerate() {
            for (row, at) in places.by_ref().take(rows).enumerate() {
                match spans.last_mut() {
                    Some(last) if last.media == media && last.tokens().end == at => last.rows.end += 1,
                    _ => spans.push(Span { media, rows: row..row + 1, at }),
                }
            }
        }
        Ok(Self { tokens, spans, ..Self::default() })
    }

    /// Adds tokens of text behind the last.
    pub fn append(&mut self, tokens: impl IntoIterator<Item = u32>) {
        let before = self.tokens.len();
        self.tokens.extend(tokens);
        if let Positions::Axes { at, next } = &mut self.positions {
            for _ in before..self.tokens.len() {
                at.push([*next; 3]);
                *next += 1;
            }
        }
    }

    /// Tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Rows of features that each of `media` media gives.
    #[must_use]
    pub fn rows_of(&self, media: usize) -> usize {
        let spans = self.spans.iter().chain(&self.source.spans);
        spans.filter(|span| span.media == media).map(|span| span.rows.end).max().unwrap_or(0)
    }

    /// Rows of memory: those that an encoder makes, or those of all media.
    #[must_use]
    pub fn memory_rows(&self) -> usize {
        match self.source.tokens.len() {
            0 => self.memory.iter().chain(&self.rest).sum(),
            tokens => tokens,
        }
    }

    /// How much of it there is.
    #[must_use]
    pub fn extent(&self) -> Extent {
        Extent { tokens: self.len(), memory: self.memory_rows() }
    }

    /// Whether what a token of prompt or answer attends to counts.
    #[must_use]
    pub fn reached(&self, token: usize) -> bool {
        let place = self.reaches.partition_point(|reach| reach.from <= token).checked_sub(1);
        let counts = place.map_or(self.reaches.is_empty(), |place| !self.reaches[place].early);
        counts && !self.reach(token).is_empty()
    }

    /// The first token after `token` that attends to other memory.
    #[must_use]
    pub fn next_reach(&self, token: usize) -> Option<usize> {
        self.reaches.get(self.reaches.partition_point(|reach| reach.from <= token)).map(|reach| reach.from)
    }

    /// Rows of memory, counted through all media, that a token of prompt or answer attends to.
    #[must_use]
    pub fn reach(&self, token: usize) -> Range<usize> {
        match self.reaches.partition_point(|reach| reach.from <= token).checked_sub(1) {
            Some(place) => self.reaches[place].rows.clone(),
            None if self.reaches.is_empty() => 0..self.memory_rows(),
            None => 0..0,
        }
    }

    /// Positions of the token `index` of prompt and answer, on three axes.
    #[must_use]
    pub fn position(&self, index: usize) -> [i32; 3] {
        match &self.positions {
            Positions::Line => [index as i32; 3],
            Positions::Axes { at, next } => {
                at.get(index).copied().unwrap_or([next + index.saturating_sub(at.len()) as i32; 3])
            }
        }
    }

    /// The block that a token lies in.
    #[must_use]
    pub fn block_of(&self, token: usize) -> Option<&Range<usize>> {
        let place = self.blocks.partition_point(|block| block.end <= token);
        self.blocks.get(place).filter(|block| block.contains(&token))
    }

    /// Longest block.
    #[must_use]
    pub fn longest_block(&self) -> usize {
        self.blocks.iter().map(Range::len).max().unwrap_or(0)
    }

    /// The largest end of a chunk from `start` that cuts no block and takes at most `most` tokens; `start` itself if a block there
    /// is longer.
    #[must_use]
    pub fn cut(&self, start: usize, most: usize) -> usize {
        let end = (start + most).min(self.len());
        match self.block_of(end) {
            Some(block) if block.start < end => block.start.max(start),
            _ => end,
        }
    }

    /// Checks what the other parts of the engine rely on: `media` media were given, ids are below `vocab`, spans and blocks lie
    /// inside and ascend, positions are as many as tokens.
    ///
    /// # Errors
    /// What is wrong with the prompt.
    pub fn check(&self, media: usize, vocab: usize) -> Result<()> {
        let bad = |what: String| Err(Error::Request(format!("prompt: {what}")));
        let Source { tokens, spans } = &self.source;
        if let Some(id) = self.tokens.iter().chain(tokens).find(|&&id| id as usize >= vocab) {
            return bad(format!("token id: expected below {vocab}, found {id}"));
        }
        for (spans, len) in [(&self.spans, self.len()), (spans, tokens.len())] {
            let mut end = 0;
            for span in spans {
                if span.media >= media {
                    return bad(format!("features of picture {} of {media}", span.media + 1));
                }
                if span.at < end || span.tokens().end > len {
                    return bad(format!("features for tokens {:?} of {len}", span.tokens()));
                }
                end = span.tokens().end;
            }
        }
        let mut end = 0;
        for block in &self.blocks {
            if block.start < end || block.is_empty() || block.end > self.len() {
                return bad(format!("tokens {block:?} of {} that see each other", self.len()));
            }
            end = block.end;
        }
        let listed = self.memory.len().max(self.rest.len());
        if listed > media {
            return bad(format!("memory of {listed} pictures of {media}"));
        }
        end = 0;
        for reach in &self.reaches {
            let (rows, all) = (&reach.rows, self.memory_rows());
            if reach.from < end || rows.start > rows.end || rows.end > all {
                return bad(format!("tokens from {} on that attend to rows {rows:?} of {all}", reach.from));
            }
            end = reach.from;
        }
        match &self.positions {
            Positions::Axes { at, .. } if at.len() != self.len() => {
                bad(format!("positions: expected {}, found {}", self.len(), at.len()))
            }
            _ => Ok(()),
        }
    }
}

/// What a model makes of one picture.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// Rows that replace embeddings, `[rows, d_model]`.
    pub rows: Option<Tensor>,
    /// Rows that are added to the result of text layers 0, 1, ... at the same tokens, `[rows, d_model]` each; no rows where a layer has
    /// none.
    pub deep: Vec<Tensor>,
    /// Rows that text layers attend to beside the tokens, `[rows, d]`: they are no tokens.
    pub memory: Option<Tensor>,
}

impl Features {
    /// Features that replace embeddings and nothing else.
    #[must_use]
    pub fn of_rows(rows: Tensor) -> Self {
        Self { rows: Some(rows), ..Self::default() }
    }

    /// Features that are attended to and nothing else.
    #[must_use]
    pub fn of_memory(memory: Tensor) -> Self {
        Self { memory: Some(memory), ..Self::default() }
    }

    /// Rows that are attended to.
    #[must_use]
    pub fn memory_rows(&self) -> usize {
        self.memory.as_ref().map_or(0, |rows| rows.size(0))
    }

    /// Bytes of memory that they take.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.named().map(|(_, tensor)| tensor.view().bytes()).sum()
    }

    /// All rows that there are, with names that say which: `rows`, `memory`, `deep.000` and so on.
    pub(crate) fn named(&self) -> impl Iterator<Item = (String, &Tensor)> {
        let deep = self.deep.iter().enumerate().map(|(layer, rows)| (format!("deep.{layer:03}"), rows));
        let named = |name: &'static str| move |rows| (name.to_owned(), rows);
        self.rows.iter().map(named("rows")).chain(deep).chain(self.memory.iter().map(named("memory")))
    }

    /// Rows that stand for tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.as_ref().or(self.deep.first()).map_or(0, |rows| rows.size(0))
    }

    /// Whether no row stands for a token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_tokens_become_spans() {
        let prompt = Prompt::with_image_tokens(vec![1, 9, 9, 2, 9, 9, 9], 9, &[3, 2]).unwrap();
        let span = |media, rows, at| Span { media, rows, at };
        assert_eq!(prompt.spans, [span(0, 0..2, 1), span(0, 2..3, 4), span(1, 0..2, 5)]);
        assert_eq!((prompt.rows_of(0), prompt.rows_of(1)), (3, 2));
        assert!(
            Prompt::with_image_tokens(vec![9], 9, &[2]).unwrap_err().to_string().contains("expected 2 image")
        );
        prompt.check(2, 10).unwrap();
        assert!(prompt.check(1, 10).unwrap_err().to_string().contains("picture 2 of 1"));
        assert!(prompt.check(2, 9).unwrap_err().to_string().contains("below 9, found 9"));
    }

    #[test]
    fn chunks_end_at_blocks() {
        let prompt = Prompt { tokens: vec![0; 20], blocks: vec![4..9, 9..12], ..Prompt::default() };
        let table =
            [(0, 3, 3), (0, 4, 4), (0, 6, 4), (4, 4, 4), (4, 5, 9), (4, 7, 9), (4, 8, 12), (12, 100, 20)];
        for (start, most, end) in table {
            assert_eq!(prompt.cut(start, most), end, "{most} tokens from {start}");
        }
        assert_eq!(
            (prompt.block_of(3), prompt.block_of(8), prompt.block_of(9)),
            (None, Some(&(4..9)), Some(&(9..12)))
        );
    }

    #[test]
    fn tokens_reach_the_memory_of_pictures_before_them() {
        let mut prompt = Prompt { tokens: vec![0; 9], memory: vec![5, 0, 3], ..Prompt::default() };
        assert_eq!((prompt.memory_rows(), prompt.reach(0), prompt.reach(20)), (8, 0..8, 0..8));
        let reach = |from, rows| Reach { from, rows, early: false };
        prompt.reaches = vec![reach(2, 0..5), reach(6, 5..8)];
        prompt.check(3, 1).unwrap();
        let table = [(0, 0..0), (1, 0..0), (2, 0..5), (5, 0..5), (6, 5..8), (100, 5..8)];
        for (token, rows) in table {
            assert_eq!(prompt.reach(token), rows, "token {token}");
        }
        assert!(prompt.check(2, 1).unwrap_err().to_string().contains("memory of 3 pictures of 2"));
        assert_eq!((prompt.reached(1), prompt.reached(2)), (false, true));
        prompt.reaches[1].rows = 5..9;
        assert!(prompt.check(3, 1).unwrap_err().to_string().contains("attend to rows 5..9 of 8"));
        // Rows behind those come last; tokens before the first picture see them too.
        prompt.rest = vec![2, 0, 1];
        prompt.reaches[1].rows = 5..8;
        prompt.reaches.insert(0, Reach { from: 0, rows: 0..11, early: true });
        prompt.check(3, 1).unwrap();
        assert_eq!((prompt.memory_rows(), prompt.reach(1), prompt.reached(1)), (11, 0..11, false));
        assert_eq!((prompt.reached(2), prompt.next_reach(1), prompt.next_reach(6)), (true, Some(2), None));
    }

    #[test]
    fn what_an_encoder_reads_is_the_memory() {
        let source = Source { tokens: vec![3; 6], spans: vec![Span { media: 0, rows: 0..4, at: 0 }] };
        let mut prompt = Prompt { tokens: vec![1], memory: vec![9], source, ..Prompt::default() };
        assert_eq!((prompt.memory_rows(), prompt.reach(0), prompt.rows_of(0)), (6, 0..6, 4));
        prompt.check(1, 4).unwrap();
        assert!(prompt.check(1, 3).unwrap_err().to_string().contains("below 3, found 3"));
        prompt.source.spans[0].at = 3;
        assert!(prompt.check(1, 4).unwrap_err().to_string().contains("tokens 3..7 of 6"));
    }

    #[test]
    fn positions_go_on_after_the_prompt() {
        let at = vec![[0; 3], [1, 1, 1], [1, 1, 2]];
        let prompt =
            Prompt { tokens: vec![0; 3], positions: Positions::Axes { at, next: 3 }, ..Prompt::default() };
        assert_eq!((prompt.position(2), prompt.position(3), prompt.position(5)), ([1, 1, 2], [3; 3], [5; 3]));
        assert_eq!(Prompt::text(vec![0]).position(4), [4; 3]);
        let mut longer = prompt;
        longer.append([7, 8]);
        assert_eq!((longer.position(2), longer.position(4), longer.position(5)), ([1, 1, 2], [4; 3], [5; 3]));
        longer.check(0, 9).unwrap();
    }
}
