//! Routing: the experts of each row by its logits, and their weights.
//!
//! A score is the softmax of the row's logits over all experts, or the sigmoid of the expert's own. The `top` experts of the largest
//! scores, `bias` added, are chosen, the larger first and of equals the one of the lower number. Their weights are the scores without
//! bias, divided by their sum if asked, times `scale` and the expert's own factor.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::check;
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// What logits become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scores {
    /// Their softmax over all experts.
    #[default]
    Softmax,
    /// The sigmoid of each.
    Sigmoid,
}

/// `logits: [rows, experts]  ->  ids, weights: [rows, top]`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Logits `[rows, experts]`: floats; at most 1024 experts.
    pub logits: View,
    /// f32 `[experts]`: added to scores for the choice alone.
    pub bias: Option<View>,
    /// f32 `[experts]`: factor of each expert's weights.
    pub factors: Option<View>,
    /// What logits become.
    pub scores: Scores,
    /// Whether the weights of a row are divided by their sum.
    pub normalize: bool,
    /// Factor of all weights.
    pub scale: f32,
    /// i32 `[rows, top]`: the experts.
    pub ids: View,
    /// f32 `[rows, top]`: their weights.
    pub weights: View,
}

/// The key of a [`Route`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteSpec {
    /// Rows, bucketed.
    pub rows: u32,
    /// Experts.
    pub experts: u32,
    /// Experts chosen for each row.
    pub top: u32,
    /// Type of the logits.
    pub x: DType,
    /// What logits become.
    pub scores: Scores,
    /// Whether scores get a bias for the choice.
    pub bias: bool,
    /// Whether experts have factors.
    pub factors: bool,
    /// Whether weights are divided by their sum.
    pub normalize: bool,
}

/// Most experts: a row of them fits in the registers and the shared memory of every device.
const MOST: usize = 1024;

impl Op for Route {
    const NAME: &'static str = "route";
    type Spec = RouteSpec;

    fn spec(&self) -> Result<RouteSpec, ShapeError> {
        let Self { logits, bias, factors, ids, weights, .. } = self;
        check::rank("logits", logits, 2)?;
        check::float("logits", logits)?;
        let (rows, experts) = (logits.size(0), logits.size(1));
        check::rank("ids", ids, 2)?;
        check::dtype("ids", ids, DType::I32)?;
        let top = ids.size(1);
        check::shape("ids", ids, &[rows, top])?;
        check::dense("ids", ids)?;
        check::dtype("weights", weights, DType::F32)?;
        check::shape("weights", weights, &[rows, top])?;
        check::dense("weights", weights)?;
        if top == 0 || top > experts || experts > MOST {
            let found = format!("{top} of {experts}");
            return Err(ShapeError::mismatch(
                "ids axis 1",
                format!("1 to all of {MOST} experts or less"),
                found,
            ));
        }
        for (name, view) in [("bias", bias), ("factors", factors)] {
            if let Some(view) = view {
                check::dtype(name, view, DType::F32)?;
                check::shape(name, view, &[experts])?;
                check::output("ids", ids, [(name, view)])?;
                check::output("weights", weights, [(name, view)])?;
            }
        }
        check::output("ids", ids, [("logits", logits), ("weights", weights)])?;
        check::output("weights", weights, [("logits", logits)])?;
        Ok(RouteSpec {
            rows: bucket(rows),
            experts: experts as u32,
            top: top as u32,
            x: logits.dtype(),
            scores: self.scores,
            bias: bias.is_some(),
            factors: factors.is_some(),
            normalize: self.normalize,
        })
    }

    fn cost(&self) -> Cost {
        let tables = [&self.bias, &self.factors].into_iter().flatten().map(View::bytes).sum::<u64>();
        Cost {
            flops: (self.logits.len() * (self.ids.size(1) + 4)) as u64,
            read: self.logits.bytes() + tables,
            written: self.ids.bytes() + self.weights.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.logits);
        for table in [&mut self.bias, &mut self.factors].into_iter().flatten() {
            visit(Access::In, table);
        }
        visit(Access::Out, &mut self.ids);
        visit(Access::Out, &mut self.weights);
    }

    fn of_spec(spec: &RouteSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, experts, top) = (spec.rows as usize, spec.experts as usize, spec.top as usize);
        let mut table = |wanted: bool| match wanted {
            true => operands.activations(&[experts], DType::F32).map(Some),
            false => Ok(None),
        };
        let (bias, factors) = (table(spec.bias)?, table(spec.factors)?);
        Ok(Route {
            logits: operands.activations(&[rows, experts], spec.x)?,
            bias,
            factors,
            scores: spec.scores,
            normalize: spec.normalize,
            scale: 1.0,
            ids: operands.output(&[rows, top], DType::I32)?,
            weights: operands.output(&[rows, top], DType::F32)?,
        })
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        reference::reference(self, io)
    }

    #[cfg(feature = "conformance")]
    fn cases(cx: &mut crate::conformance::CaseCx) -> Vec<crate::conformance::Case<Self>> {
        cases::cases(cx)
    }
}
