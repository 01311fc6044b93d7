//! Ops of given specs, on random operands.

use ocelli_kernels::ops::{
    Attention, AttentionKv, AttentionSpec, GatherRows, GatherRowsSpec, KvWrite, Mask, Matmul, MatmulSpec,
    MergePatches, MergePatchesSpec, Norm, NormSpec, PatchEmbed, PatchEmbedSpec, Pool, PoolOver, PoolSpec,
    Rope, RopeSpec, RowNorm, Sample, SampleSpec, ScatterRows, ScatterRowsSpec, params,
};
use ocelli_kernels::{BackendOp, DType, KernelError, Op, ShapeError, View, Weights};

use super::operands::Operands;

/// An op that benchmarks know how to make.
pub trait Build: BackendOp {
    /// The op of this spec; each call takes other weights.
    fn build(spec: &Self::Spec, operands: &mut Operands) -> Result<Self, KernelError>;

    /// Bytes that another call takes elsewhere in memory: those that must not be in a cache when the op runs.
    fn cold_bytes(&self) -> u64;

    /// Its weight matrix, which a device may want in another form.
    fn weights(&mut self) -> Option<&mut Weights> {
        None
    }

    /// Ops on parts of the operands and results of this one that are to be checked: all of it, or, where the f64
    /// reference of all would take too long, some blocks.
    fn parts(&self) -> Result<Vec<Self>, KernelError> {
        Ok(vec![self.clone()])
    }
}

/// Largest matrix, in elements, that the reference decodes as a whole.
const WHOLE: usize = 1 << 24;

impl Build for Matmul {
    fn build(spec: &MatmulSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
        let w = operands.weights(spec.w, n, k, spec.parts as usize, spec.bias)?;
        let x = operands.activations(&[m, k], spec.x)?;
        let out = operands.output(&[m, if spec.gated { n / 2 } else { n }], spec.out)?;
        let mut op = Matmul::new(x, w, out);
        (op.act, op.gated, op.math) = (spec.act, spec.gated, spec.math);
        if spec.norm {
            let weight = operands.activations(&[k], DType::BF16)?;
            op.norm = Some(RowNorm { weight, weight_offset: 0.0, eps: 1e-5 });
        }
        op.residual = spec.residual.then(|| op.out.clone());
        Ok(op)
    }

    fn cold_bytes(&self) -> u64 {
        self.w.bytes()
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }

    fn parts(&self) -> Result<Vec<Self>, KernelError> {
        let (m, n, k) = (self.x.size(0), self.w.n(), self.w.k());
        let [part] = self.w.parts() else { return Ok(vec![self.clone()]) };
        if n * k <= WHOLE || self.gated || part.planes.len() > 2 {
            return Ok(vec![self.clone()]);
        }
        let rows = (WHOLE / 8 / k).clamp(16, n);
        let tall = 16.min(m);
        let mut all = vec![];
        for (row, top) in [(0, 0), (n / 2 / rows * rows, m - tall), (n - rows, (m - tall) / 2)] {
            let planes = part.planes.iter().map(|plane| plane.narrow(0, row, rows));
            let bias = part.bias.as_ref().map(|bias| bias.narrow(0, row, rows)).transpose()?;
            let planes = planes.collect::<Result<Vec<View>, ShapeError>>()?;
            let cut = |view: &View| view.narrow(0, top, tall)?.narrow(1, row, rows);
            all.push(Matmul {
                x: self.x.narrow(0, top, tall)?,
                w: Weights::new(self.w.format(), rows, k, planes, bias)?,
                residual: self.residual.as_ref().map(cut).transpose()?,
                out: cut(&self.out)?,
                ..self.clone()
            });
        }
        Ok(all)
    }
}

