//! Variants of an op and the one way to choose among them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use serde::Serialize;

use crate::op::Op;
use crate::spec::{Caps, KernelError, text};

/// Why a variant does not run a spec on a device.
pub type Reject = Cow<'static, str>;

/// One kernel of an op on one backend, as a row of data.
pub struct Variant<S, L> {
    /// Name, unique within op and backend.
    pub name: &'static str,
    /// Why this variant cannot run the spec on this device; `None` if it can.
    pub reject: fn(&S, &Caps) -> Option<Reject>,
    /// Estimated time in microseconds. Only the order among the variants of one spec matters.
    pub est_us: fn(&S, &Caps) -> f32,
    /// How to start it.
    pub launch: L,
}

/// The variants of an op on one backend, in table order, or why there are none.
pub type Rows<S, L> = Result<&'static [Variant<S, L>], &'static str>;

/// What [`explain`] says of one variant.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// Name of the variant.
    pub variant: &'static str,
    /// Whether [`select`] picks it.
    pub picked: bool,
    /// The reason if it cannot run.
    pub rejected: Option<String>,
    /// The estimate if it can.
    pub est_us: Option<f32>,
}

/// The variant with the least estimate among those that run `spec`; the first of equals.
pub fn select<'a, S, L>(rows: &'a [Variant<S, L>], spec: &S, caps: &Caps) -> Option<&'a Variant<S, L>> {
    let mut best: Option<(&Variant<S, L>, f32)> = None;
    for row in rows {
        if (row.reject)(spec, caps).is_none() {
            let est = (row.est_us)(spec, caps);
            if best.is_none_or(|(_, least)| est < least) {
                best = Some((row, est));
            }
        }
    }
    best.map(|(row, _)| row)
}

/// Whether one of the variants runs `spec`.
pub(crate) fn runs<S, L>(rows: Rows<S, L>, spec: &S, caps: &Caps) -> bool {
    rows.is_ok_and(|rows| rows.iter().any(|row| (row.reject)(spec, caps).is_none()))
}

/// Of the variants that run a spec alone and in any batch, that with the least estimate for many rows; the first of equals.
fn select_invariant<'a, O: Op, L>(
    rows: &'a [Variant<O::Spec, L>],
    spec: &O::Spec,
    caps: &Caps,
) -> Option<&'a Variant<O::Spec, L>> {
    let [few, many] = O::extremes(spec);
    let runs = |row: &&Variant<O::Spec, L>| {
        [&few, &many, spec].into_iter().all(|spec| (row.reject)(spec, caps).is_none())
    };
    let best = rows.iter().filter(runs).map(|row| (row, (row.est_us)(&many, caps)));
    best.reduce(|best, other| if other.1 < best.1 { other } else { best }).map(|(row, _)| row)
}

/// Names of variants, in table order.
pub(crate) fn names<S, L>(rows: &[Variant<S, L>]) -> Vec<&'static str> {
    rows.iter().map(|row| row.name).collect()
}

/// Each row with its reason not to run, in one line.
pub(crate) fn why_not(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "there is none".to_owned();
    }
    let each =
        rows.iter().map(|row| format!("{}: {}", row.variant, row.rejected.as_deref().unwrap_or("runs")));
    each.collect::<Vec<_>>().join("; ")
}

/// Choices that come before estimates: a variant that is asked for by name, and what was measured on this device.
#[derive(Clone, Debug, Default)]
pub struct Picks {
    /// Op, if one is named, and variant of `OCELLI_KERNEL_FORCE`.
    force: Option<(Option<String>, String)>,
    /// The fastest variant by op and spec.
    tuned: HashMap<(&'static str, u64), String>,
    /// Whether choices and results must not depend on what else is in a batch.
    batch_invariant: bool,
}

impl Picks {
    /// Prefers the variant called `text`, or `OP/VARIANT`, wherever it runs. The caller has checked that there is one.
    pub fn force(&mut self, text: &str) {
        self.force = Some(match text.split_once('/') {
            Some((op, variant)) => (Some(op.to_owned()), variant.to_owned()),
            None => (None, text.to_owned()),
        });
    }

    /// Prefers a variant for one spec.
    pub fn tune<S: Hash>(&mut self, op: &'static str, spec: &S, variant: &str) {
        self.tuned.insert((op, hash(spec)), variant.to_owned());
    }

    /// Makes choices depend on nothing that differs between batches, measurements included. Slower for few rows.
    pub fn set_batch_invariant(&mut self, on: bool) {
        self.batch_invariant = on;
    }

