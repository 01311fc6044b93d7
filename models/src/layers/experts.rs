//! Experts: MLPs of which each row takes a few, chosen by a router, and one that every row takes.

use ocelli_engine::weights::{self, Bank, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, ExpertMatmul, GatherRows, Matmul, MixRows, Pointwise, Route, Scores};
use ocelli_kernels::{DType, Storage, View, Weights};

use super::linear::{Columns, in_order, place_columns};
use super::{Linear, Stacked, copy_rows};

/// What differs between mixtures of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsPlan {
    /// Experts.
    pub experts: usize,
    /// Experts that a row takes.
    pub top: usize,
    /// Features of a row.
    pub d: usize,
    /// Features between the layers of an expert.
    pub inner: usize,
    /// Activation of the gate.
    pub act: Activation,
    /// What the router's logits become.
    pub scores: Scores,
    /// Whether the weights of a row are divided by their sum.
    pub normalize: bool,
    /// Factor of all weights.
    pub scale: f32,
    /// Whether weights are factors of what experts take, not of what they give; for one expert a row.
    pub scale_input: bool,
    /// Whether stacked matrices are stored with columns and rows exchanged; `None`: their shape tells.
    pub transposed: Option<bool>,
    /// Name of the router's matrix.
    pub router: &'static str,
    /// Name of what is added to scores for the choice, if there is such.
    pub bias: Option<&'static str>,
    /// Name of the factors of each expert's weights, if there are such.
    pub factors: Option<&'static str>,
    /// Names of gate, up and down projections of experts that are stored one by one.
    pub names: [&'static str; 3],
    /// Where MLX has the projections of all experts.
    pub stack: &'static str,
    /// The expert that every row takes, if there is one.
    pub shared: Option<SharedPlan>,
}

impl ExpertsPlan {
    /// Experts by the softmax over all of them, whose weights sum to 1; two for each row.
    #[must_use]
    pub const fn softmax(experts: usize, d: usize, inner: usize) -> Self {
        Self {
            experts,
            top: 2,
            d,
            inner,
            act: Activation::Silu,
            scores: Scores::Softmax,
            normalize: true,
            scale: 1.0,
            scale_input: false,
            transposed: None,
            router: "gate",
            bias: None,
            factors: None,
            names: ["gate_proj", "up_proj", "down_proj"],
            stack: "switch_mlp",
            shared: None,
        }
    }
}

/// The expert that every row takes.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedPlan {
    /// Its name.
    pub name: &'static str,
    /// Features between its layers.
    pub inner: usize,
    /// Name of the layer whose sigmoid is the factor of its result, if there is one.
    pub gate: Option<&'static str>,
}

struct Shared {
    gate_up: Stacked,
    down: Linear,
    gate: Option<Linear>,
}

/// A mixture of experts.
pub struct Experts {
    plan: ExpertsPlan,
    path: String,
    router: Linear,
    bias: Option<Tensor>,
    factors: Option<Tensor>,
    /// Gate and up of each expert, `[experts * 2 inner, d]`.
    gate_up: Weights,
    /// `[experts * d, inner]`.
    down: Weights,
    /// The order of columns of gate and up, and of down, of each expert; empty where all are in their own.
    orders: [Vec<Columns>; 2],
    shared: Option<Shared>,
}

/// Rows of x and choices that one launch serves on a device that works beside the host; more are sorted by expert there.
const FEW_CHOICES: usize = 64;

