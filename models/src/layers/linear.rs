//! Matrix products with a checkpoint's weights.

use ocelli_engine::weights::{self, Scope};
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{Activation, GatherColumns, Heads, Matmul};
use ocelli_kernels::{DType, Weights};

use super::Norm;

/// One linear layer.
#[derive(Clone, Debug)]
pub struct Linear {
    path: String,
    w: Weights,
    columns: Columns,
}

/// The columns of `x` that those of a matrix meet, i32 `[k]`, if they are in another order.
pub(super) type Columns = Option<Tensor>;

/// Loads a layer's matrix, not placed yet.
fn load(scope: &Scope<'_>, n: usize, k: usize, bias: bool) -> Result<(Weights, weights::Columns)> {
    Ok(scope.linear_in_order(n, k, bias)?)
}

/// Copies an order of columns to the device.
pub(super) fn place_columns(cx: &mut Ctx, columns: weights::Columns) -> Result<Columns> {
    let Some(columns) = columns else { return Ok(None) };
    let tensor = cx.alloc_owned(&[columns.len()], DType::I32)?;
    let bytes: Vec<u8> = columns.iter().flat_map(|column| column.to_le_bytes()).collect();
    cx.stream().write(tensor.view(), &bytes)?;
    Ok(Some(tensor))
}

/// `x` with its columns in that order.
pub(super) fn in_order(cx: &mut Ctx, path: &str, columns: &Columns, x: &Tensor) -> Result<Tensor> {
    let Some(columns) = columns else { return Ok(x.clone()) };
    let out = cx.alloc(x.shape(), x.dtype())?;
    cx.exec(path, &GatherColumns { x: cx.view(x)?, columns: cx.view(columns)?, out: cx.view(&out)? })?;
    Ok(out)
}

impl Linear {
    /// Loads the layer at `scope`, `[n, k]`, with a bias where the architecture has one.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, n: usize, k: usize, bias: bool) -> Result<Self> {
        let (w, columns) = load(scope, n, k, bias)?;
        let (w, columns) = (cx.stream().place(&w)?, place_columns(cx, columns)?);
        cx.site(&w, [(scope.prefix(), n)], columns.is_some());
        Ok(Self { path: scope.prefix().to_owned(), w, columns })
    }

    /// Loads a layer whose matrix is stored as `[k, n]` under `name` at `scope`; it is turned once, in f32.
    pub fn transposed(cx: &mut Ctx, scope: &Scope<'_>, name: &str, n: usize, k: usize) -> Result<Self> {
        scope.take(name, &[k, n])?;
        let stored = scope.checkpoint().floats(&scope.path(name))?;
        Self::columns(cx, scope.path(name), &stored, n)
    }

    /// A layer of a matrix `[k, n]` that was read, turned, in f32; `path` names it in errors.
    pub fn columns(cx: &mut Ctx, path: impl Into<String>, stored: &[f32], n: usize) -> Result<Self> {
        let k = stored.len() / n.max(1);
        let turned: Vec<u8> = (0..n * k).flat_map(|i| stored[i % k * n + i / k].to_le_bytes()).collect();
        let w = cx.alloc_owned(&[n, k], DType::F32)?;
        cx.stream().write(w.view(), &turned)?;
        Ok(Self { path: path.into(), w: Weights::dense(w.view().clone(), None)?, columns: None })
    }

    /// Loads the layer at `scope`, `[n, k]` without a bias, whose column `i` is the file's column `from(i)`; it is turned once, in f32.
    pub fn reordered(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        n: usize,
        k: usize,
        from: impl Fn(usize) -> usize,
    ) -> Result<Self> {
        let stored = scope.take_values(n, k)?;
        let columns: Vec<usize> = (0..k).map(from).collect();
        let rows = stored.chunks_exact(k.max(1));
        let turned: Vec<u8> =
            rows.flat_map(|row| columns.iter().flat_map(|&at| row[at].to_le_bytes())).collect();
        let w = cx.alloc_owned(&[n, k], DType::F32)?;
        cx.stream().write(w.view(), &turned)?;
        Ok(Self {
            path: scope.prefix().to_owned(),
            w: Weights::dense(w.view().clone(), None)?,
            columns: None,
        })
    }

    /// A layer on weights that something else owns too: a tied head.
    #[must_use]
    pub fn tied(path: impl Into<String>, w: Weights) -> Self {
        Self { path: path.into(), w, columns: None }
    }

    /// `x: [m, k]  ->  [m, n]`.
    pub fn forward(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        let x = in_order(cx, &self.path, &self.columns, x)?;
        cx.matmul(&self.path, &x, &self.w, |_| {})
    }

    /// `act(x w^T + bias)`.
    pub fn forward_act(&self, cx: &mut Ctx, x: &Tensor, act: Activation) -> Result<Tensor> {
        let x = in_order(cx, &self.path, &self.columns, x)?;
        cx.matmul(&self.path, &x, &self.w, |op| op.act = act)
    }

    /// `h += x w^T + bias`, in place.
    pub fn add_to(&self, cx: &mut Ctx, x: &Tensor, h: &Tensor) -> Result<()> {
        self.write(cx, x, h, true)
    }

    /// `out = x w^T + bias`; `out` may be of any float type.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor) -> Result<()> {
        self.write(cx, x, out, false)
    }

    /// `out = norm(x) w^T + bias`; `out` may be of any float type.
    pub fn write_normalized(&self, cx: &mut Ctx, norm: &Norm, x: &Tensor, out: &Tensor) -> Result<()> {
        let plain = self.columns.is_none();
        normalized(cx, &self.path, norm, x, plain, |cx, x| Ok(vec![self.product(cx, x, out)?]))
    }

    fn product(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor) -> Result<Matmul> {
        let x = in_order(cx, &self.path, &self.columns, x)?;
        let mut op = Matmul::new(cx.view(&x)?, self.w.clone(), cx.view(out)?);
        op.math = cx.math(&self.w);
        Ok(op)
    }

    fn write(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor, add: bool) -> Result<()> {
        let mut op = self.product(cx, x, out)?;
        op.residual = add.then(|| op.out.clone());
        cx.exec(&self.path, &op)
    }
}

