//! Stop strings over streamed text.

/// Finds stop strings in text that arrives in pieces, and holds back what may become one.
///
/// The result does not depend on how the text is cut into pieces: the stop string that is complete first wins
/// (the longest, if several end at the same byte), and the text before its start is what remains.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    done: bool,
}

/// What [`StopMatcher::push`] gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopMatch {
    /// Text that can be shown now; never any part of a stop string.
    pub text: String,
    /// Index of the stop string that was met, in the order given to [`StopMatcher::new`].
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        Self { stops: stops.to_vec(), held: String::new(), done: false }
    }

    /// Takes the next piece of text. After a stop string was met, further text is discarded.
    pub fn push(&mut self, piece: &str) -> StopMatch {
        if self.done {
            return StopMatch::default();
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(i, stop)| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, i)))
            .min();
        if let Some((_, start, index)) = first {
            self.done = true;
            self.held.truncate(start);
            return StopMatch { text: std::mem::take(&mut self.held), stopped: Some(index) };
        }
        let keep = self.held.len() - self.possible_prefix();
        let rest = self.held.split_off(keep);
        StopMatch { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text held back, once no more text will come.
    pub fn finish(&mut self) -> String {
        self.done = true;
        std::mem::take(&mut self.held)
    }

    /// Bytes of the longest end of the held text that begins a stop string.
    fn possible_prefix(&self) -> usize {
        let held = self.held.as_str();
        let longest = self.stops.iter().map(|s| s.len().saturating_sub(1)).max().unwrap_or(0);
        held.char_indices()
            .map(|(at, _)| &held[at..])
            .skip_while(|tail| tail.len() > longest)
            .find(|tail| self.stops.iter().any(|s| s.len() > tail.len() && s.starts_with(tail)))
            .map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn holds_back_a_possible_prefix() {
        let mut m = StopMatcher::new(&strings(&["\nUser:", ""]));
        assert_eq!(m.push("Hello\n").text, "Hello");
        assert_eq!(m.push("Us").text, "");
        assert_eq!(m.push("ual").text, "\nUsual");
        assert_eq!(m.push(" text\nUse").text, " text");
        let hit = m.push("r: next");
        assert_eq!((hit.text.as_str(), hit.stopped), ("", Some(0)));
        assert_eq!(m.push("more"), StopMatch::default());
        assert_eq!(m.finish(), "");
    }

    #[test]
    fn first_complete_stop_wins() {
        for pieces in [&["abcd"][..], &["a", "b", "c", "d"], &["ab", "cd"]] {
            let mut m = StopMatcher::new(&strings(&["abcd", "bc"]));
            let mut text = String::new();
            let mut stopped = None;
            for piece in pieces {
                let out = m.push(piece);
                text += &out.text;
                stopped = stopped.or(out.stopped);
            }
            assert_eq!((text.as_str(), stopped), ("a", Some(1)), "{pieces:?}");
        }
    }

    #[test]
    fn flush_returns_what_was_held() {
        let mut m = StopMatcher::new(&strings(&["é!"]));
        assert_eq!(m.push("caf").text, "caf");
        assert_eq!(m.push("é").text, "");
        assert_eq!(m.finish(), "é");
    }
}
