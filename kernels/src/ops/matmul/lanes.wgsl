// Adds the sums of the invocations of a workgroup and gives the results away: `emit_lanes(first, lane, .., &acc)`,
// where `acc[j R + r]` is an invocation's share of row j of x times row r of the block of weights that begins at column
// `first`.
//
// M: rows of x; R: rows of the block, two or four; WG: invocations; SUBGROUP: whether subgroups, of whatever width, add
// theirs in registers. What is left goes through workgroup memory, at most 16 KiB: without subgroups by halves of the
// lanes, which meets no bank twice and adds in the same order each time.
const WG: u32 = ${WG}u;
const M: u32 = ${M}u;
const R: u32 = ${R}u;
const SUMS: u32 = M * R;

#if SUBGROUP
// A subgroup has four lanes or more.
var<workgroup> lane_sums: array<f32, SUMS * WG / 4u>;
#else
var<workgroup> lane_sums: array<f32, SUMS * WG>;
#endif

// Gives two columns away an invocation.
fn emit_sums(first: u32, lane: u32) {
    for (var unit = lane; unit < SUMS / (2u * PER_COLUMN); unit += WG) {
#if GATED
        let at = 4u * unit;
        let up = vec2<f32>(lane_sums[at + 2u], lane_sums[at + 3u]);
        emit2(unit, first, vec2<f32>(lane_sums[at], lane_sums[at + 1u]), up);
#else
        let at = 2u * unit;
        let product = vec2<f32>(lane_sums[at], lane_sums[at + 1u]);
        emit2(at / R, first + at % R, product, vec2<f32>());
#endif
    }
}

#if SUBGROUP
fn emit_lanes(
    first: u32,
    lane: u32,
    subgroup: u32,
    subgroups: u32,
    subgroup_lane: u32,
    acc: ptr<function, array<f32, SUMS>>,
) {
    for (var s = 0u; s < SUMS; s++) {
        let sum = subgroupAdd((*acc)[s]);
        if subgroup_lane == 0u {
            lane_sums[subgroup * SUMS + s] = sum;
        }
    }
    workgroupBarrier();
    for (var s = lane; s < SUMS; s += WG) {
        var sum = lane_sums[s];
        for (var i = 1u; i < subgroups; i++) {
            sum += lane_sums[i * SUMS + s];
        }
        lane_sums[s] = sum;
    }
    workgroupBarrier();
    emit_sums(first, lane);
}
#else
fn emit_lanes(first: u32, lane: u32, acc: ptr<function, array<f32, SUMS>>) {
    for (var s = 0u; s < SUMS; s++) {
        lane_sums[lane * SUMS + s] = (*acc)[s];
    }
    for (var half = WG / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        for (var s = lane; s < half * SUMS; s += WG) {
            lane_sums[s] += lane_sums[s + half * SUMS];
        }
    }
    workgroupBarrier();
    emit_sums(first, lane);
}
#endif
