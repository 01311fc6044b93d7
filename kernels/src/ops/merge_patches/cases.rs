//! Conformance cases.

use super::MergePatches;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<MergePatches>> {
    Vec::new()
}
