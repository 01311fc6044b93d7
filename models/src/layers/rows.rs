//! What is done to rows between layers: picking, copying, adding, scaling to unit length.

use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{self, GatherRows, NormKind, Pointwise, ScatterRows};
use ocelli_kernels::{DType, Weights};

/// Numbers as a tensor with memory of its own, of the activations' type.
pub fn constant(cx: &mut Ctx, shape: &[usize], values: &[f32]) -> Result<Tensor> {
    let tensor = cx.alloc_owned(shape, cx.dtype())?;
    cx.write_floats(&tensor, values)?;
    Ok(tensor)
}

/// Rows of `x` in the order of `ids`: `x: [rows, d]  ->  [ids, d]`, of the activations' type.
pub fn gather_rows(cx: &mut Ctx, path: &str, x: &Tensor, ids: &[i32]) -> Result<Tensor> {
    let out = cx.alloc(&[ids.len(), x.size(1)], cx.dtype())?;
    let ids = cx.upload(&[ids.len()], ids)?;
    let table = Weights::dense(cx.view(x)?, None)?;
    cx.exec(path, &GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(&out)? })?;
    Ok(out)
}

/// Copies the rows of `from` to `to`.
pub fn copy_rows(cx: &mut Ctx, path: &str, from: &Tensor, to: &Tensor) -> Result<()> {
    let rows: Vec<i32> = (0..from.size(0) as i32).collect();
    put_rows(cx, path, from, &rows, to)
}

/// Copies row `i` of `from` to row `rows[i]` of `to`, all of them different ones.
pub fn put_rows(cx: &mut Ctx, path: &str, from: &Tensor, rows: &[i32], to: &Tensor) -> Result<()> {
    let rows = cx.upload(&[rows.len()], rows)?;
    cx.exec(path, &ScatterRows { src: cx.view(from)?, rows: cx.view(&rows)?, out: cx.view(to)? })
}

/// `h += add`, both `[rows, d]` of one type.
pub fn add_rows(cx: &mut Ctx, path: &str, h: &Tensor, add: &Tensor) -> Result<()> {
    let (h, add) = (cx.view(h)?, cx.view(add)?);
    cx.exec(path, &Pointwise { add: Some(h.clone()), ..Pointwise::new(add, h) })
}

/// Scales rows to unit length.
#[derive(Debug)]
pub struct Unit {
    path: String,
    /// f32 `[d]`, all `1 / sqrt(d)`: what makes a root of mean squares the length.
    scale: Tensor,
}

impl Unit {
    /// For rows of `d` numbers; `path` names it in errors.
    pub fn new(cx: &mut Ctx, path: impl Into<String>, d: usize) -> Result<Self> {
        let scale = cx.alloc_owned(&[d], DType::F32)?;
        let value = (d as f32).sqrt().recip();
        let bytes: Vec<u8> = (0..d).flat_map(|_| value.to_le_bytes()).collect();
        cx.stream().write(scale.view(), &bytes)?;
        Ok(Self { path: path.into(), scale })
    }

    /// `out = x / |x|` for each row: `x, out: [rows, d]`.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor) -> Result<()> {
        let op = ops::Norm {
            x: cx.view(x)?,
            add: None,
            sum: None,
            weight: Some(cx.view(&self.scale)?),
            bias: None,
            kind: NormKind::Rms,
            weight_offset: 0.0,
            eps: 0.0,
            out: cx.view(out)?,
        };
        cx.exec(&self.path, &op)
    }
}
