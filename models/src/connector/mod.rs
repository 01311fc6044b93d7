//! What stands between towers and decoders.

mod adapter;
mod averaged;
mod downsample;
mod halved;
mod joined;
mod merger;
mod pooled;
mod projector;
mod qformer;
mod shuffle;
mod single;
mod unfold;
mod visual_words;
mod whole;
mod windowed;

pub use adapter::Adapter;
pub use averaged::Averaged;
pub use downsample::Downsample;
pub use halved::Halved;
pub use joined::Joined;
pub use merger::{Merger, MergerPlan};
pub use pooled::Pooled;
pub use projector::{Projector, ProjectorPlan};
pub use qformer::QFormer;
pub use shuffle::PixelShuffle;
pub use single::Single;
pub use unfold::Unfold;
pub use visual_words::{VisualWords, VisualWordsPlan};
pub use whole::Whole;
pub use windowed::{Begins, Group, Windowed, WindowedPlan};

use ocelli_engine::{Error, Result};

/// Patches of a grid in blocks of `factor x factor`. Errors if the grid is no multiple of the block.
fn blocks(grid: (usize, usize), factor: usize) -> Result<usize> {
    let (rows, cols) = grid;
    if rows.is_multiple_of(factor) && cols.is_multiple_of(factor) {
        return Ok(rows * cols / (factor * factor));
    }
    Err(Error::Request(format!(
        "tile: expected a multiple of {factor} patches a side, found {cols} x {rows}"
    )))
}
