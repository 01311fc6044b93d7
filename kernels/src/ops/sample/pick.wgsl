// Second step of sampling: the token of a row from its keys.
//
// keys: u32 [rows, pitch]   best: (key, token) [rows, chunks], both of keys.wgsl   settings: f32 [rows, 7] -> out: i32 [rows]
//
// A row with a NaN or without a finite largest logit gets -1.
//
// One workgroup a row. Greedy rows take the best of the chunks and are done. For the others tokens have a rank: by
// descending key, then by ascending number. Top-k, top-p and min-p each keep a beginning of that ranking, so that what is
// kept is known by its mass alone, the least of the three; and the token drawn is the one at which the mass of the ranking
// reaches `uniform` of it. Both need nothing but a search: which token stands at a given mass, or at a given count?
//
// Mass: a token's weight e^((logit - most) / temperature) in units of 2^-31, an integer; sums are integers of 64 bits. They
// do not depend on the order of the additions: the same settings give the same token on every run.
//
// Search: a histogram over all tokens divides the REACH = 24 natural logarithms below the best into BINS - 1 equal bins (less
// has no mass) and one for the rest, each with count and mass. It is made once. A search picks the bin; while that holds
// more than CANDIDATES tokens, a histogram of digits of their keys, and for equal keys of their numbers, narrows it, 8 bits
// a pass; then the tokens left are collected and ranked by comparing each with each. Real logits take the histogram and one
// pass over the row for each of top-k, top-p and the draw.
#include "ops/sample/histogram.wgsl"
#include "ops/sample/order.wgsl"
#include "wgpu/include/math.wgsl"

@group(0) @binding(0) var<storage, read_write> keys: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> best: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> settings: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<i32>;

struct Params {
    vocab: u32,
    chunks: u32,
    settings: u32,
    settings_stride: u32,
    out: u32,
    out_stride: u32,
}
${PARAMS} p: Params;

// At least BINS and CANDIDATES.
const WG: u32 = ${WG}u;
const REST: u32 = BINS - 1u;
const CANDIDATES: u32 = 256u;
const REACH: f32 = 24.0;
const UNIT: f32 = 2147483648.0;

// What searches are for.
const TOP_K: u32 = 0u;
const TOP_P: u32 = 1u;
const DRAW: u32 = 2u;

// Tokens in ranks that follow each other: those with keys `low..=high` and numbers `first..=last`.
struct Range {
    low: u32,
    high: u32,
    first: u32,
    last: u32,
    count: u32,
    mass: vec2<u32>,
    // Of the ranks before.
    count_before: u32,
    mass_before: vec2<u32>,
}

// The token that was searched for, and the mass up to it; for TOP_K with the tokens of equal key.
struct Found {
    token: u32,
    mass: vec2<u32>,
}

var<workgroup> row_settings: array<f32, ${SETTINGS}>;
var<workgroup> best_key: atomic<u32>;
var<workgroup> best_token: atomic<u32>;
// Bin b of the first histogram holds the keys above `bounds[b + 1]` up to `bounds[b]`.
var<workgroup> bounds: array<u32, BINS + 1u>;
// Mass of the tokens that min-p keeps, in two words.
var<workgroup> likely: array<atomic<u32>, 2>;
var<workgroup> chosen: atomic<u32>;
var<workgroup> range: Range;
var<workgroup> found: Found;
var<workgroup> candidates: array<vec2<u32>, CANDIDATES>;
var<workgroup> collected: atomic<u32>;

// Of the row.
var<private> keys_first: u32;
var<private> quads: u32;
var<private> most: f32;
var<private> per_temperature: f32;
var<private> per_bin: f32;

// Probability relative to the best token's.
fn likelihood(key: u32) -> f32 {
    if key <= LEAST_KEY {
        return 0.0;
    }
    return exp_f32((logit_of(key) - most) * per_temperature);
}

fn mass_of(key: u32) -> u32 {
    return u32(likelihood(key) * UNIT + 0.5);
}

// Bin of the first histogram. The quotient is a guess, the bounds decide.
fn bin_of(key: u32) -> u32 {
    var bin = u32(clamp((most - max(logit_of(key), -3.0e38)) * per_bin, 0.0, f32(REST)));
    while bin < REST && key <= bounds[bin + 1u] {
        bin++;
    }
    while bin > 0u && key > bounds[bin] {
        bin--;
    }
    return bin;
}

