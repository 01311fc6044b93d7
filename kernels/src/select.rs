//! Variants of an op and the one way to choose among them.

use std::borrow::Cow;

use crate::spec::Caps;

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
