//! `heads.cuh`: what follows products of queries, keys and values.

use bytemuck::{Pod, Zeroable};

use super::super::{Heads, Matmul, MatmulSpec};
use crate::buffer::View;
use crate::cuda::{CudaCx, CudaLaunch, Kernel, value_type};
use crate::ops::pointwise::Pointwise;
use crate::ops::rope::RopeStyle;
use crate::select::Reject;
use crate::spec::{DType, KernelError};

/// `PageStrides` of `heads.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
struct PageStrides {
    page: i64,
    slot: i64,
    head: i64,
}

impl PageStrides {
    fn of(view: &View) -> Self {
        Self { page: view.stride(0) as i64, slot: view.stride(1) as i64, head: view.stride(2) as i64 }
    }
}

/// `Heads` of `heads.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub(super) struct HeadsParams {
    positions: u64,
    inv_freq: u64,
    pair_axis: u64,
    slots: u64,
    k_pages: u64,
    v_pages: u64,
    of_k: PageStrides,
    of_v: PageStrides,
    axis: i64,
    axes: u32,
    heads_q: i32,
    heads_kv: i32,
    head_dim: i32,
    pairs: i32,
    interleaved: u32,
    page_size: u32,
    limit: u32,
    kv_type: u32,
    scaling: f32,
}

impl HeadsParams {
    pub fn new(op: &Matmul, heads: &Heads, kernel: &Kernel<'_, '_>) -> Result<Self, KernelError> {
        Ok(Self {
            positions: kernel.address(&heads.positions)?,
            inv_freq: kernel.address(&heads.inv_freq)?,
            pair_axis: kernel.address_or_null(heads.pair_axis.as_ref())?,
            slots: kernel.address(&heads.slots)?,
            k_pages: kernel.address(&heads.k_pages)?,
            v_pages: kernel.address(&heads.v_pages)?,
            of_k: PageStrides::of(&heads.k_pages),
            of_v: PageStrides::of(&heads.v_pages),
            axis: heads.positions.stride(0) as i64,
            axes: heads.positions.size(0) as u32,
            heads_q: heads.heads_q as i32,
            heads_kv: heads.heads_kv as i32,
            head_dim: (op.w.n() / heads.all().max(1)) as i32,
            pairs: heads.inv_freq.size(0) as i32,
            interleaved: (heads.style == RopeStyle::Interleaved).into(),
            page_size: heads.k_pages.size(1).max(1) as u32,
            limit: (heads.k_pages.size(0) * heads.k_pages.size(1)) as u32,
            kv_type: value_type(Some(&heads.k_pages)),
            scaling: heads.attention_scaling,
        })
    }
}

/// Why no epilogue can turn the heads of a spec, if so.
pub(super) fn reject(spec: &MatmulSpec) -> Option<Reject> {
    let heads = &spec.heads;
    if !heads.is_some() {
        return None;
    }
    if !heads.head_dim.is_multiple_of(2) {
        return Some("heads of an odd number of elements".into());
    }
    if heads.kv_dtype == DType::I8 {
        return Some(
            "the scale of a head of 8-bit codes is that of all its elements, which several blocks make"
                .into(),
        );
    }
    (spec.parts > 1).then(|| "heads may begin in the middle of one of several weight matrices".into())
}

/// Runs a product with `product`, and what becomes of its heads, if it has such, one after the other.
pub(super) fn apart(
    op: &Matmul,
    cx: &mut CudaCx<'_>,
    product: CudaLaunch<Matmul>,
) -> Result<(), KernelError> {
    let Some(heads) = &op.heads else { return product(op, cx) };
    let (m, n) = (op.x.size(0), op.w.n());
    let rows = cx.scratch(3, m * n, DType::F32)?.reshape(&[m, n])?;
    product(&Matmul { heads: None, out: rows.clone(), ..op.clone() }, cx)?;
    cx.exec(&heads.rope(&rows)?)?;
    cx.exec(&Pointwise::new(rows.narrow(1, 0, op.n_out())?, op.out.clone()))
}
