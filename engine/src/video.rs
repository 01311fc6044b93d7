//! Videos as lists of frames.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::image::{PreparedImage, Rgb8Image};
use crate::prompt::Prompt;

/// Frames of a video.
#[derive(Clone, Debug, Default)]
pub struct Video {
    /// The frames, in order.
    pub frames: Vec<Rgb8Image>,
    /// When each is shown, in seconds from the beginning.
    pub times: Vec<f64>,
    /// Length of the video in seconds.
    pub seconds: f64,
}

impl Video {
    /// A video of these frames, `fps` of them a second, of which at most `most` are kept, evenly from the first to the last.
    ///
    /// # Errors
    /// If there is no frame, or `fps` is no rate.
    pub fn of_frames(frames: Vec<Rgb8Image>, fps: f64, most: usize) -> Result<Self> {
        if frames.is_empty() || !(fps > 0.0 && fps.is_finite()) {
            let found = frames.len();
            return Err(Error::Request(format!(
                "video: expected frames, and more than none a second, found {found} and {fps}"
            )));
        }
        let count = frames.len();
        let kept = evenly(count, most.max(1));
        let times = kept.iter().map(|&number| number as f64 / fps).collect();
        let mut places = kept.into_iter().peekable();
        let kept = frames.into_iter().enumerate().filter(|(number, _)| places.next_if_eq(number).is_some());
        Ok(Self { frames: kept.map(|(_, frame)| frame).collect(), times, seconds: count as f64 / fps })
    }
}

/// Up to `most` of the numbers below `count`, evenly from the first to the last.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    let most = most.min(count);
    let last = count.saturating_sub(1);
    (0..most).map(|i| if most > 1 { i * last / (most - 1) } else { 0 }).collect()
}

/// A video in a request: the first of its pictures, how many there are, and itself.
#[derive(Clone, Copy, Debug)]
pub struct Placed<'a> {
    /// Number of its first picture among all of the request.
    pub first: usize,
    /// Pictures.
    pub count: usize,
    /// The video.
    pub video: &'a Video,
}

/// How a family lays videos out: as pictures, of one frame or several, with text around them.
pub trait VideoProcessor: Send + Sync {
    /// What stands for a video in a rendered conversation.
    fn mark(&self) -> &str;

    /// The chat template that the reference takes for conversations with videos, where it is not the model's own.
    fn template(&self) -> Option<&str> {
        None
    }

    /// Frames that each picture takes of a video of `frames` frames, at least one; the last picture takes those that are left.
    fn frames_of_picture(&self, frames: usize) -> usize {
        let _ = frames;
        1
    }

    /// The picture that the tower sees of the frames `of` of a video, with at most `threads` threads.
    fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage>;

    /// What stands for a video in the prompt, with the mark of a picture for each of its pictures: `times` has those of the frames in
    /// seconds, `seconds` is the length of the video.
    fn text(&self, times: &[f64], seconds: f64) -> String;

    /// Gives the tokens of a prompt that was laid out the positions that videos ask for.
    fn place(&self, prompt: &mut Prompt, pictures: &[&PreparedImage], videos: &[Placed<'_>]) {
        let _ = (prompt, pictures, videos);
    }
}

/// A number in English words, as Python's num2words writes it; digits from a million on.
#[must_use]
pub fn in_words(number: usize) -> String {
    const ONES: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    match number {
        0..20 => ONES[number].into(),
        20..100 => match number % 10 {
            0 => TENS[number / 10 - 2].into(),
            one => format!("{}-{}", TENS[number / 10 - 2], ONES[one]),
        },
        100..1000 => match number % 100 {
            0 => format!("{} hundred", ONES[number / 100]),
            rest => format!("{} hundred and {}", ONES[number / 100], in_words(rest)),
        },
        1000..1_000_000 => match number % 1000 {
            0 => format!("{} thousand", in_words(number / 1000)),
            rest @ 1..100 => format!("{} thousand and {}", in_words(number / 1000), in_words(rest)),
            rest => format!("{} thousand, {}", in_words(number / 1000), in_words(rest)),
        },
        _ => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (number, text) in [
            (0, "zero"),
            (13, "thirteen"),
            (64, "sixty-four"),
            (90, "ninety"),
            (100, "one hundred"),
            (128, "one hundred and twenty-eight"),
            (1001, "one thousand and one"),
            (2000, "two thousand"),
            (12_345, "twelve thousand, three hundred and forty-five"),
        ] {
            assert_eq!(in_words(number), text);
        }
    }

    #[test]
    fn frames_are_kept_evenly() {
        assert_eq!(evenly(5, 9), [0, 1, 2, 3, 4]);
        assert_eq!(evenly(10, 4), [0, 3, 6, 9]);
        assert_eq!(evenly(10, 1), [0]);
        let frame = |level| Rgb8Image::from_raw(1, 1, vec![level; 3]).unwrap();
        let video = Video::of_frames((0..10).map(frame).collect(), 2.0, 3).unwrap();
        assert_eq!((video.times, video.seconds), (vec![0.0, 2.0, 4.5], 5.0));
        assert_eq!(video.frames.iter().map(|frame| frame.data()[0]).collect::<Vec<_>>(), [0, 4, 9]);
        assert!(
            Video::of_frames(vec![], 1.0, 3).is_err() && Video::of_frames(vec![frame(0)], 0.0, 3).is_err()
        );
    }
}
