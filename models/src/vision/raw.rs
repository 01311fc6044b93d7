//! Pixels as rows, for towers that begin with convolutions.

use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::Weights;
use ocelli_kernels::ops::PatchEmbed;

use super::vit::Pixels;
use crate::layers::table;

/// An embedding of patches of one pixel that leaves them as they are.
pub struct RawPixels {
    path: String,
    identity: Weights,
}

impl RawPixels {
    /// For the module at `path`.
    pub fn new(cx: &mut Ctx, path: &str) -> Result<Self> {
        let identity = table(cx, &[3, 3], &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])?;
        let identity = cx.stream().place(&Weights::dense(identity.view().clone(), None)?)?;
        Ok(Self { path: path.to_owned(), identity })
    }

    /// `pixels: [1, ...]` of `size` rows and columns  ->  `[rows * columns, 3]`, normalized.
    pub fn rows(&self, cx: &mut Ctx, pixels: &Pixels, size: (usize, usize)) -> Result<Tensor> {
        let out = cx.alloc(&[size.0 * size.1, 3], cx.dtype())?;
        let embed = PatchEmbed {
            pixels: cx.view(&pixels.values)?,
            w: self.identity.clone(),
            pos: None,
            pos_ids: None,
            mean: pixels.mean,
            std: pixels.std,
            patch: 1,
            out: cx.view(&out)?,
        };
        cx.exec(&self.path, &embed)?;
        Ok(out)
    }
}