// The first histogram, and the mass that min-p keeps.
fn survey(lane: u32) {
    let width = 1.0 / per_bin;
    for (var i = lane; i <= BINS; i += WG) {
        bounds[i] = key_of(most - f32(i) * width);
        if i == BINS {
            bounds[i] = 0u;
        }
    }
    clear_histogram(lane);
    var sum = vec2<u32>(0u);
    var counted = 0u;
    let min_p = row_settings[${MIN_P}];
    for (var quad = lane; quad < quads; quad += WG) {
        let four = keys[keys_first + quad];
        for (var i = 0u; i < 4u; i++) {
            let key = four[i];
            if key <= bounds[REST] {
                continue;
            }
            let relative = likelihood(key);
            let mass = u32(relative * UNIT + 0.5);
            count_in(bin_of(key), mass);
            counted++;
            if relative >= min_p {
                sum = add64(sum, vec2<u32>(mass, 0u));
            }
        }
    }
    // The others are the rest, and have no mass.
    atomicAdd(&counts[REST], counted);
    if atomicAdd(&likely[0], sum.x) > 0xffffffffu - sum.x {
        sum.y++;
    }
    atomicAdd(&likely[1], sum.y);
    workgroupBarrier();
    if lane == 0u {
        atomicStore(&counts[REST], p.vocab - atomicLoad(&counts[REST]));
    }
    sum_histogram(0u, lane);
}

// Whether the ranks that begin after this count and mass begin at or before `target_rank`.
fn begins(goal: u32, target_rank: vec2<u32>, count: u32, mass: vec2<u32>) -> bool {
    if goal == TOP_K {
        return count <= target_rank.x;
    }
    return !less64(target_rank, mass);
}

// The bin of the sums at `base` that holds the rank, for the lane that owns it; to be called by all.
fn choose(goal: u32, target_rank: vec2<u32>, base: u32, before: Range, lane: u32) -> bool {
    if lane == 0u {
        atomicStore(&chosen, 0u);
    }
    workgroupBarrier();
    var count = before.count_before;
    var mass = before.mass_before;
    if lane > 0u && lane < BINS {
        count += count_to[base + lane - 1u];
        mass = add64(mass, mass_to[base + lane - 1u]);
    }
    // The last that begins in time and is not empty.
    if lane < BINS && begins(goal, target_rank, count, mass) {
        if before.count_before + count_to[base + lane] > count {
            atomicMax(&chosen, lane);
        }
    }
    workgroupBarrier();
    return lane == atomicLoad(&chosen);
}

// Sets the range to a bin of the sums at `base`, with these keys and numbers.
fn enter(base: u32, bin: u32, before: Range, low: u32, high: u32, first: u32, last: u32) {
    var skipped = 0u;
    var skipped_mass = vec2<u32>(0u);
    if bin > 0u {
        skipped = count_to[base + bin - 1u];
        skipped_mass = mass_to[base + bin - 1u];
    }
    range = Range(
        low,
        high,
        first,
        last,
        count_to[base + bin] - skipped,
        sub64(mass_to[base + bin], skipped_mass),
        before.count_before + skipped,
        add64(before.mass_before, skipped_mass),
    );
}

fn holds(r: Range, key: u32, token: u32) -> bool {
    return key >= r.low && key <= r.high && token >= r.first && token <= r.last;
}

// Divides the range by 8 bits of its keys, or of its numbers where it has one key, and enters the part with the rank.
fn narrow(goal: u32, target_rank: vec2<u32>, r: Range, lane: u32) {
    let by_key = r.low < r.high;
    let extent = select(r.last - r.first, r.high - r.low, by_key);
    let shift = max(firstLeadingBit(extent | 1u), 7u) - 7u;
    clear_histogram(lane);
    for (var quad = lane; quad < quads; quad += WG) {
        let four = keys[keys_first + quad];
        for (var i = 0u; i < 4u; i++) {
            let token = 4u * quad + i;
            if holds(r, four[i], token) {
                count_in(select(token - r.first, r.high - four[i], by_key) >> shift, mass_of(four[i]));
            }
        }
    }
    sum_histogram(BINS, lane);
    if choose(goal, target_rank, BINS, r, lane) {
        let skip = lane << shift;
        let most_left = (1u << shift) - 1u;
        if by_key {
            let high = r.high - skip;
            enter(BINS, lane, r, high - min(high - r.low, most_left), high, r.first, r.last);
        } else {
            let first = r.first + skip;
            enter(BINS, lane, r, r.low, r.high, first, first + min(r.last - first, most_left));
        }
    }
}

// Collects the tokens of the range and finds the one with the rank.
fn rank_candidates(goal: u32, target_rank: vec2<u32>, r: Range, lane: u32) {
    if lane == 0u {
        atomicStore(&collected, 0u);
        atomicStore(&chosen, 0u);
    }
    workgroupBarrier();
    for (var quad = lane; quad < quads; quad += WG) {
        let four = keys[keys_first + quad];
        for (var i = 0u; i < 4u; i++) {
            let token = 4u * quad + i;
            if holds(r, four[i], token) {
                let at = atomicAdd(&collected, 1u);
                if at < CANDIDATES {
                    candidates[at] = vec2<u32>(four[i], token);
                }
            }
        }
    }
    workgroupBarrier();
    let count = min(atomicLoad(&collected), CANDIDATES);
    let own = candidates[min(lane, CANDIDATES - 1u)];
    var ahead = 0u;
    var mass = r.mass_before;
    var mass_with_equals = r.mass_before;
    if lane < count {
        for (var i = 0u; i < count; i++) {
            let other = candidates[i];
            let other_mass = vec2<u32>(mass_of(other.x), 0u);
            if other.x > own.x || (other.x == own.x && other.y < own.y) {
                ahead++;
                mass = add64(mass, other_mass);
            }
            if other.x >= own.x {
                mass_with_equals = add64(mass_with_equals, other_mass);
            }
        }
        if begins(goal, target_rank, r.count_before + ahead, mass) {
            atomicMax(&chosen, ahead);
        }
    }
    workgroupBarrier();
    if lane < count && ahead == atomicLoad(&chosen) {
        let up_to = add64(mass, vec2<u32>(mass_of(own.x), 0u));
        found.token = own.y;
        found.mass = up_to;
        if goal == TOP_K {
            found.mass = mass_with_equals;
        }
    }
}

