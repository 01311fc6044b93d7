//! Pictures fitted into a few tiles, and which tokens attend to which of them.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::prompt::Reach;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};

use super::tower::TowerPlan;
use crate::fields::Config;
use crate::processor::{Edge, Fit, ImageFields, added_token, cut, pad};

const KEYS: &[&str] = &["max_image_tiles", "do_pad"];

#[derive(Clone, Debug)]
pub(super) struct Processor {
    fields: ImageFields,
    tower: TowerPlan,
    fit: Fit,
    filter: Filter,
    /// What stands for a picture, as text and as a token.
    mark: (String, u32),
}

impl Processor {
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let tower = TowerPlan::read(&root.part("vision_config")?)?;
        let id = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(128_256);
        Self::of(ImageFields::load(files, KEYS)?, tower, (added_token(files, id)?, id))
    }

    fn of(fields: ImageFields, tower: TowerPlan, mark: (String, u32)) -> Result<Self> {
        for key in ["do_resize", "do_pad"] {
            if !fields.flag(key, true)? {
                return Err(fields.bad(key, "true", &serde_json::Value::Bool(false)));
            }
        }
        let side = match fields.edge("size", Edge::Exact { height: 224, width: 224 })? {
            Edge::Exact { height, width } if height == width => height,
            other => {
                return Err(Error::Request(format!(
                    "size: expected a height and the same width, found {other:?}"
                )));
            }
        };
        let most = fields.pixels("max_image_tiles")?.unwrap_or(4);
        if most != tower.tiles {
            let what = format!("expected {}, as the tower has, found {most}", tower.tiles);
            return Err(Error::Request(format!("max_image_tiles: {what}")));
        }
        fields.normalize([0.5; 3], [0.5; 3])?;
        let fit = Fit { side, most, largest: false, single: false };
        Ok(Self { filter: fields.resample(Filter::Bilinear)?, fields, tower, fit, mark })
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::of(fields, self.tower.clone(), self.mark.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (size, side) = ((image.width(), image.height()), self.fit.side);
        let (rows, cols) = self.fit.shape(size);
        let (width, height) = self.fit.fitted(size, (rows, cols));
        let fitted = resize(image, width, height, self.filter, threads)?;
        let canvas = pad(&fitted, cols * side, rows * side);
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        let tiles = cut(&canvas, rows, cols, (side, side));
        Ok(PreparedImage { tiles, rows, cols, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        &self.mark.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let tokens = tokenizer.encode(text)?;
        let at: Vec<usize> = (0..tokens.len()).filter(|&i| tokens[i] == self.mark.1).collect();
        if at.len() != images.len() {
            let what = format!("expected {} marks of pictures, found {}", images.len(), at.len());
            return Err(Error::Request(format!("prompt: {what}")));
        }
        let memory: Vec<usize> = images.iter().map(|image| self.tower.rows_of(image.tiles.len())).collect();
        let rest: Vec<usize> = memory.iter().map(|rows| self.tower.rows_of(self.fit.most) - rows).collect();
        let before = |media: usize| memory.iter().take(media).sum::<usize>();
        let total = memory.iter().chain(&rest).sum();
        let mut reaches = Vec::with_capacity(at.len() + 1);
        // Tokens before the first picture attend to all there is, tiles that are not there included, but take nothing of it further.
        if at.first().is_some_and(|first| *first > 0) {
            reaches.push(Reach { from: 0, rows: 0..total, early: true });
        }
        // Tokens after pictures that follow each other attend to all of those.
        let mut first = 0;
        for (media, &place) in at.iter().enumerate() {
            if media > 0 && at[media - 1] + 1 != place {
                first = media;
            }
            reaches.push(Reach { from: place, rows: before(first)..before(media + 1), early: false });
        }
        Ok(Prompt { tokens, memory, rest, reaches, ..Prompt::default() })
    }
}