impl Build for Attention {
    fn build(spec: &AttentionSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (seqs, q_len, kv_len) = (spec.seqs as usize, spec.q as usize, spec.kv as usize);
        let (heads_q, heads_kv, d) = (spec.heads_q as usize, spec.heads_kv as usize, spec.head_dim as usize);
        let page = spec.page as usize;
        let kv = if page == 0 {
            let shape = [seqs * kv_len, heads_kv, d];
            AttentionKv::Packed {
                k: operands.table(&shape, spec.kv_dtype)?,
                v: operands.table(&shape, spec.kv_dtype)?,
                kv_starts: operands.ints(&[seqs + 1], |i| (i * kv_len) as i32)?,
            }
        } else {
            let per_seq = kv_len.div_ceil(page);
            let pages = seqs * per_seq;
            let shape = [pages, page, heads_kv, d];
            AttentionKv::Paged {
                k: operands.table(&shape, spec.kv_dtype)?,
                v: operands.table(&shape, spec.kv_dtype)?,
                // Pages lie in another order than their sequence, as they do after some requests.
                block_table: operands.ints(&[seqs, per_seq], |i| (pages - 1 - i) as i32)?,
                kv_lens: operands.ints(&[seqs], |_| kv_len as i32)?,
            }
        };
        let before = kv_len.saturating_sub(q_len);
        let seen = |i: usize| match spec.window as usize {
            0 => before + i + 1,
            window => (before + i + 1).min(window),
        };
        let pairs = if spec.causal { (0..q_len).map(seen).sum() } else { q_len * kv_len };
        Ok(Attention {
            q: operands.activations(&[seqs * q_len, heads_q, d], spec.x)?,
            kv,
            q_starts: operands.ints(&[seqs + 1], |i| (i * q_len) as i32)?,
            mask: Mask { causal: spec.causal, window: spec.window as usize, prefix: None },
            scale: 1.0 / (d as f32).sqrt(),
            softcap: if spec.softcap { 50.0 } else { 0.0 },
            out: operands.output(&[seqs * q_len, heads_q, d], spec.x)?,
            max_q: q_len,
            max_kv: kv_len,
            pairs: (seqs * pairs) as u64,
        })
    }

    fn cold_bytes(&self) -> u64 {
        let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &self.kv;
        k.bytes() + v.bytes()
    }
}

