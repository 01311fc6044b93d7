//! Conformance cases.

use super::Norm;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Norm>> {
    Vec::new()
}
