//! What follows attention in a layer of a decoder: a gated MLP, or experts.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::Activation;

use super::{Experts, ExpertsPlan, Linear, Norm, Stacked};

/// A gated MLP, or experts.
pub enum Mlp {
    /// `down(act(gate x) * up x)`.
    Gated {
        /// Gate and up projections.
        gate_up: Box<Stacked>,
        /// The down projection.
        down: Box<Linear>,
        /// Activation of the gate.
        act: Activation,
    },
    /// `down(act(up x))`.
    Plain {
        /// The up and down projections.
        layers: Box<[Linear; 2]>,
        /// The activation.
        act: Activation,
    },
    /// MLPs of which each row takes a few.
    Experts(Box<Experts>),
}

impl Mlp {
    /// Loads gate, up and down projections by their names at `scope`; gate and up may be one matrix, `gate_up_proj`.
    pub fn gated(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        [gate, up, down]: [&str; 3],
        (d, inner): (usize, usize),
        act: Activation,
        bias: bool,
    ) -> Result<Self> {
        let one = scope.at("gate_up_proj");
        let gate_up = if one.exists() {
            vec![(one, 2 * inner)]
        } else {
            vec![(scope.at(gate), inner), (scope.at(up), inner)]
        };
        Ok(Self::Gated {
            gate_up: Box::new(Stacked::load(cx, scope.prefix(), &gate_up, d, bias)?),
            down: Box::new(Linear::load(cx, &scope.at(down), d, inner, bias)?),
            act,
        })
    }

    /// Loads up and down projections by their names at `scope`.
    pub fn plain(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        [up, down]: [&str; 2],
        (d, inner): (usize, usize),
        act: Activation,
        bias: bool,
    ) -> Result<Self> {
        let up = Linear::load(cx, &scope.at(up), inner, d, bias)?;
        Ok(Self::Plain { layers: Box::new([up, Linear::load(cx, &scope.at(down), d, inner, bias)?]), act })
    }

    /// Loads experts at `scope`.
    pub fn experts(cx: &mut Ctx, scope: &Scope<'_>, plan: &ExpertsPlan) -> Result<Self> {
        Ok(Self::Experts(Box::new(Experts::load(cx, scope, plan)?)))
    }

    /// `h += mlp(norm(h))`. `steps`: see [`Experts::write_to`].
    pub fn add_normalized(&self, cx: &mut Ctx, norm: &Norm, h: &Tensor, steps: bool) -> Result<()> {
        match self {
            Self::Gated { gate_up, down, act } => {
                let up = gate_up.forward_gated(cx, norm, h, *act)?;
                down.add_to(cx, &up, h)
            }
            Self::Plain { .. } => {
                let x = norm.forward(cx, h)?;
                self.add_to(cx, &x, h, steps)
            }
            Self::Experts(experts) => {
                let x = norm.forward(cx, h)?;
                experts.write_to(cx, &x, &x, h, true, steps)
            }
        }
    }

    /// `h += mlp(x)`; `x` may be `h`, unless there are experts.
    pub fn add_to(&self, cx: &mut Ctx, x: &Tensor, h: &Tensor, steps: bool) -> Result<()> {
        match self {
            Self::Gated { gate_up, down, act } => {
                let up = gate_up.forward_gated_plain(cx, x, *act)?;
                down.add_to(cx, &up, h)
            }
            Self::Plain { layers, act } => {
                let up = layers[0].forward_act(cx, x, *act)?;
                layers[1].add_to(cx, &up, h)
            }
            Self::Experts(experts) => experts.write_to(cx, x, x, h, true, steps),
        }
    }

    /// `mlp(x): [m, d]  ->  [m, d]`.
    pub fn forward(&self, cx: &mut Ctx, x: &Tensor, steps: bool) -> Result<Tensor> {
        match self {
            Self::Gated { gate_up, down, act } => {
                let up = gate_up.forward_gated_plain(cx, x, *act)?;
                down.forward(cx, &up)
            }
            Self::Plain { layers, act } => {
                let up = layers[0].forward_act(cx, x, *act)?;
                layers[1].forward(cx, &up)
            }
            Self::Experts(experts) => {
                let out = cx.alloc(x.shape(), cx.dtype())?;
                experts.write_to(cx, x, x, &out, false, steps)?;
                Ok(out)
            }
        }
    }
}
