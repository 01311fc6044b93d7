//! Positions on three axes (time, row, column), as Qwen2-VL and its successors lay them out.

use ocelli_engine::Prompt;
use ocelli_engine::prompt::Positions;

/// Gives the tokens of a prompt positions of three axes; `grids` has rows and columns of tokens of each picture. Text counts on; a
/// picture takes the time of its first token, and as many positions as its longer side has tokens. A prompt without pictures stays.
pub fn place_grids(prompt: &mut Prompt, grids: &[(usize, usize)]) {
    if grids.is_empty() {
        return;
    }
    let (mut at, mut next) = (Vec::with_capacity(prompt.len()), 0i32);
    for span in &prompt.spans {
        at.extend((at.len()..span.at).zip(next..).map(|(_, position)| [position; 3]));
        let first =
            at.last().map_or(0, |last: &[i32; 3]| last.iter().max().map_or(0, |most| most + 1)).max(next);
        let (rows, cols) = grids.get(span.media).copied().unwrap_or((0, 0));
        at.extend((0..rows * cols).map(|i| [first, first + (i / cols) as i32, first + (i % cols) as i32]));
        next = first + rows.max(cols) as i32;
    }
    at.extend((at.len()..prompt.len()).zip(next..).map(|(_, position)| [position; 3]));
    next += prompt.len() as i32 - prompt.spans.last().map_or(0, |span| span.tokens().end) as i32;
    prompt.positions = Positions::Axes { at, next };
}
