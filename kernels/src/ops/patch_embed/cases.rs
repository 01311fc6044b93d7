//! Conformance cases.

use super::PatchEmbed;
use crate::conformance::{Case, CaseCx};

pub(super) fn cases(_cx: &mut CaseCx) -> Vec<Case<PatchEmbed>> {
    Vec::new()
}