impl Experts {
    /// Loads router and experts below `scope`: parameters of all experts, `experts.gate_up_proj` and `experts.down_proj`; modules of all,
    /// as MLX has them, `switch_mlp.gate_proj`, ...; or one by one, `experts.0.gate_proj`, ....
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &ExpertsPlan) -> Result<Self> {
        let &ExpertsPlan { experts, top, d, .. } = plan;
        if top == 0 || top > experts {
            let reason = format!("experts: expected 1 to {experts} of {experts} for a row, found {top}");
            return Err(Error::Config { path: scope.prefix().to_owned(), reason });
        }
        let Matrices { gate_up, down, orders } = matrices(cx, scope, plan)?;
        let mut table = |name: Option<&str>| name.map(|name| floats(cx, scope, name, experts)).transpose();
        let (bias, factors) = (table(plan.bias)?, table(plan.factors)?);
        let shared = match &plan.shared {
            Some(shared) => Some(Shared::load(cx, scope, shared, d)?),
            None => None,
        };
        Ok(Self {
            path: scope.prefix().to_owned(),
            router: Linear::load(cx, &scope.at(plan.router), experts, d, false)?,
            bias,
            factors,
            gate_up,
            down,
            orders,
            shared,
            plan: plan.clone(),
        })
    }

    /// `out = experts(x)`, or `out += experts(x)`; the router sees `routed`, which has as many rows. `steps`: the launches must not
    /// depend on what the host reads.
    pub fn write_to(
        &self,
        cx: &mut Ctx,
        routed: &Tensor,
        x: &Tensor,
        out: &Tensor,
        add: bool,
        steps: bool,
    ) -> Result<()> {
        cx.scope(|cx| {
            let (rows, top) = (x.size(0), self.plan.top);
            let (ids, weights) = self.route(cx, routed)?;
            let choices = rows * top;
            let taken = if self.plan.scale_input { &self.scaled(cx, x, &weights)? } else { x };
            let beside = cx.overlaps() || cx.records();
            let sorted = self.orders.iter().all(Vec::is_empty);
            let (results, order) = if sorted && beside && (steps || choices <= FEW_CHOICES) {
                (self.at_once(cx, taken, &ids.reshape(&[choices])?)?, None)
            } else {
                let (results, order) = self.one_by_one(cx, taken, &ids)?;
                (results, Some(order))
            };
            if self.plan.scale_input {
                let results = match &order {
                    Some(order) => gather(cx, &self.path, &results, &order.reshape(&[choices])?)?,
                    None => results,
                };
                for (number, result) in each_choice(&results, top)?.iter().enumerate() {
                    let (result, out) = (cx.view(result)?, cx.view(out)?);
                    let before = (add || number > 0).then(|| out.clone());
                    cx.exec(&self.path, &Pointwise { add: before, ..Pointwise::new(result, out) })?;
                }
            } else {
                self.mix(cx, &results, order.as_ref(), &weights, add, out)?;
            }
            match &self.shared {
                Some(shared) => self.add_shared(cx, shared, x, out),
                None => Ok(()),
            }
        })
    }

    /// Experts i32 `[rows, top]` and their weights f32 `[rows, top]`.
    fn route(&self, cx: &mut Ctx, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let (rows, plan) = (x.size(0), &self.plan);
        let logits = cx.alloc(&[rows, plan.experts], DType::F32)?;
        self.router.write_to(cx, x, &logits)?;
        let ids = cx.alloc(&[rows, plan.top], DType::I32)?;
        let weights = cx.alloc(&[rows, plan.top], DType::F32)?;
        let table = |cx: &Ctx, table: &Option<Tensor>| table.as_ref().map(|table| cx.view(table)).transpose();
        let op = Route {
            logits: cx.view(&logits)?,
            bias: table(cx, &self.bias)?,
            factors: table(cx, &self.factors)?,
            scores: plan.scores,
            normalize: plan.normalize,
            scale: plan.scale,
            ids: cx.view(&ids)?,
            weights: cx.view(&weights)?,
        };
        cx.exec(&self.path, &op)?;
        Ok((ids, weights))
    }

    /// Results of all choices `[choices, d]` in their order, by launches that serve all of them.
    fn at_once(&self, cx: &mut Ctx, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (plan, choices) = (&self.plan, ids.size(0));
        let mut product = |x: &Tensor, w: &Weights, share: usize, gated: bool| {
            let n = w.n() / plan.experts / if gated { 2 } else { 1 };
            let out = cx.alloc(&[choices, n], cx.dtype())?;
            let op = ExpertMatmul {
                x: cx.view(x)?,
                w: w.clone(),
                experts: plan.experts,
                ids: cx.view(ids)?,
                share,
                act: if gated { plan.act } else { Activation::None },
                gated,
                out: cx.view(&out)?,
            };
            cx.exec(&self.path, &op)?;
            Ok::<_, Error>(out)
        };
        let up = product(x, &self.gate_up, self.share(), true)?;
        product(&up, &self.down, 1, false)
    }

    /// Results of all choices `[choices, d]` in the order of their experts, by products for each expert that some row chose, and the
    /// place of each choice in it, i32 `[rows, top]`.
    fn one_by_one(&self, cx: &mut Ctx, x: &Tensor, ids: &Tensor) -> Result<(Tensor, Tensor)> {
        let (plan, choices) = (&self.plan, ids.size(0) * ids.size(1));
        let chosen: Vec<usize> = cx.download(ids)?.into_iter().map(|id| id as usize).collect();
        let mut order: Vec<usize> = (0..choices).collect();
        order.sort_by_key(|&choice| chosen[choice]);
        let mut places = vec![0i32; choices];
        order.iter().zip(0..).for_each(|(&choice, place)| places[choice] = place);
        let rows: Vec<i32> = order.iter().map(|choice| (choice / self.share()) as i32).collect();
        let rows = cx.upload(&[choices], &rows)?;
        let places = cx.upload(&[choices / plan.top, plan.top], &places)?;
        let x = gather(cx, &self.path, x, &rows)?;
        let up = cx.alloc(&[choices, plan.inner], cx.dtype())?;
        let out = cx.alloc(&[choices, plan.d], cx.dtype())?;
        let mut first = 0;
        for same in order.chunk_by(|&a, &b| chosen[a] == chosen[b]) {
            let expert = chosen[same[0]].min(plan.experts - 1);
            let part = |x: &Tensor| x.narrow(0, first, same.len());
            let [of_x, of_up] = self.orders.each_ref().map(|orders| orders.get(expert).unwrap_or(&None));
            let w = self.gate_up.rows(expert * 2 * plan.inner, 2 * plan.inner)?;
            let rows = in_order(cx, &self.path, of_x, &part(&x)?)?;
            self.product(cx, &rows, w, &part(&up)?, true)?;
            let w = self.down.rows(expert * plan.d, plan.d)?;
            let rows = in_order(cx, &self.path, of_up, &part(&up)?)?;
            self.product(cx, &rows, w, &part(&out)?, false)?;
            first += same.len();
        }
        Ok((out, places))
    }

    fn product(&self, cx: &mut Ctx, x: &Tensor, w: Weights, out: &Tensor, gated: bool) -> Result<()> {
        let math = cx.math(&w);
        let mut op = Matmul::new(cx.view(x)?, w, cx.view(out)?);
        op.math = math;
        if gated {
            (op.act, op.gated) = (self.plan.act, true);
        }
        cx.exec(&self.path, &op)
    }

    /// `out (+)= sum of weights[i, t] * src[ids[i, t]]`.
    fn mix(
        &self,
        cx: &mut Ctx,
        src: &Tensor,
        ids: Option<&Tensor>,
        weights: &Tensor,
        add: bool,
        out: &Tensor,
    ) -> Result<()> {
        let ids = ids.map(|ids| cx.view(ids)).transpose()?;
        let op = MixRows { src: cx.view(src)?, ids, weights: cx.view(weights)?, add, out: cx.view(out)? };
        cx.exec(&self.path, &op)
    }

    /// Choices that take the same row of what experts are given.
    const fn share(&self) -> usize {
        if self.plan.scale_input { 1 } else { self.plan.top }
    }

    /// `[rows, d]` times the weight of each choice, `[rows, top]  ->  [rows * top, d]`.
    fn scaled(&self, cx: &mut Ctx, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let (choices, d) = (weights.size(0) * weights.size(1), x.size(1));
        let copies = if self.plan.top == 1 { x.clone() } else { cx.alloc(&[choices, d], cx.dtype())? };
        if self.plan.top > 1 {
            for copy in each_choice(&copies, self.plan.top)? {
                copy_rows(cx, &self.path, x, &copy)?;
            }
        }
        let out = cx.alloc(&[choices, d], cx.dtype())?;
        self.mix(cx, &copies, None, &weights.reshape(&[choices, 1])?, false, &out)?;
        Ok(out)
    }

    fn add_shared(&self, cx: &mut Ctx, shared: &Shared, x: &Tensor, out: &Tensor) -> Result<()> {
        let up = shared.gate_up.forward_gated_plain(cx, x, self.plan.act)?;
        let Some(gate) = &shared.gate else { return shared.down.add_to(cx, &up, out) };
        let result = shared.down.forward(cx, &up)?;
        let rows = x.size(0);
        let logits = cx.alloc(&[rows, 1], DType::F32)?;
        gate.write_to(cx, x, &logits)?;
        // The sigmoid of each row's own logit: a router of one expert.
        let ids = cx.alloc(&[rows, 1], DType::I32)?;
        let weights = cx.alloc(&[rows, 1], DType::F32)?;
        let op = Route {
            logits: cx.view(&logits)?,
            bias: None,
            factors: None,
            scores: Scores::Sigmoid,
            normalize: false,
            scale: 1.0,
            ids: cx.view(&ids)?,
            weights: cx.view(&weights)?,
        };
        cx.exec(&self.path, &op)?;
        self.mix(cx, &result, None, &weights, true, out)
    }
}

