//! Conformance cases.

use super::Attention;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<Attention>> {
    Vec::new()
}
