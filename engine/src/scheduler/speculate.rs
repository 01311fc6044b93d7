//! Guesses of what an answer goes on with, from where its last tokens stood before: in the prompt, or in the answer itself. A pass
//! reads the guesses behind the last token and gives the tokens after each of them; those that were guessed right are read already.
//! Answers are those without guesses.

use std::ops::Range;

use ocelli_kernels::DType;

use super::{Ctx, Event, Live, Scheduler};

/// Most and least tokens that must have stood there before.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// At most `most` tokens that may follow on `tokens`, all below `vocab`: what followed where its end stood last.
fn continuation(mut tokens: Vec<u32>, most: usize, vocab: usize) -> Vec<u32> {
    let len = tokens.len();
    let end_before = |ending: usize| {
        let end = &tokens[len.checked_sub(ending)?..];
        tokens[..len - 1].windows(ending).rposition(|window| window == end).map(|at| at + ending)
    };
    let Some(from) = (SHORTEST..=LONGEST).rev().find_map(end_before) else { return Vec::new() };
    // What repeats itself does so again.
    for i in from..from + most {
        match tokens[i] {
            token if (token as usize) < vocab => tokens.push(token),
            _ => break,
        }
    }
    tokens.split_off(len)
}

impl Live {
    /// Guesses what comes after the last token, if that is what is read next.
    pub fn guess(&mut self, vocab: usize) {
        if self.coming > 0 || self.params.speculate == 0 {
            return;
        }
        self.draft.clear();
        // A guess would change what penalties and forms are counted from.
        if self.done < self.prompt.len() || self.done + 1 != self.known() || !self.is_free() {
            return;
        }
        // The pass gives one token more than were guessed.
        let most = self.params.speculate.min(self.longest.saturating_sub(self.known() + 1));
        if most > 0 {
            let tokens = self.prompt.tokens.iter().chain(&self.answer).copied().collect();
            self.draft = continuation(tokens, most, vocab);
        }
    }
}

impl Scheduler {
    /// Adds the tokens after a request's last one and after each of its guesses, as far as these were right, and takes back what
    /// else was read. Its `rows` are those of `ids`, and of `logits` that are looked at.
    pub(super) fn accept_all(
        &mut self,
        cx: &mut Ctx,
        number: usize,
        rows: Range<usize>,
        ids: &[i32],
        logits: &[(usize, DType, Vec<u8>)],
        events: &mut Vec<Event>,
    ) {
        let draft = match self.place(number) {
            Some(place) => std::mem::take(&mut self.running[place].draft),
            None => return,
        };
        cx.timings.guessed_tokens += draft.len();
        for (i, (row, &id)) in rows.clone().zip(&ids[rows]).enumerate() {
            if let Some((_, dtype, values)) = logits.iter().find(|(of, ..)| *of == row)
                && let (Some(place), Ok(token)) = (self.place(number), u32::try_from(id))
            {
                self.running[place].note_logprobs(values, *dtype, token);
            }
            self.accept(number, id, events);
            let Some(&guess) = draft.get(i) else { break };
            let Some(place) = self.place(number) else { break };
            if i64::from(id) == i64::from(guess) {
                cx.timings.accepted_tokens += 1;
                cx.timings.decode_tokens += 1;
                continue;
            }
            let live = &mut self.running[place];
            live.done -= draft.len() - i;
            live.coming = 0;
            if let Some(seq) = live.seq {
                self.kv.truncate(seq, live.done);
            }
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::continuation;

    #[test]
    fn what_followed_the_longest_ending() {
        for (tokens, most, expected) in [
            (&[][..], 4, &[][..]),
            (&[7], 4, &[]),
            (&[7, 7], 4, &[]),
            (&[1, 2, 3, 9, 1, 2], 3, &[3, 9, 1]),
            (&[1, 2, 3, 9, 1, 2], 0, &[]),
            // The last place counts, but a longer ending more.
            (&[1, 2, 3, 1, 2, 4, 1, 2], 1, &[4]),
            (&[5, 1, 2, 3, 6, 1, 2, 4, 5, 1, 2], 1, &[3]),
            (&[8, 1, 9, 1], 4, &[]),
            // Beyond the end it repeats.
            (&[4, 5, 6, 4, 5, 6], 5, &[4, 5, 6, 4, 5]),
            (&[3, 3, 3], 3, &[3, 3, 3]),
            // An id that has no embedding of its own is never guessed.
            (&[1, 2, 3, 99, 4, 1, 2], 4, &[3]),
        ] {
            assert_eq!(continuation(tokens.to_vec(), most, 50), expected, "{tokens:?}");
        }
    }
}