impl Shared {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &SharedPlan, d: usize) -> Result<Self> {
        let own = scope.at(plan.name);
        let gate_up = [(own.at("gate_proj"), plan.inner), (own.at("up_proj"), plan.inner)];
        let gate = plan.gate.map(|gate| Linear::load(cx, &scope.at(gate), 1, d, false)).transpose()?;
        Ok(Self {
            gate_up: Stacked::load(cx, own.prefix(), &gate_up, d, false)?,
            down: Linear::load(cx, &own.at("down_proj"), d, plan.inner, false)?,
            gate,
        })
    }
}

/// The rows of each choice, `[rows * top, d]  ->  [rows, d]` of `top`.
fn each_choice(all: &Tensor, top: usize) -> Result<Vec<Tensor>> {
    let (rows, d) = (all.size(0) / top, all.size(1));
    let side_by_side = all.reshape(&[rows, top * d])?;
    (0..top).map(|choice| side_by_side.narrow(1, choice * d, d)).collect()
}

/// Side of the blocks in which matrices are turned.
const BLOCK: usize = 32;

/// The matrices of all experts, and their orders of columns.
struct Matrices {
    gate_up: Weights,
    down: Weights,
    orders: [Vec<Columns>; 2],
}

/// Gate and up of all experts, and down, in whichever of the layouts they are stored.
fn matrices(cx: &mut Ctx, scope: &Scope<'_>, plan: &ExpertsPlan) -> Result<Matrices> {
    let &ExpertsPlan { experts, d, inner, .. } = plan;
    let all = scope.at_any(&["experts", "moe.experts"]);
    let [gate, up, down] = plan.names;
    let paths = || [all.prefix().to_owned(), scope.path(plan.stack)];
    if all.has("gate_up_proj") {
        let mut of = |name: &str, k: usize, projections: &[(&str, usize)]| {
            parameter(cx, &all, name, plan, k, projections, paths())
        };
        let gate_up = of("gate_up_proj", d, &[(gate, inner), (up, inner)])?;
        let down = of("down_proj", inner, &[(down, d)])?;
        return Ok(Matrices { gate_up, down, orders: Default::default() });
    }
    let modules = [scope.at("switch_mlp"), all.at("switch_glu"), all.clone()];
    let stack = modules.into_iter().find(|stack| stack.at(gate).exists());
    for (name, n, k) in [(gate, inner, d), (up, inner, d), (down, d, inner)] {
        let Some(here) = stack.as_ref().map(|stack| stack.at(name)).filter(|here| !here.is_quantized())
        else {
            continue;
        };
        let view = here.any("weight")?;
        let projections = vec![(name.to_owned(), n)];
        here.bank(Bank::new(here.path("weight"), [experts, k], false, projections, paths(), &view));
    }
    let one = |expert: usize, name: &str| match &stack {
        Some(stack) => stack.at(name).part(expert, experts),
        None => all.at(expert).at(name),
    };
    let ins: Vec<_> = (0..experts).flat_map(|i| [(one(i, gate), inner), (one(i, up), inner)]).collect();
    let outs: Vec<_> = (0..experts).map(|i| (one(i, down), d)).collect();
    let (gate_up, of_ins) = weights::stacked_in_order(&ins, d)?;
    let (down, of_outs) = weights::stacked_in_order(&outs, inner)?;
    if let Some(i) = of_ins.chunks_exact(2).position(|pair| pair[0] != pair[1]) {
        let reason = "g_idx: expected one order of columns for gate and up, found two".into();
        return Err(Error::Config { path: all.at(i).prefix().to_owned(), reason });
    }
    let of_ins: Vec<_> = of_ins.into_iter().step_by(2).collect();
    if of_ins.iter().chain(&of_outs).any(Option::is_some) && (cx.overlaps() || cx.records()) {
        let reason = "g_idx: columns of experts in activation order are read on the CPU alone".into();
        return Err(Error::Config { path: all.prefix().to_owned(), reason });
    }
    let mut place = |orders: Vec<weights::Columns>| -> Result<Vec<Columns>> {
        if orders.iter().all(Option::is_none) {
            return Ok(Vec::new());
        }
        orders.into_iter().map(|order| place_columns(cx, order)).collect()
    };
    let orders = [place(of_ins)?, place(of_outs)?];
    Ok(Matrices { gate_up: cx.stream().place(&gate_up)?, down: cx.stream().place(&down)?, orders })
}

