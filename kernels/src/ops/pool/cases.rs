//! Conformance cases.

use super::Pool;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Pool>> {
    Vec::new()
}
