//! Pictures fitted into tiles, followed by the whole picture in one.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};
use serde_json::Value;

use super::block;
use crate::fields::Config;
use crate::processor::{Edge, Fit, ImageFields, added_token, cut, lay_out, pad};
use crate::vision::VitPlan;

/// Fields beside the common ones; the reference writes its tokens between tiles whatever the fields say.
const KEYS: &[&str] = &[
    "end_of_image_token",
    "fake_image_token",
    "image_token",
    "max_patches",
    "patch_size",
    "patch_token",
    "pixel_shuffle_ratio",
    "resize_to_max_canvas",
    "start_of_image_token",
    "tile_x_separator_token",
    "tile_y_separator_token",
];

const MARK: &str = "<|image|>";

#[derive(Clone, Debug)]
pub(super) struct Processor {
    fields: ImageFields,
    fit: Fit,
    filter: Filter,
    /// Patches of a tile's side, and what blocks of them become one token.
    tower: (usize, usize, usize),
    /// The token of a feature.
    token: (String, u32),
}

impl Processor {
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let vision = root.part("vision_config")?;
        let tower = VitPlan::llama4(&vision)?;
        let id = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(200_092);
        let sizes = (tower.image, tower.patch, block(&vision, &tower)?);
        Self::of(ImageFields::load(files, KEYS)?, sizes, (added_token(files, id)?, id))
    }

    fn of(fields: ImageFields, tower: (usize, usize, usize), token: (String, u32)) -> Result<Self> {
        if !fields.flag("do_resize", true)? {
            return Err(fields.bad("do_resize", "true", &Value::Bool(false)));
        }
        let side = match fields.edge("size", Edge::Exact { height: 336, width: 336 })? {
            Edge::Exact { height, width } if (height, width) == (tower.0, tower.0) => height,
            other => {
                let what = format!("expected {} pixels a side, as the tower has, found {other:?}", tower.0);
                return Err(Error::Request(format!("size: {what}")));
            }
        };
        let patch = fields.pixels("patch_size")?.unwrap_or(14);
        if patch != tower.1 {
            let what = format!("expected {}, as the tower has, found {patch}", tower.1);
            return Err(Error::Request(format!("patch_size: {what}")));
        }
        fields.normalize([0.5; 3], [0.5; 3])?;
        let fit = Fit {
            side,
            most: fields.pixels("max_patches")?.unwrap_or(16),
            largest: fields.flag("resize_to_max_canvas", false)?,
            single: true,
        };
        Ok(Self { filter: fields.resample(Filter::Bilinear)?, fields, fit, tower, token })
    }

    /// What stands for a picture with that grid of tiles, in a prompt.
    fn text(&self, tile: &str, rows: usize, cols: usize) -> String {
        let line = vec![tile; cols].join("<|tile_x_separator|>") + "<|tile_y_separator|>";
        let tiles = if rows * cols > 1 { line.repeat(rows) } else { String::new() };
        format!("<|image_start|>{tiles}{MARK}{tile}<|image_end|>")
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::of(fields, self.tower, self.token.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let (size, side) = ((image.width(), image.height()), self.fit.side);
        let (rows, cols) = self.fit.shape(size);
        let (width, height) = self.fit.fitted(size, (rows, cols));
        let fitted = resize(image, width, height, self.filter, threads)?;
        let canvas = pad(&fitted, cols * side, rows * side);
        let mut tiles = cut(&canvas, rows, cols, (side, side));
        if rows * cols > 1 {
            tiles.push(resize(image, side, side, self.filter, threads)?.into());
        }
        let normalize = self.fields.normalize([0.5; 3], [0.5; 3])?;
        Ok(PreparedImage { tiles, rows, cols, normalize, assembly: None })
    }

    fn image_mark(&self) -> &str {
        MARK
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let (side, patch, block) = self.tower;
        let per_tile = (side / patch / block) * (side / patch / block);
        let tile = self.token.0.repeat(per_tile);
        let pictures: Vec<String> =
            images.iter().map(|image| self.text(&tile, image.rows, image.cols)).collect();
        let rows: Vec<usize> = images.iter().map(|image| image.tiles.len() * per_tile).collect();
        lay_out(tokenizer, text, MARK, &pictures, self.token.1, &rows)
    }
}