/// The matrices of all experts as one parameter: `[experts, n, k]` or `[experts, k, n]`. The latter are turned once, in their own type.
/// `projections` are the names and rows of what they are made of, `paths` those of experts one by one and of MLX's stacks.
fn parameter(
    cx: &mut Ctx,
    scope: &Scope<'_>,
    name: &str,
    &ExpertsPlan { experts, transposed, .. }: &ExpertsPlan,
    k: usize,
    projections: &[(&str, usize)],
    paths: [String; 2],
) -> Result<Weights> {
    let n = projections.iter().map(|(_, rows)| rows).sum();
    if !scope.parameter(name, 0, experts, false).is_quantized() {
        let (w, turned) = stacked(cx, scope, name, [experts, n, k], transposed)?;
        if let Some(view) = w.parts().first().and_then(|part| part.planes.first()) {
            let projections = projections.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect();
            scope.bank(Bank::new(scope.path(name), [experts, k], turned, projections, paths, view));
        }
        return Ok(w);
    }
    // Packed codes are fewer than columns: the outputs tell.
    let found = scope.info(name).map_or(&[][..], |info| info.shape);
    let turned = transposed.unwrap_or(matches!(found, &[_, lines, cols] if cols == n && lines != n));
    let all: Vec<_> = (0..experts).map(|i| (scope.parameter(name, i, experts, turned), n)).collect();
    Ok(cx.stream().place(&weights::stacked(&all, k)?)?)
}

