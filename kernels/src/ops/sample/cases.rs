//! Conformance cases.

use super::Sample;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Sample>> {
    Vec::new()
}
