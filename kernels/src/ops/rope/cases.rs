//! Conformance cases.

use super::Rope;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Rope>> {
    Vec::new()
}