/// The matrices of all experts, stored as `[experts, n, k]` or `[experts, k, n]`; the latter are turned once, in their own type, and
/// told.
fn stacked(
    cx: &mut Ctx,
    scope: &Scope<'_>,
    name: &str,
    [experts, n, k]: [usize; 3],
    transposed: Option<bool>,
) -> Result<(Weights, bool)> {
    let found = scope.info(name).map(|info| info.shape.to_vec());
    let turned = transposed.unwrap_or_else(|| n != k && found.as_deref() == Some(&[experts, k, n]));
    if !turned {
        let view = scope.take(name, &[experts, n, k])?.reshape(&[experts * n, k])?;
        return Ok((cx.stream().place(&Weights::dense(view, None)?)?, false));
    }
    let stored = scope.take(name, &[experts, k, n])?;
    let (size, bytes) = (stored.dtype().size(), scope.checkpoint().raw(&scope.path(name))?);
    let w = cx.alloc_owned(&[experts * n, k], stored.dtype())?;
    // A dry run writes nothing.
    if matches!(w.view().storage(), Storage::Meta(_)) {
        return Ok((Weights::dense(w.view().clone(), None)?, true));
    }
    let mut one = vec![0u8; n * k * size];
    for (expert, from) in bytes.chunks_exact(one.len().max(1)).take(experts).enumerate() {
        // Block by block, so that neither side leaves the caches between elements of a line.
        for (row, col) in
            (0..n).step_by(BLOCK).flat_map(|row| (0..k).step_by(BLOCK).map(move |col| (row, col)))
        {
            for row in row..(row + BLOCK).min(n) {
                for col in col..(col + BLOCK).min(k) {
                    let (to, at) = ((row * k + col) * size, (col * n + row) * size);
                    one[to..to + size].copy_from_slice(&from[at..at + size]);
                }
            }
        }
        cx.stream().write(&w.view().narrow(0, expert * n, n)?, &one)?;
    }
    Ok((Weights::dense(w.view().clone(), None)?, true))
}

/// A table of floats `[len]` as f32.
fn floats(cx: &mut Ctx, scope: &Scope<'_>, name: &str, len: usize) -> Result<Tensor> {
    scope.take(name, &[len])?;
    let values = scope.checkpoint().floats(&scope.path(name))?;
    let table = cx.alloc_owned(&[len], DType::F32)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    cx.stream().write(table.view(), &bytes)?;
    Ok(table)
}

/// Rows of `x` in the order of `ids`.
fn gather(cx: &mut Ctx, path: &str, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let out = cx.alloc(&[ids.size(0), x.size(1)], cx.dtype())?;
    let table: View = cx.view(x)?;
    let op = GatherRows {
        table: Weights::dense(table, None)?,
        ids: cx.view(ids)?,
        scale: 1.0,
        out: cx.view(&out)?,
    };
    cx.exec(path, &op)?;
    Ok(out)
}
