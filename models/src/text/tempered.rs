//! Factors of queries that grow with their positions.

use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{GatherRows, Pointwise};
use ocelli_kernels::{DType, Weights};

use super::TemperPlan;

/// A factor for each position.
pub(super) struct Tempered {
    path: String,
    /// f32 `[positions, 1]`.
    table: Weights,
}

impl Tempered {
    /// Computes the factors of so many positions; `path` names them in errors.
    pub fn new(cx: &mut Ctx, path: &str, plan: TemperPlan, positions: usize) -> Result<Self> {
        let factor = |position: usize| {
            let step = ((position as f32 + 1.0) / plan.floor as f32).floor();
            step.ln_1p() * plan.scale + 1.0
        };
        let bytes: Vec<u8> = (0..positions).flat_map(|position| factor(position).to_le_bytes()).collect();
        let table = cx.alloc_owned(&[positions, 1], DType::F32)?;
        cx.stream().write(table.view(), &bytes)?;
        Ok(Self { path: path.to_owned(), table: Weights::dense(table.view().clone(), None)? })
    }

    /// Multiplies the queries `q: [tokens, heads * head_dim]` at `positions`, i32 `[axes, tokens]`, in place.
    pub fn apply(&self, cx: &mut Ctx, q: &Tensor, positions: &Tensor) -> Result<()> {
        let tokens = q.size(0);
        let places = positions.narrow(0, 0, 1)?.reshape(&[tokens])?;
        let factors = cx.alloc(&[tokens, 1], DType::F32)?;
        let op = GatherRows {
            table: self.table.clone(),
            ids: cx.view(&places)?,
            scale: 1.0,
            out: cx.view(&factors)?,
        };
        cx.exec(&self.path, &op)?;
        let (view, row) = (cx.view(q)?, cx.view(&factors.reshape(&[tokens])?)?);
        cx.exec(&self.path, &Pointwise { row: Some(row), ..Pointwise::new(view.clone(), view) })
    }
}
