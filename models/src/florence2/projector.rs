//! From the tower's rows to the encoder's: embeddings of places, the mean of all rows before them, a layer and a norm.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Pool, PoolKind, PoolOver};

use crate::layers::{Linear, Norm, add_rows, constant, copy_rows};

/// How its tensors are named in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProjectorNames {
    /// As transformers has them.
    Transformers,
    /// As Microsoft's files have them, where the layer's matrix is turned.
    Microsoft,
}

/// The projector.
pub(super) struct Projector {
    path: String,
    /// Embeddings of columns and of rows, which lie side by side, and of the first frame, which is added to both.
    columns: Vec<f32>,
    rows: Vec<f32>,
    frame: Vec<f32>,
    /// Rows, or columns, that there are embeddings for.
    most: usize,
    proj: Linear,
    norm: Norm,
}

impl Projector {
    /// Loads the projector below `scope`, for rows of `d` features; `most` rows or columns and `frames` frames have embeddings.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        names: ProjectorNames,
        (d, out): (usize, usize),
        (most, frames): (usize, usize),
    ) -> Result<Self> {
        let scope = scope.role(Role::Connector);
        let floats = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            scope.take(name, shape)?;
            Ok(scope.checkpoint().floats(&scope.path(name))?)
        };
        let mut frame = floats("visual_temporal_embed.pos_idx_to_embed", &[frames, d])?;
        frame.truncate(d);
        let (places, proj) = match names {
            ProjectorNames::Transformers => {
                ("image_position_embed", Linear::load(cx, &scope.at("image_projection"), out, d, false)?)
            }
            ProjectorNames::Microsoft => {
                ("image_pos_embed", Linear::transposed(cx, &scope, "image_projection", out, d)?)
            }
        };
        Ok(Self {
            path: scope.path(places),
            columns: floats(&format!("{places}.column_embeddings.weight"), &[most, d - d / 2])?,
            rows: floats(&format!("{places}.row_embeddings.weight"), &[most, d / 2])?,
            frame,
            most,
            proj,
            norm: Norm::layer(cx, &scope.at("image_proj_norm"), out, 1e-5)?,
        })
    }

    /// `x: [rows * columns, d]  ->  out: [1 + rows * columns, out]`, of a picture of `grid`; `x` is changed.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let (patches, d) = (x.size(0), x.size(1));
        if grid.0.max(grid.1) > self.most {
            let what =
                format!("expected at most {} patches a side, found {} x {}", self.most, grid.1, grid.0);
            return Err(Error::Request(format!("picture: {what}")));
        }
        let mut places = Vec::with_capacity(patches * d);
        for (row, col) in (0..grid.0).flat_map(|row| (0..grid.1).map(move |col| (row, col))) {
            let (across, down) = (d - d / 2, d / 2);
            places.extend_from_slice(&self.columns[col * across..(col + 1) * across]);
            places.extend_from_slice(&self.rows[row * down..(row + 1) * down]);
        }
        places.iter_mut().zip(self.frame.iter().cycle()).for_each(|(place, frame)| *place += frame);
        let places = constant(cx, &[patches, d], &places)?;
        add_rows(cx, &self.path, x, &places)?;
        let all = cx.alloc(&[1 + patches, d], cx.dtype())?;
        let bounds = cx.upload(&[2], &[0, patches as i32])?;
        let mean = all.narrow(0, 0, 1)?;
        let over = PoolOver::Segments(cx.view(&bounds)?);
        cx.exec(&self.path, &Pool { x: cx.view(x)?, over, kind: PoolKind::Mean, out: cx.view(&mean)? })?;
        copy_rows(cx, &self.path, x, &all.narrow(0, 1, patches)?)?;
        self.proj.write_to(cx, &all, out)?;
        self.norm.write_to(cx, out, out)
    }
}