impl Build for PatchEmbed {
    fn build(spec: &PatchEmbedSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (images, height, width) = (spec.images as usize, spec.height as usize, spec.width as usize);
        let (patch, d) = (spec.patch as usize, spec.d as usize);
        let patches = images * (height / patch.max(1)) * (width / patch.max(1));
        let shape =
            if spec.pixels == DType::U8 { [images, height, width, 3] } else { [images, 3, height, width] };
        Ok(PatchEmbed {
            pixels: operands.activations(&shape, spec.pixels)?,
            w: operands.weights(spec.w, d, 3 * patch * patch, 1, true)?,
            pos: if spec.pos {
                Some(operands.table(&[patches / images.max(1), d], DType::F32)?)
            } else {
                None
            },
            pos_ids: None,
            mean: [127.5; 3],
            std: [127.5; 3],
            patch,
            out: operands.output(&[patches, d], spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.w.bytes()
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.w)
    }
}

impl Build for Norm {
    fn build(spec: &NormSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let shape = [rows, d];
        Ok(Norm {
            x: operands.activations(&shape, spec.x)?,
            add: if spec.add { Some(operands.activations(&shape, spec.x)?) } else { None },
            sum: if spec.sum { Some(operands.output(&shape, spec.x)?) } else { None },
            weight: Some(operands.table(&[d], DType::F32)?),
            bias: if spec.bias { Some(operands.table(&[d], DType::F32)?) } else { None },
            kind: spec.kind,
            weight_offset: 0.0,
            eps: 1e-6,
            out: operands.output(&shape, spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.x.bytes() + self.out.bytes()
    }
}

impl Build for Rope {
    fn build(spec: &RopeSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (tokens, d) = (spec.tokens as usize, spec.head_dim as usize);
        let (heads_q, heads_kv) = (spec.heads_q as usize, spec.heads_kv as usize);
        let pairs = spec.pairs as usize;
        let page = spec.page as usize;
        let kv = if page > 0 {
            let shape = [tokens.div_ceil(page), page, heads_kv, d];
            Some(KvWrite {
                v: operands.activations(&[tokens, heads_kv, d], spec.x)?,
                k_pages: operands.output(&shape, spec.kv_dtype)?,
                v_pages: operands.output(&shape, spec.kv_dtype)?,
                slots: operands.ints(&[tokens], |i| i as i32)?,
            })
        } else {
            None
        };
        Ok(Rope {
            q: operands.activations(&[tokens, heads_q, d], spec.x)?,
            k: operands.activations(&[tokens, heads_kv, d], spec.x)?,
            positions: operands.ints(&[spec.axes.max(1) as usize, tokens], |i| (i % tokens.max(1)) as i32)?,
            inv_freq: operands.floats(&[pairs], |i| 10_000_f32.powf(-(i as f32) / pairs as f32))?,
            pair_axis: None,
            style: spec.style,
            attention_scaling: 1.0,
            norm: None,
            kv,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.q.bytes() + self.k.bytes()
    }
}

impl Build for MergePatches {
    fn build(spec: &MergePatchesSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (images, d, factor) = (spec.images as usize, spec.d as usize, spec.factor as usize);
        let patches = images * (spec.grid_h * spec.grid_w) as usize;
        Ok(MergePatches {
            x: operands.activations(&[patches, d], spec.x)?,
            grid_h: spec.grid_h as usize,
            grid_w: spec.grid_w as usize,
            factor,
            order: spec.order,
            out: operands.output(&[patches / (factor * factor).max(1), factor * factor * d], spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.x.bytes() + self.out.bytes()
    }
}

impl Build for GatherRows {
    fn build(spec: &GatherRowsSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (tokens, rows, d) = (spec.tokens as usize, spec.rows as usize, spec.d as usize);
        Ok(GatherRows {
            table: operands.weights(spec.w, rows, d, 1, false)?,
            ids: operands.ints(&[tokens], |i| ((i + 1) * 7919 % rows) as i32)?,
            scale: 1.0,
            out: operands.output(&[tokens, d], spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.table.bytes()
    }

    fn weights(&mut self) -> Option<&mut Weights> {
        Some(&mut self.table)
    }
}

impl Build for Sample {
    fn build(spec: &SampleSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (rows, vocab) = (spec.rows as usize, spec.vocab as usize);
        let history =
            if spec.history { Some(operands.ints(&[rows, 64], |i| (i % vocab) as i32)?) } else { None };
        Ok(Sample {
            logits: operands.activations(&[rows, vocab], spec.x)?,
            params: operands.floats(&[rows, params::COUNT], |i| match i % params::COUNT {
                params::TOP_P | params::REPETITION_PENALTY => 1.0,
                _ => 0.0,
            })?,
            history,
            out: operands.output(&[rows], DType::I32)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.logits.bytes()
    }
}

impl Build for ScatterRows {
    fn build(spec: &ScatterRowsSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        let (count, d) = (spec.count as usize, spec.d as usize);
        Ok(ScatterRows {
            src: operands.activations(&[count, d], spec.x)?,
            rows: operands.ints(&[count], |i| 2 * i as i32)?,
            out: operands.output(&[2 * count, d], spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.src.bytes() + self.out.bytes()
    }
}

impl Build for Pool {
    fn build(spec: &PoolSpec, operands: &mut Operands) -> Result<Self, KernelError> {
        // Rows of a segment: its spec does not tell.
        const SEGMENT: usize = 16;
        let (rows, d) = (spec.rows as usize, spec.d as usize);
        let (block_h, block_w) = (spec.block_h as usize, spec.block_w as usize);
        let (over, each) = if block_h * block_w == 0 {
            let starts = operands.ints(&[rows + 1], |i| (i * SEGMENT) as i32)?;
            (PoolOver::Segments(starts), SEGMENT)
        } else {
            let over = PoolOver::Grid { grid_h: block_h, grid_w: rows * block_w, block_h, block_w };
            (over, block_h * block_w)
        };
        Ok(Pool {
            x: operands.activations(&[rows * each, d], spec.x)?,
            over,
            kind: spec.kind,
            out: operands.output(&[rows, d], spec.out)?,
        })
    }

    fn cold_bytes(&self) -> u64 {
        self.x.bytes() + self.out.bytes()
    }
}

/// Whether a view's type is one that results are compared in.
pub(super) fn same_or_within(dtype: DType, got: f64, want: f64, bound: f64) -> bool {
    got == want || (dtype.is_float() && (got - want).abs() <= bound) || (got.is_nan() && want.is_nan())
}

/// A short name for where an op's spec does not become an op: the op and the spec as given.
pub(super) fn read_spec<O: Op>(text: &str) -> Result<O::Spec, String> {
    ocelli_kernels::spec::text::read::<O::Spec>(text).map_err(|error| format!("{} {text}: {error}", O::NAME))
}
