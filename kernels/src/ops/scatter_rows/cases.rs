//! Conformance cases.

use super::ScatterRows;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<ScatterRows>> {
    Vec::new()
}
