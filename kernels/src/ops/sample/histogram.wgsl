// A histogram of counts and masses in workgroup memory, and its sums up to each bin.
//
// Masses of tokens are words, those of bins have 64 bits: an addition that overflows the low word carries into the high one.
// All functions but `count_in` are to be called by the whole workgroup, of BINS invocations or more.
#include "ops/sample/mass.wgsl"

const BINS: u32 = 256u;

// A histogram in the making.
var<workgroup> counts: array<atomic<u32>, BINS>;
var<workgroup> mass_low: array<atomic<u32>, BINS>;
var<workgroup> mass_high: array<atomic<u32>, BINS>;
// Sums up to and with each bin: of the first histogram, and from BINS on of a later one.
var<workgroup> count_to: array<u32, 2u * BINS>;
var<workgroup> mass_to: array<vec2<u32>, 2u * BINS>;

fn clear_histogram(lane: u32) {
    if lane < BINS {
        atomicStore(&counts[lane], 0u);
        atomicStore(&mass_low[lane], 0u);
        atomicStore(&mass_high[lane], 0u);
    }
    workgroupBarrier();
}

fn count_in(bin: u32, mass: u32) {
    atomicAdd(&counts[bin], 1u);
    if mass > 0u && atomicAdd(&mass_low[bin], mass) > 0xffffffffu - mass {
        atomicAdd(&mass_high[bin], 1u);
    }
}

// Sums of the histogram up to each bin, to `base`.
fn sum_histogram(base: u32, lane: u32) {
    workgroupBarrier();
    if lane < BINS {
        count_to[base + lane] = atomicLoad(&counts[lane]);
        mass_to[base + lane] = vec2<u32>(atomicLoad(&mass_low[lane]), atomicLoad(&mass_high[lane]));
    }
    workgroupBarrier();
    for (var step = 1u; step < BINS; step <<= 1u) {
        let takes = lane < BINS && lane >= step;
        var count = 0u;
        var mass = vec2<u32>(0u);
        if takes {
            count = count_to[base + lane - step];
            mass = mass_to[base + lane - step];
        }
        workgroupBarrier();
        if takes {
            count_to[base + lane] += count;
            mass_to[base + lane] = add64(mass_to[base + lane], mass);
        }
        workgroupBarrier();
    }
}
