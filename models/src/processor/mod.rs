//! What image processors have in common: their fields, resizing and normalization, places of pictures in prompts.

mod anyres;
mod area;
mod area_video;
mod axes;
mod canvas;
mod fields;
mod prompt;
mod square;
mod tiles;

pub use anyres::{ANYRES_KEYS, AnyresPlan, AnyresProcessor};
pub use area::{AreaDefaults, AreaProcessor, AreaRule};
pub use area_video::VideoRule;
pub use axes::place_grids;
pub use canvas::{
    CANVAS_KEYS, CanvasPlan, CanvasProcessor, ChooseGrid, grids, least_enlarged, nearest_aspect,
};
pub use fields::{Edge, ImageFields};
pub use prompt::{added_token, lay_out, lay_out_kinds, special_token, splice};
pub use square::{CLIP_MEAN, CLIP_STD, SquareProcessor};
pub use tiles::{Fit, arrangements, cut, in_square, pad};