/// Linear layers of one input whose results lie side by side: query, key and value; gate and up. Layers of one format
/// and one order of columns are one product.
#[derive(Clone, Debug)]
pub struct Stacked {
    path: String,
    groups: Vec<(Weights, Columns)>,
    n: usize,
}

impl Stacked {
    /// Loads the layers at `scopes`, each `[n, k]`, with biases where the architecture has them; the path is that of their common
    /// parent.
    pub fn load(
        cx: &mut Ctx,
        path: &str,
        scopes: &[(Scope<'_>, usize)],
        k: usize,
        bias: bool,
    ) -> Result<Self> {
        let mut stacks: Vec<(Weights, Option<Vec<i32>>)> = Vec::new();
        let mut sites: Vec<Vec<(&str, usize)>> = Vec::new();
        for (scope, n) in scopes {
            let (w, columns) = load(scope, *n, k, bias)?;
            match stacks.pop() {
                Some((last, order)) if last.format() == w.format() && order == columns => {
                    stacks.push((Weights::stack([last, w])?, order));
                }
                last => {
                    stacks.extend(last.into_iter().chain([(w, columns)]));
                    sites.push(Vec::new());
                }
            }
            sites.last_mut().into_iter().for_each(|site| site.push((scope.prefix(), *n)));
        }
        // Stacked before they are placed: a device that copies its weights then has one matrix.
        let mut groups = Vec::with_capacity(stacks.len());
        for ((w, columns), modules) in stacks.into_iter().zip(sites) {
            let (w, columns) = (cx.stream().place(&w)?, place_columns(cx, columns)?);
            cx.site(&w, modules, columns.is_some());
            groups.push((w, columns));
        }
        let n = groups.iter().map(|(w, _)| w.n()).sum();
        Ok(Self { path: path.to_owned(), groups, n })
    }

    /// `norm(x): [m, k]  ->  [m, n]`, the layers' results side by side.
    pub fn forward(&self, cx: &mut Ctx, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        self.project(cx, Some(norm), x)
    }

    /// `x: [m, k]  ->  [m, n]`, the layers' results side by side.
    pub fn forward_plain(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        self.project(cx, None, x)
    }

    /// `x: [m, k]  ->  [m, n]`, the layers' results side by side; `x` normalized first, if there is a norm.
    pub fn project(&self, cx: &mut Ctx, norm: Option<&Norm>, x: &Tensor) -> Result<Tensor> {
        let out = self.room(cx, x)?;
        self.write_to(cx, norm, x, &out)?;
        Ok(out)
    }

    /// Room for the result of [`project`](Self::project).
    pub fn room(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        cx.alloc(&[x.size(0), self.n], cx.dtype())
    }

    /// As [`project`](Self::project) into `out: [m, n]`.
    pub fn write_to(&self, cx: &mut Ctx, norm: Option<&Norm>, x: &Tensor, out: &Tensor) -> Result<()> {
        match norm {
            Some(norm) => self.normalized(cx, norm, x, out, |_| {}),
            None => self.products(cx, x, out, |_| {})?.iter().try_for_each(|op| cx.exec(&self.path, op)),
        }
    }

    /// As [`project`](Self::project), with what becomes of the columns as heads, of which the queries go to `q: [m, heads_q head_dim]`:
    /// by one kernel that does it all. Where the device has none, nothing happens and the answer is `false`.
    pub fn write_heads(
        &self,
        cx: &mut Ctx,
        norm: Option<&Norm>,
        x: &Tensor,
        heads: Heads,
        q: &Tensor,
    ) -> Result<bool> {
        let [(w, None)] = &self.groups[..] else { return Ok(false) };
        let mut op = Matmul::new(cx.view(x)?, w.clone(), cx.view(q)?);
        (op.heads, op.math) = (Some(Box::new(heads)), cx.math(w));
        if let Some(norm) = norm {
            let Some(rows) = norm.of_rows() else { return Ok(false) };
            op.norm = Some(rows);
        }
        let accepts = cx.accepts(&op);
        if accepts {
            cx.exec(&self.path, &op)?;
        }
        Ok(accepts)
    }

    /// `act(x gate^T) * (x up^T)` of two layers of one format, `x` normalized first: `[m, k]  ->  [m, n / 2]`.
    pub fn forward_gated(&self, cx: &mut Ctx, norm: &Norm, x: &Tensor, act: Activation) -> Result<Tensor> {
        let out = self.gated_out(cx, x)?;
        self.normalized(cx, norm, x, &out, |op| (op.act, op.gated) = (act, true))?;
        Ok(out)
    }

    /// `h += x w^T + bias`, in place: `h: [m, n]`.
    pub fn add_to(&self, cx: &mut Ctx, x: &Tensor, h: &Tensor) -> Result<()> {
        let ops = self.products(cx, x, h, |_| {})?;
        ops.into_iter().try_for_each(|mut op| {
            op.residual = Some(op.out.clone());
            cx.exec(&self.path, &op)
        })
    }

    /// The same of rows as they are.
    pub fn forward_gated_plain(&self, cx: &mut Ctx, x: &Tensor, act: Activation) -> Result<Tensor> {
        let out = self.gated_out(cx, x)?;
        let ops = self.products(cx, x, &out, |op| (op.act, op.gated) = (act, true))?;
        ops.iter().try_for_each(|op| cx.exec(&self.path, op))?;
        Ok(out)
    }

    fn gated_out(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        if self.groups.len() != 1 {
            return Err(ocelli_engine::Error::Config {
                path: self.path.clone(),
                reason: "gate and up projections: expected one format and order of columns, found two".into(),
            });
        }
        cx.alloc(&[x.size(0), self.n / 2], cx.dtype())
    }

    fn normalized(
        &self,
        cx: &mut Ctx,
        norm: &Norm,
        x: &Tensor,
        out: &Tensor,
        finish: impl Fn(&mut Matmul),
    ) -> Result<()> {
        let plain = self.groups.iter().all(|(_, columns)| columns.is_none());
        normalized(cx, &self.path, norm, x, plain, |cx, x| self.products(cx, x, out, &finish))
    }

    /// A product for each matrix.
    fn products(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        out: &Tensor,
        finish: impl Fn(&mut Matmul),
    ) -> Result<Vec<Matmul>> {
        let mut first = 0;
        let product = |(w, columns): &(Weights, Columns)| {
            let x = in_order(cx, &self.path, columns, x)?;
            let mut op = Matmul::new(cx.view(&x)?, w.clone(), cx.view(out)?);
            op.math = cx.math(w);
            finish(&mut op);
            if self.groups.len() > 1 {
                op.out = cx.view(&out.narrow(1, first, w.n())?)?;
            }
            first += w.n();
            Ok(op)
        };
        self.groups.iter().map(product).collect()
    }
}

/// Runs products with normalized rows of `x`: by kernels that normalize them on the way in, where the device has such for all of
/// them, and they take `x` as it is (`plain`). `products` gives them for an x.
fn normalized(
    cx: &mut Ctx,
    path: &str,
    norm: &Norm,
    x: &Tensor,
    plain: bool,
    products: impl Fn(&mut Ctx, &Tensor) -> Result<Vec<Matmul>>,
) -> Result<()> {
    if let Some(rows) = norm.of_rows().filter(|_| plain) {
        let mut ops = products(cx, x)?;
        ops.iter_mut().for_each(|op| op.norm = Some(rows.clone()));
        if !ops.iter().all(|op| cx.accepts(op)) {
            let x = norm.forward(cx, x)?;
            for op in &mut ops {
                (op.norm, op.x) = (None, cx.view(&x)?);
            }
        }
        return ops.iter().try_for_each(|op| cx.exec(path, op));
    }
    let x = norm.forward(cx, x)?;
    products(cx, &x)?.iter().try_for_each(|op| cx.exec(path, op))
}
