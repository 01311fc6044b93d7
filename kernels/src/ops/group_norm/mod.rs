//! Normalization of groups of channels over all places of a picture.
//!
//! A group is `channels / groups` neighbouring channels of every row of a picture:
//! `out = act((x - mean) / sqrt(var + eps) * weight + bias)` with mean and variance (of the population) of its group.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod reference;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "conformance")]
mod cases;

use serde::{Deserialize, Serialize};

use super::{Activation, check};
use crate::buffer::View;
use crate::op::{Access, Op};
use crate::operands::Operands;
use crate::oracle::Oracle;
use crate::spec::{Cost, DType, KernelError, ShapeError, bucket};

/// `x: [pictures * rows, channels]  ->  out: [pictures * rows, channels]`.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    /// Input `[pictures * rows, channels]`.
    pub x: View,
    /// Scale of each channel `[channels]`.
    pub weight: View,
    /// Shift of each channel `[channels]`.
    pub bias: View,
    /// Rows of a picture.
    pub rows: usize,
    /// Groups of channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Applied last.
    pub act: Activation,
    /// Result `[pictures * rows, channels]`; may be the very elements of `x`.
    pub out: View,
}

/// The key of a [`GroupNorm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupNormSpec {
    /// Pictures, bucketed.
    pub pictures: u32,
    /// Rows of a picture, bucketed.
    pub rows: u32,
    /// Elements of a row.
    pub channels: u32,
    /// Groups of channels.
    pub groups: u32,
    /// The activation.
    pub act: Activation,
    /// Type of the input.
    pub x: DType,
    /// Type of the result.
    pub out: DType,
}

impl GroupNorm {
    /// Pictures.
    fn pictures(&self) -> usize {
        self.x.size(0).checked_div(self.rows).unwrap_or(0)
    }
}

impl Op for GroupNorm {
    const NAME: &'static str = "group_norm";
    type Spec = GroupNormSpec;

    fn spec(&self) -> Result<GroupNormSpec, ShapeError> {
        let Self { x, weight, bias, out, .. } = self;
        check::rank("x", x, 2)?;
        check::float("x", x)?;
        let (rows, channels) = (x.size(0), x.size(1));
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            let expected = format!("a number that {channels} channels are a multiple of");
            return Err(ShapeError::mismatch("groups", expected, self.groups));
        }
        if self.rows == 0 || !rows.is_multiple_of(self.rows) {
            return Err(ShapeError::mismatch("x axis 0", format!("a multiple of {}", self.rows), rows));
        }
        check::shape("out", out, x.shape())?;
        check::float("out", out)?;
        for (name, view) in [("weight", weight), ("bias", bias)] {
            check::shape(name, view, &[channels])?;
            check::float(name, view)?;
            check::output("out", out, [(name, view)])?;
        }
        match x.same_elements(out) {
            true => check::output("out", out, [])?,
            false => check::output("out", out, [("x", x)])?,
        }
        Ok(GroupNormSpec {
            pictures: bucket(self.pictures()),
            rows: bucket(self.rows),
            channels: channels as u32,
            groups: self.groups as u32,
            act: self.act,
            x: x.dtype(),
            out: out.dtype(),
        })
    }

    fn cost(&self) -> Cost {
        Cost {
            flops: 8 * self.x.len() as u64,
            read: self.x.bytes() + self.weight.bytes() + self.bias.bytes(),
            written: self.out.bytes(),
        }
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::In, &mut self.weight);
        visit(Access::In, &mut self.bias);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(spec: &GroupNormSpec, operands: &mut dyn Operands) -> Result<Self, KernelError> {
        let (rows, channels) = (spec.rows as usize, spec.channels as usize);
        let shape = [spec.pictures as usize * rows, channels];
        Ok(Self {
            x: operands.activations(&shape, spec.x)?,
            weight: operands.table(&[channels], DType::F32)?,
            bias: operands.table(&[channels], DType::F32)?,
            rows,
            groups: spec.groups as usize,
            eps: 1e-6,
            act: spec.act,
            out: operands.output(&shape, spec.out)?,
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
