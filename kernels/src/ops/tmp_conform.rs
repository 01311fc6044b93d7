mod tests {
    use crate::conformance::run_cpu;
    use crate::cpu::isa::Isa;
    use crate::cpu::pool::Pool;
    use crate::{CpuOp, ops};
    use std::sync::Arc;

    fn conforms<O: CpuOp>() {
        let isas: Vec<Isa> = Isa::available().into_iter().collect();
        for threads in [1, 3] {
            let report = run_cpu::<O>(&isas, &Arc::new(Pool::new(threads)), 20 + threads as u64);
            for (what, cases) in &report.ran {
                println!("{} {what}: {cases} cases on {threads} threads", O::NAME);
            }
            let failed = report.failed.len();
            let few: Vec<&str> = report.failed.iter().take(12).map(String::as_str).collect();
            assert!(failed == 0, "{failed} failed, {} passed:\n{}", report.passed, few.join("\n"));
            assert!(report.passed > 0);
        }
    }
    macro_rules! all { ($($n:ident $t:ident),+) => { $(#[test] fn $n() { conforms::<ops::$t>(); })+ } }
    all!(norm_grad NormGrad, act_grad ActGrad, gather_rows_grad GatherRowsGrad, scatter_rows_grad ScatterRowsGrad,
        merge_patches_grad MergePatchesGrad, patch_embed_grad PatchEmbedGrad, pointwise_grad PointwiseGrad, pool_grad PoolGrad,
        merge_patches MergePatches, pool Pool, patch_embed PatchEmbed, pointwise Pointwise);
}
