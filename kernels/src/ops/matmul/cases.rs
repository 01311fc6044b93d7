//! Conformance cases.

use super::Matmul;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Matmul>> {
    Vec::new()
}
