//! Conformance cases.

use super::GatherRows;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<GatherRows>> {
    Vec::new()
}
