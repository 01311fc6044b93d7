//! Attention of the rows of a batch to what the cache keeps.

use ocelli_engine::batch::{Packed, Sees};
use ocelli_engine::kv::KvCache;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Attention, AttentionKv, Seen};

/// `q: [tokens, heads_q, head_dim]` on the keys and values of a layer, `(group, number)`  ->  `[tokens, heads_q, head_dim]`; each run of
/// the batch is one call. `scores` are the factor of scores and their smooth bound.
pub(super) fn paged(
    cx: &mut Ctx,
    path: &str,
    q: &Tensor,
    (group, index): (usize, usize),
    batch: &Packed,
    kv: &KvCache,
    scores: (f32, f32),
) -> Result<Tensor> {
    let (Some((k_pages, v_pages)), Some(placed)) = (kv.layer(group, index), batch.kv.get(group)) else {
        return Err(Error::Request(format!("KV cache: expected pages for {path}, found none")));
    };
    let out = cx.alloc(q.shape(), cx.dtype())?;
    for run in &batch.runs {
        let Some(keys) = run.keys.get(group) else { continue };
        let rows = &run.rows;
        let (seqs, q_starts, max_q) = match &keys.cut {
            Some(cut) => (&cut.parts, &cut.q_starts, cut.max_q),
            None => (&run.seqs, &run.q_starts, run.max_q),
        };
        let op = Attention {
            q: cx.view(&q.narrow(0, rows.start, rows.len())?)?,
            kv: AttentionKv::Paged {
                k: k_pages.clone(),
                v: v_pages.clone(),
                block_table: cx.view(&placed.block_table.narrow(0, seqs.start, seqs.len())?)?,
                kv_lens: cx.view(&placed.kv_lens.narrow(0, seqs.start, seqs.len())?)?,
            },
            q_starts: cx.view(q_starts)?,
            seen: seen(cx, &keys.sees)?,
            scale: scores.0,
            softcap: scores.1,
            out: cx.view(&out.narrow(0, rows.start, rows.len())?)?,
            max_q,
            max_kv: keys.most,
            pairs: keys.pairs,
        };
        cx.exec(path, &op)?;
    }
    Ok(out)
}

fn seen(cx: &Ctx, sees: &Sees) -> Result<Seen> {
    Ok(match sees {
        Sees::All => Seen::All,
        Sees::Causal { window } => Seen::Causal { window: *window },
        Sees::Ranges { from, to } => Seen::Ranges { from: Some(cx.view(from)?), to: cx.view(to)? },
    })
}
