//! Gradients of attention in f64, a row of scores at a time.

use super::AttentionGrad;
use crate::buffer::View;
use crate::op::Op;
use crate::ops::attention::reference::{Keys, keys};
use crate::ops::attention::{AttentionKv, Seen, ascending};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// A gradient, the error of its terms and the sum of their sizes; how many terms each head has, by row.
struct Sums {
    values: Vec<f64>,
    errors: Vec<f64>,
    magnitudes: Vec<f64>,
    terms: Vec<usize>,
    head_dim: usize,
}

impl Sums {
    fn new(heads: usize, head_dim: usize) -> Self {
        let zeros = || vec![0.0; heads * head_dim];
        Self { values: zeros(), errors: zeros(), magnitudes: zeros(), terms: vec![0; heads], head_dim }
    }

    /// Adds `factor`, known to within `error`, times each element of `head` to the head `at`.
    fn add(&mut self, at: usize, factor: f64, error: f64, head: &[f64]) {
        self.terms[at] += 1;
        for (d, &x) in (at * self.head_dim..).zip(head) {
            self.values[d] += factor * x;
            self.errors[d] += error * x.abs();
            self.magnitudes[d] += (factor * x).abs();
        }
    }

    /// States heads with terms, added to what is there.
    fn expect(self, io: &mut Oracle, view: Option<&View>) -> Result<(), KernelError> {
        let Some(view) = view else { return Ok(()) };
        let before = io.read(view)?;
        let (mut indices, mut values, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for (at, &terms) in self.terms.iter().enumerate().filter(|(_, terms)| **terms > 0) {
            let of_head = before.iter().enumerate().skip(at * self.head_dim).take(self.head_dim);
            for (d, before) in of_head {
                indices.push(d);
                values.push(before + self.values[d]);
                let magnitude = before.abs() + self.magnitudes[d] + self.errors[d];
                errors.push(self.errors[d] + tolerance::dot(terms + 1, magnitude));
            }
        }
        io.expect_some(view, Some(indices), values, errors);
        Ok(())
    }
}

/// What one key gets of a row.
struct Key {
    /// Index of the head among keys or values.
    at: usize,
    /// The score, then the weight before it is divided by the sum of all.
    weight: f64,
    /// Derivative of the cap at the score, and its error.
    cap: (f64, f64),
    /// Product of the value with the gradient of the result, and its error.
    dp: (f64, f64),
}

pub(super) fn reference(op: &AttentionGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let forward = op.forward();
    let (tokens, heads_q, head_dim) = (op.q.size(0), op.q.size(1), op.q.size(2));
    let (q, d_out) = (io.read(&op.q)?, io.read(&op.d_out)?);
    let starts = io.ints(&op.q_starts)?;
    let (from, to) = match &op.seen {
        Seen::Ranges { from, to } => {
            (from.as_ref().map(|from| io.ints(from)).transpose()?, Some(io.ints(to)?))
        }
        Seen::All | Seen::Causal { .. } => (None, None),
    };
    for (what, bounds) in [("seen from", &from), ("seen to", &to)] {
        ascending(what, bounds.as_deref().unwrap_or_default(), &starts)?;
    }
    let Keys { k, v, rows } = keys(&forward, io)?;
    let (AttentionKv::Packed { k: keys, .. } | AttentionKv::Paged { k: keys, .. }) = &op.kv;
    let last = keys.layout().rank() - 1;
    let (heads_kv, heads) = (keys.size(last - 1), keys.shape()[..last].iter().product());
    let u = DType::F32.roundoff();
    let dot = |a: &[f64], b: &[f64]| {
        let terms = a.iter().zip(b).map(|(a, b)| a * b);
        terms.fold((0.0, 0.0), |(sum, magnitude), term| (sum + term, magnitude + term.abs()))
    };
    let place = |at: usize| at * head_dim..(at + 1) * head_dim;

    let mut dq = Sums::new(tokens * heads_q, head_dim);
    let (mut dk, mut dv) = (Sums::new(heads, head_dim), Sums::new(heads, head_dim));
    for index in 0..tokens * heads_q {
        let (token, head_q) = (index / heads_q, index % heads_q);
        let Some(seq) =
            (0..rows.len()).rfind(|&s| starts[s] as usize <= token && (token as i64) < starts[s + 1])
        else {
            return Err(KernelError::Index {
                op: AttentionGrad::NAME,
                what: "row of q",
                index: token as i64,
                limit: 0,
            });
        };
        let (q_len, kv_len) = ((starts[seq + 1] - starts[seq]) as usize, rows[seq].len());
        let position = (kv_len + token - starts[seq] as usize) as i64 - q_len as i64;
        let visible = |j: usize| {
            let j = j as i64;
            match &op.seen {
                Seen::All => true,
                Seen::Causal { window } => j <= position && (*window == 0 || j > position - *window as i64),
                Seen::Ranges { .. } => {
                    from.as_ref().is_none_or(|from| j >= from[token])
                        && to.as_ref().is_none_or(|to| j < to[token])
                }
            }
        };
        let (query, d_query) = (&q[place(index)], &d_out[place(index)]);
        let (scale, cap) = (f64::from(op.scale), f64::from(op.softcap));
        let mut score_error = 0.0f64;
        let mut seen: Vec<Key> = (0..kv_len)
            .filter(|&j| visible(j))
            .map(|j| {
                let at = rows[seq][j] * heads_kv + head_q * heads_kv / heads_q;
                let (sum, magnitude) = dot(query, &k[place(at)]);
                let mut score = sum * scale;
                let mut error = tolerance::dot(head_dim, magnitude * scale.abs()) + 4.0 * u * score.abs();
                let mut of_cap = (1.0, 0.0);
                if cap > 0.0 {
                    let t = (score / cap).tanh();
                    let off = error / cap + 8.0 * u * t.abs();
                    of_cap = (1.0 - t * t, (2.0 * t.abs() + off) * off + 2.0 * u);
                    score = cap * t;
                }
                error += 8.0 * u * score.abs();
                score_error = score_error.max(error);
                let (dp, magnitude) = dot(d_query, &v[place(at)]);
                Key { at, weight: score, cap: of_cap, dp: (dp, tolerance::dot(head_dim, magnitude)) }
            })
            .collect();

        let most = seen.iter().fold(f64::NEG_INFINITY, |most, key| most.max(key.weight));
        seen.iter_mut().for_each(|key| key.weight = (key.weight - most).exp());
        let total: f64 = seen.iter().map(|key| key.weight).sum();
        // A weight is off by the error of its own score and that of the normalizer, and by exp and the division; below the smallest
        // normal number it may be zero.
        let relative = 2.0 * score_error + 16.0 * u + tolerance::dot(seen.len(), 1.0);
        let weight = |key: &Key| {
            let p = key.weight / total;
            (p, relative * p + f64::from(f32::MIN_POSITIVE) / total)
        };
        let (mut mean, mut mean_error, mut magnitude) = (0.0, 0.0, 0.0);
        for key in &seen {
            let (p, error) = weight(key);
            mean += p * key.dp.0;
            magnitude += (p * key.dp.0).abs();
            mean_error += p * key.dp.1 + error * (key.dp.0.abs() + key.dp.1);
        }
        mean_error += tolerance::dot(seen.len(), magnitude);
        for key in &seen {
            let (p, p_error) = weight(key);
            let (difference, off) = (key.dp.0 - mean, key.dp.1 + mean_error);
            let ds = p * difference * key.cap.0 * scale;
            // Each factor may be as large as its error makes it where it multiplies the error of another one.
            let large = (difference.abs() + off, key.cap.0.abs() + key.cap.1);
            let error = scale.abs()
                * (p_error * large.0 * large.1 + p * off * large.1 + p * difference.abs() * key.cap.1)
                + 8.0 * u * p * large.0 * large.1 * scale.abs();
            dq.add(index, ds, error, &k[place(key.at)]);
            dk.add(key.at, ds, error, query);
            dv.add(key.at, p, p_error, d_query);
        }
    }
    dq.expect(io, op.dq.as_ref())?;
    dk.expect(io, op.dk.as_ref())?;
    dv.expect(io, op.dv.as_ref())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use crate::conformance::{Case, CaseCx};
    use crate::ops::attention::AttentionKv;
    use crate::ops::attention::cases::Plan;
    use crate::ops::attention::grad::cases::{gradients, shared};
    use crate::ops::grad_check;

    #[test]
    fn is_the_slope_of_the_forward_reference() {
        let lens = [(5, 7), (0, 2), (3, 2), (4, 4)];
        let plan = |name: &str| Plan::new(name, &lens).heads(4, 2, 3);
        let plans = [
            plan("causal"),
            plan("full").causal(false),
            Plan { page: 3, ..plan("window").window(2) },
            Plan { page: 2, softcap: 0.7, ..plan("capped") },
            Plan { softcap: 2.0, fused: true, ..plan("ranges").ranges(|_, p| (p - 1, p + 2)) },
            Plan { heads_q: 2, ..plan("up to").up_to(|_, p| (p + 1).max(3)) },
        ];
        let mut cx = CaseCx::new(11);
        for plan in plans {
            let Case { name, op } = plan.build(&mut cx);
            let gradient = gradients(&mut cx, &op, [true; 3], 1);
            let (AttentionKv::Packed { k, v, .. } | AttentionKv::Paged { k, v, .. }) = &op.kv;
            let [dq, dk, dv] =
                [&gradient.dq, &gradient.dk, &gradient.dv].map(|view| view.as_ref().expect("all"));
            let operands = [("q", &op.q, dq), ("k", k, dk), ("v", v, dv)];
            let checked = grad_check::check(&cx, &op, &[(&op.out, &gradient.d_out)], &gradient, &operands);
            assert_eq!(checked, Ok(()), "{name}");
            let mut wrong = gradient.clone();
            wrong.scale *= 1.001;
            let checked = grad_check::check(&cx, &op, &[(&op.out, &gradient.d_out)], &wrong, &operands);
            assert!(checked.is_err(), "{name}: another scale");
        }
    }

    #[test]
    fn shared_pages_get_the_gradients_of_both_sequences() {
        let mut cx = CaseCx::new(12);
        let gradient = shared(&mut cx, [(2, 9), (3, 10)], 1).op;
        let mut op = gradient.forward();
        op.out = cx.output(op.q.shape(), op.q.dtype());
        let (AttentionKv::Packed { k, .. } | AttentionKv::Paged { k, .. }) = &op.kv;
        let operands = [("k", k, gradient.dk.as_ref().expect("all"))];
        let checked = grad_check::check(&cx, &op, &[(&op.out, &gradient.d_out)], &gradient, &operands);
        assert_eq!(checked, Ok(()));
    }
}
