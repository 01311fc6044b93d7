//! Videos as the video processors of Qwen2-VL and its successors and of GLM-4V prepare them: as many frames as a patch has are one
//! picture, with a time where the class writes such.

use std::ops::Range;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::video::Placed;
use ocelli_engine::{Error, Result};

use super::area::KEYS;
use super::{AreaDefaults, AreaProcessor, AreaRule, ImageFields, added_token};
use crate::fields::Fields;

/// How a class lays videos out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VideoRule {
    /// `Qwen2VLProcessor`: one run of tokens, each picture a position later than the one before.
    Run,
    /// `Qwen2_5_VLProcessor`: the same, as many positions later as its time says.
    Timed,
    /// `Qwen3VLProcessor`: the time before each picture.
    Before,
    /// `Glm4vProcessor`: the time in whole seconds behind each picture.
    Whole,
    /// `Glm46VProcessor`: the time in tenths of seconds behind each picture.
    Tenths,
}

/// Positions of a second where the configuration says nothing.
const PER_SECOND: f64 = 4.0;

/// Least and most pixels of a video of GLM-4V, of all frames together.
const GLM_AREA: (usize, usize) = (112 * 112, 28 * 28 * 2 * 30_000);

/// What prepares videos for one checkpoint.
#[derive(Clone, Debug)]
pub struct AreaVideo {
    rule: VideoRule,
    /// Sizes of frames.
    frames: Box<AreaProcessor>,
    /// Stands for a video in a rendered conversation, and for a feature where the class has no time between pictures' tokens.
    token: (String, u32),
    /// Positions of a second.
    per_second: f32,
}

impl AreaVideo {
    /// Reads the video processor of a model with that `config`; `image` has what stands for a picture.
    pub fn load(
        files: &ModelFiles,
        config: &Fields<'_>,
        defaults: AreaDefaults,
        rule: VideoRule,
        image: &(String, u32),
    ) -> Result<Self> {
        let usual = match rule {
            VideoRule::Run | VideoRule::Timed => {
                AreaDefaults { area: (128 * 28 * 28, 28 * 28 * 768), rule: AreaRule::Qwen, ..defaults }
            }
            VideoRule::Before => AreaDefaults {
                area: (128 * 32 * 32, 32 * 32 * 768),
                rule: AreaRule::Glm,
                patch: 16,
                mean: [0.5; 3],
                std: [0.5; 3],
                ..defaults
            },
            VideoRule::Whole | VideoRule::Tenths => {
                AreaDefaults { area: GLM_AREA, rule: AreaRule::Glm, ..defaults }
            }
        };
        let id: u32 = config.or("video_token_id", defaults.image_token + 1)?;
        let per_second = config.at("vision_config").or("tokens_per_second", PER_SECOND)?;
        if !(0.0..1e6).contains(&per_second) {
            let what = format!("expected a number up to a million, found {per_second}");
            return Err(config.at("vision_config").bad("tokens_per_second", what));
        }
        let fields = ImageFields::load_video(files, KEYS)?;
        Ok(Self {
            rule,
            frames: Box::new(AreaProcessor::new(fields, usual, image.clone())?),
            // Files of models that nobody asks about videos may lack the token.
            token: (added_token(files, id).unwrap_or_default(), id),
            per_second: per_second as f32,
        })
    }

    /// What stands for a video in a rendered conversation.
    pub fn mark(&self) -> &str {
        &self.token.0
    }

    /// The mark of a video's features with its token, of classes that have one of their own.
    pub fn kind(&self) -> Option<(&str, u32)> {
        let own = !matches!(self.rule, VideoRule::Whole | VideoRule::Tenths) && !self.token.0.is_empty();
        own.then_some((&*self.token.0, self.token.1))
    }

    /// Frames of each picture.
    pub fn frames_of_picture(&self) -> usize {
        self.frames.frames()
    }

    /// The picture of frames `of`.
    pub fn picture(&self, frames: &[Rgb8Image], of: Range<usize>, threads: usize) -> Result<PreparedImage> {
        if self.token.0.is_empty() {
            let found = format!("the tokenizer has no token {}", self.token.1);
            return Err(Error::Request(format!("video: {found}, which stands for videos")));
        }
        self.frames.joined(frames, of, threads)
    }

    /// What stands for a video with frames at these times; `image` is the mark of a picture.
    pub fn text(&self, times: &[f64], image: &str) -> String {
        let pairs = times.chunks(self.frames.frames()).map(|some| {
            let (first, last) = (some.first().copied().unwrap_or(0.0), some.last().copied().unwrap_or(0.0));
            let mark = &self.token.0;
            match self.rule {
                VideoRule::Run | VideoRule::Timed => mark.clone(),
                VideoRule::Before => {
                    format!("<{:.1} seconds><|vision_start|>{mark}<|vision_end|>", (first + last) / 2.0)
                }
                VideoRule::Whole => format!("<|begin_of_image|>{image}<|end_of_image|>{}", first as u64),
                VideoRule::Tenths => format!("<|begin_of_image|>{image}<|end_of_image|>{first:.1} seconds"),
            }
        });
        pairs.collect()
    }

    /// For each of `count` pictures of a request, how much later than its video it is, if it belongs to one that began before.
    pub fn later(&self, count: usize, videos: &[Placed<'_>]) -> Vec<Option<i32>> {
        let mut later = vec![None; count];
        for placed in videos {
            // As the reference computes it, in f32.
            let step = match self.rule {
                VideoRule::Run => 1.0,
                VideoRule::Timed => {
                    let rate = placed.video.frames.len() as f64 / placed.video.seconds;
                    self.per_second * (self.frames.frames() as f64 / rate) as f32
                }
                VideoRule::Before | VideoRule::Whole | VideoRule::Tenths => continue,
            };
            for i in 1..placed.count {
                if let Some(later) = later.get_mut(placed.first + i) {
                    *later = Some((i as f32 * step) as i32);
                }
            }
        }
        later
    }
}