    /// Whether choices depend on nothing that differs between batches.
    #[must_use]
    pub fn is_batch_invariant(&self) -> bool {
        self.batch_invariant
    }

    /// Whether one of the variants takes the op.
    pub(crate) fn accepts<O: Op, L>(&self, op: &O, rows: Rows<O::Spec, L>, caps: &Caps) -> bool {
        op.spec().is_ok_and(|spec| match (rows, self.batch_invariant) {
            (Ok(rows), true) => select_invariant::<O, L>(rows, &spec, caps).is_some(),
            _ => runs(rows, &spec, caps),
        })
    }

    /// Specs with a measured choice.
    #[must_use]
    pub fn tuned(&self) -> usize {
        self.tuned.len()
    }

    /// The variant that comes before the estimates of `spec`, where it runs.
    fn preferred<S: Hash>(&self, op: &'static str, spec: &S, runs: impl Fn(&str) -> bool) -> Option<&str> {
        let forced = self.force.as_ref().filter(|(of, _)| of.as_ref().is_none_or(|of| of == op));
        let forced = forced.map(|(_, variant)| variant.as_str()).filter(|variant| runs(variant));
        forced.or_else(|| {
            let tuned = if self.tuned.is_empty() { None } else { self.tuned.get(&(op, hash(spec))) };
            tuned.map(String::as_str).filter(|variant| runs(variant))
        })
    }

    /// Marks in rows of [`explain`] the variant that [`choose`](Self::choose) takes; tells whether it is another than the
    /// estimates'.
    pub fn mark<S: Hash>(&self, op: &'static str, spec: &S, rows: &mut [Row]) -> bool {
        let runs = |name: &str| rows.iter().any(|row| row.variant == name && row.rejected.is_none());
        let Some(name) = self.preferred(op, spec, runs) else { return false };
        let mut changed = false;
        for row in rows {
            let picked = row.variant == name;
            changed |= picked != row.picked;
            row.picked = picked;
        }
        changed
    }

    /// Checks `op` and chooses the variant that runs it.
    pub(crate) fn choose_for<O: Op, L>(
        &self,
        op: &O,
        rows: Rows<O::Spec, L>,
        caps: &Caps,
    ) -> Result<&'static Variant<O::Spec, L>, KernelError> {
        let spec = op.spec().map_err(|error| error.of_op(O::NAME))?;
        let rows = match rows {
            Ok(rows) if self.batch_invariant => rows,
            other => return self.choose(O::NAME, other, &spec, caps),
        };
        select_invariant::<O, L>(rows, &spec, caps).ok_or_else(|| KernelError::Unsupported {
            op: O::NAME,
            spec: text::write(&spec),
            backend: caps.backend,
            reasons: format!(
                "no kernel takes one row as well as many: {}",
                why_not(&explain(rows, &spec, caps))
            ),
        })
    }

    /// The variant that runs `spec`: the forced one if it can, the measured one if it can, else that of [`select`].
    pub fn choose<S: Hash + Serialize + Default, L>(
        &self,
        op: &'static str,
        rows: Rows<S, L>,
        spec: &S,
        caps: &Caps,
    ) -> Result<&'static Variant<S, L>, KernelError> {
        let refused = |reasons: String| KernelError::Unsupported {
            op,
            spec: text::write(spec),
            backend: caps.backend,
            reasons,
        };
        let rows = rows.map_err(|why| refused(why.to_owned()))?;
        let named =
            |name: &str| rows.iter().find(|row| row.name == name && (row.reject)(spec, caps).is_none());
        let chosen = match self.preferred(op, spec, |name| named(name).is_some()) {
            Some(name) => named(name),
            None => select(rows, spec, caps),
        };
        chosen.ok_or_else(|| refused(why_not(&explain(rows, spec, caps))))
    }
}

fn hash<S: Hash>(spec: &S) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    spec.hash(&mut hasher);
    hasher.finish()
}

/// Every variant with its reason or estimate, in table order.
pub fn explain<S, L>(rows: &[Variant<S, L>], spec: &S, caps: &Caps) -> Vec<Row> {
    let picked = select(rows, spec, caps).map(|row| row.name);
    rows.iter()
        .map(|row| {
            let rejected = (row.reject)(spec, caps).map(Cow::into_owned);
            let est_us = rejected.is_none().then(|| (row.est_us)(spec, caps));
            Row { variant: row.name, picked: picked == Some(row.name), rejected, est_us }
        })
        .collect()
}