// The token at a rank: a count for TOP_K, else a mass below that of all tokens.
fn search(goal: u32, target_rank: vec2<u32>, lane: u32) -> Found {
    let whole = Range(0u, 0u, 0u, p.vocab - 1u, p.vocab, vec2<u32>(0u), 0u, vec2<u32>(0u));
    if choose(goal, target_rank, 0u, whole, lane) {
        enter(0u, lane, whole, bounds[lane + 1u] + 1u, bounds[lane], 0u, p.vocab - 1u);
    }
    // At most four digits of the keys and three of the numbers.
    for (var digit = 0u; digit < 8u; digit++) {
        let r = workgroupUniformLoad(&range);
        if r.count <= CANDIDATES {
            break;
        }
        if goal == TOP_K && r.low == r.high {
            return Found(0u, add64(r.mass_before, r.mass));
        }
        narrow(goal, target_rank, r, lane);
    }
    rank_candidates(goal, target_rank, workgroupUniformLoad(&range), lane);
    return workgroupUniformLoad(&found);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = group.x;
    if lane < ${SETTINGS}u {
        row_settings[lane] = settings[p.settings + row * p.settings_stride + lane];
    }
    if lane == 0u {
        atomicStore(&best_key, 0u);
        atomicStore(&best_token, 0xffffffffu);
        atomicStore(&likely[0], 0u);
        atomicStore(&likely[1], 0u);
    }
    workgroupBarrier();

    var own = vec2<u32>(0u, 0u);
    for (var chunk = lane; chunk < p.chunks; chunk += WG) {
        let other = best[row * p.chunks + chunk];
        if other.x > own.x {
            own = other;
        }
    }
    atomicMax(&best_key, own.x);
    workgroupBarrier();
    if own.x > 0u && own.x == atomicLoad(&best_key) {
        atomicMin(&best_token, own.y);
    }
    workgroupBarrier();
    let top = atomicLoad(&best_key);
    let setting = workgroupUniformLoad(&row_settings);
    // A NaN, or no finite largest logit: no token.
    let finite = top > LEAST_KEY && top < INFINITE_KEY;
    if setting[${TEMPERATURE}] <= 0.0 || !finite {
        if lane == 0u {
            out[p.out + row * p.out_stride] = select(-1, i32(atomicLoad(&best_token)), finite);
        }
        return;
    }

    let temperature = clamp(setting[${TEMPERATURE}], 1.0e-30, 1.0e30);
    quads = (p.vocab + 3u) / 4u;
    keys_first = row * quads;
    most = logit_of(top);
    per_temperature = 1.0 / temperature;
    per_bin = f32(REST) / (REACH * temperature);
    survey(lane);

    var kept = mass_to[REST];
    let top_k = u32(clamp(setting[${TOP_K_COLUMN}], 0.0, f32(p.vocab)));
    if top_k >= 1u && top_k < p.vocab {
        kept = search(TOP_K, vec2<u32>(top_k - 1u, 0u), lane).mass;
    }
    if setting[${TOP_P_COLUMN}] < 1.0 {
        let limit = share64(kept, max(setting[${TOP_P_COLUMN}], 0.0));
        let before = sub64(limit, vec2<u32>(select(1u, 0u, all(limit == vec2<u32>(0u))), 0u));
        kept = search(TOP_P, before, lane).mass;
    }
    if setting[${MIN_P}] > 0.0 {
        var least = vec2<u32>(atomicLoad(&likely[0]), atomicLoad(&likely[1]));
        if all(least == vec2<u32>(0u)) {
            // The best token stays whatever min-p is.
            least = vec2<u32>(mass_of(top), 0u);
        }
        if less64(least, kept) {
            kept = least;
        }
    }
    var cut = share64(kept, clamp(setting[${UNIFORM}], 0.0, 1.0));
    if !less64(cut, kept) {
        cut = sub64(kept, vec2<u32>(1u, 0u));
    }
    let token = search(DRAW, cut, lane).token;
    if lane == 0u {
        out[p.out + row * p.out_stride] = i32(token);
    }
}
