//! Positions on three axes (time, row, column), as Qwen2-VL and its successors lay them out.

use ocelli_engine::Prompt;
use ocelli_engine::prompt::Positions;

/// Gives the tokens of a prompt positions of three axes; `grids` has rows and columns of tokens of each picture. Text counts on; a
/// picture takes the time of its first token, and as many positions as its longer side has tokens. One with a number in `later`
/// belongs to a video that began before it, whose places it takes, and its time is so much later. A prompt without pictures stays.
pub fn place_grids(prompt: &mut Prompt, grids: &[(usize, usize)], later: &[Option<i32>]) {
    if grids.is_empty() {
        return;
    }
    let (mut at, mut next, mut first) = (Vec::with_capacity(prompt.len()), 0i32, 0i32);
    for span in &prompt.spans {
        let text = span.at - at.len().min(span.at);
        at.extend((next..).take(text).map(|position| [position; 3]));
        next += text as i32;
        let later = later.get(span.media).copied().flatten();
        if later.is_none() {
            first = next;
        }
        let (rows, cols) = grids.get(span.media).copied().unwrap_or((0, 0));
        let time = first + later.unwrap_or(0);
        at.extend((0..rows * cols).map(|i| [time, first + (i / cols) as i32, first + (i % cols) as i32]));
        next = first + rows.max(cols) as i32;
    }
    let text = prompt.len() - at.len().min(prompt.len());
    at.extend((next..).take(text).map(|position| [position; 3]));
    // An answer counts on from the last token, though the times of a video may be later.
    let next = at.last().and_then(|last| last.iter().max()).map_or(0, |most| most + 1);
    prompt.positions = Positions::Axes { at, next };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture of 1 x 2, a video of two pictures of 2 x 1 whose second is 5 later, and text around them.
    #[test]
    fn videos_share_places() {
        let tokens = vec![1, 9, 9, 1, 9, 9, 9, 9, 1];
        let mut prompt = Prompt::with_image_tokens(tokens, 9, &[2, 2, 2]).expect("a prompt");
        place_grids(&mut prompt, &[(1, 2), (2, 1), (2, 1)], &[None, None, Some(5)]);
        let Positions::Axes { at, next } = prompt.positions else { panic!("positions of one axis") };
        let text = |place: i32| [place; 3];
        let pictures = [[1, 1, 1], [1, 1, 2], text(3), [4, 4, 4], [4, 5, 4], [9, 4, 4], [9, 5, 4]];
        let wanted: Vec<[i32; 3]> = [text(0)].into_iter().chain(pictures).chain([text(6)]).collect();
        assert_eq!((at, next), (wanted, 7));
    }
}
