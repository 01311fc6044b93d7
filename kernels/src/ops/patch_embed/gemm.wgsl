// out[m, n] = sum_k patch[m, k] * w[n, k] + bias[n] + pos[id(m), n]
//
// pixels: u8 [images, height, width, 3] or f32 [images, 3, height, width]   w: [N, K] of any format, K = 3 * patch^2, channel
// outermost, then row   bias: [N]   pos: [positions, N]   pos_ids: i32 [M]   out: [M, N] of type OUT, M patches
//
// A matrix product whose left side does not exist: patch[m, k] is read from the pixels where a tile of it is staged, and
// bytes are normalized there, (level - mean[c]) / std[c]. Element k of any patch lies at the same distance from the
// patch's corner, so one invocation stages one k of many patches: the division of k into channel, row and column is done
// once a step, and neighbouring invocations read neighbouring pixels. Corners are worked out once a workgroup.
//
// Tiling: a workgroup of SIDE x SIDE invocations makes a TILE x TILE tile of the result, TILE = 8 SIDE, in steps of DEPTH
// along k. An invocation holds 8 x 8 results in registers, as four 4 x 4 blocks half a tile apart, so that 4 vectors from
// workgroup memory feed 64 multiply-adds. Both staged tiles hold four neighbours of a tile's side in one vector; lines of
// PITCH vectors, one more than a side has, keep the invocations that stage different k in different banks. The tile of 128
// (SIDE 16, DEPTH 8) stages half as much a multiply-add as that of 64 (SIDE 8, DEPTH 16), and needs four times the result to
// fill a device. Either takes less than 9 KiB of workgroup memory.
//
// Rows and columns beyond the result are computed from the last real ones and not stored. POS, POS_IDS, BIAS: operands that
// exist. The launch serves one part of a stacked w: N, bias, pos and out are then those of the part.
#include "wgpu/include/weight.wgsl"
#include "wgpu/include/input.wgsl" NAME=pixels BINDING=3 TYPE=${PIXELS} ACCESS=read_write
#if BIAS
#include "wgpu/include/input.wgsl" NAME=bias BINDING=4 TYPE=${BIAS} ACCESS=read
#endif
#if POS
#include "wgpu/include/input.wgsl" NAME=pos BINDING=5 TYPE=${POS} ACCESS=read_write
#endif
#if POS_IDS
@group(0) @binding(6) var<storage, read_write> pos_ids: array<i32>;
#endif
#include "wgpu/include/output.wgsl" NAME=out BINDING=7 TYPE=${OUT}

struct Params {
    m: u32,
    n: u32,
    k: u32,
    patch_size: u32,
    height: u32,
    width: u32,
    across: u32,
    per_image: u32,
    pixels: u32,
    mean_r: f32,
    mean_g: f32,
    mean_b: f32,
    scale_r: f32,
    scale_g: f32,
    scale_b: f32,
    bias: u32,
    pos: u32,
    pos_stride: u32,
    positions: u32,
    pos_ids: u32,
    out: u32,
    out_stride: u32,
    w: u32,
    w_stride: u32,
    scales: u32,
    scale_stride: u32,
    zeros: u32,
    zero_stride: u32,
    group: u32,
    factor: f32,
}
${PARAMS} p: Params;

const SIDE: u32 = ${SIDE}u;
const WG: u32 = SIDE * SIDE;
const TILE: u32 = 8u * SIDE;
const DEPTH: u32 = ${DEPTH}u;
const PITCH: u32 = TILE / 4u + 1u;

var<workgroup> patches: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> filters: array<vec4<f32>, DEPTH * PITCH>;
// First pixel of each patch of the tile.
var<workgroup> corners: array<u32, TILE>;

fn corner_of(m: u32) -> u32 {
    let image = m / p.per_image;
    let place = m % p.per_image;
    let top = place / p.across * p.patch_size;
    let left = place % p.across * p.patch_size;
#if PIXELS == u8
    return p.pixels + ((image * p.height + top) * p.width + left) * 3u;
#else
    return p.pixels + (image * 3u * p.height + top) * p.width + left;
#endif
}

// Element k of a patch: its distance from the corner, and what normalizes it.
struct Tap {
    distance: u32,
    mean: f32,
    scale: f32,
}

fn tap_of(k: u32) -> Tap {
    let line = k / p.patch_size;
    let x = k % p.patch_size;
    let c = line / p.patch_size;
    let y = line % p.patch_size;
#if PIXELS == u8
    let mean = select(select(p.mean_b, p.mean_g, c == 1u), p.mean_r, c == 0u);
    let scale = select(select(p.scale_b, p.scale_g, c == 1u), p.scale_r, c == 0u);
    return Tap((y * p.width + x) * 3u + c, mean, scale);
#else
    return Tap((c * p.height + y) * p.width + x, 0.0, 1.0);
#endif
}

fn pixel(corner: u32, tap: Tap) -> f32 {
#if PIXELS == u8
    return (pixels_at(corner + tap.distance) - tap.mean) * tap.scale;
#else
    return pixels_at(corner + tap.distance);
#endif
}

// Stages columns k0..k0 + DEPTH of the patches and of the filters from row n0 on; zeros beyond k.
fn stage(n0: u32, k0: u32, lane: u32) {
    let depth = lane % DEPTH;
    let k = min(k0 + depth, p.k - 1u);
    let real = k0 + depth < p.k;
    let tap = tap_of(k);
    let last = p.n - 1u;
    for (var quad = lane / DEPTH; quad < TILE / 4u; quad += WG / DEPTH) {
        let four = vec4<f32>(
            pixel(corners[4u * quad], tap),
            pixel(corners[4u * quad + 1u], tap),
            pixel(corners[4u * quad + 2u], tap),
            pixel(corners[4u * quad + 3u], tap),
        );
        patches[depth * PITCH + quad] = select(vec4<f32>(0.0), four, real);
        let n = n0 + 4u * quad;
        let weights = vec4<f32>(
            weight_at(min(n, last), k),
            weight_at(min(n + 1u, last), k),
            weight_at(min(n + 2u, last), k),
            weight_at(min(n + 3u, last), k),
        );
        filters[depth * PITCH + quad] = select(vec4<f32>(0.0), weights, real);
    }
}

// Adds the outer product of four patches and four filters: column i of a block belongs to patch i.
fn grow(block: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4<f32>(
        fma(vec4<f32>(a.x), b, block[0]),
        fma(vec4<f32>(a.y), b, block[1]),
        fma(vec4<f32>(a.z), b, block[2]),
        fma(vec4<f32>(a.w), b, block[3]),
    );
}

// What is added to the sum of a result.
fn shift(position: u32, n: u32) -> f32 {
    var value = 0.0;
#if BIAS
    value += bias_at(p.bias + n);
#endif
#if POS
    value += pos_at(p.pos + position * p.pos_stride + n);
#endif
    return value;
}

fn store4(m: u32, n: u32, sums: vec4<f32>) {
    if m >= p.m {
        return;
    }
#if POS_IDS
    let position = u32(clamp(pos_ids[p.pos_ids + m], 0, i32(p.positions) - 1));
#else
    let position = m % p.per_image;
#endif
    let to = p.out + m * p.out_stride + n;
    for (var i = 0u; i < 4u; i += 2u) {
        let pair = select(sums.zw, sums.xy, i == 0u);
        if n + i + 1u < p.n {
            out_set2(to + i, pair + vec2<f32>(shift(position, n + i), shift(position, n + i + 1u)));
        } else if n + i < p.n {
            out_set(to + i, pair.x + shift(position, n + i));
        }
    }
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let n0 = group.x * TILE;
    let m0 = group.y * TILE;
    if lane < TILE {
        corners[lane] = corner_of(min(m0 + lane, p.m - 1u));
    }
    workgroupBarrier();

    let row = lane / SIDE;
    let col = lane % SIDE;
    var block00 = mat4x4<f32>();
    var block01 = mat4x4<f32>();
    var block10 = mat4x4<f32>();
    var block11 = mat4x4<f32>();
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        stage(n0, k0, lane);
        workgroupBarrier();
        for (var line = 0u; line < DEPTH * PITCH; line += PITCH) {
            let a0 = patches[line + row];
            let a1 = patches[line + row + SIDE];
            let b0 = filters[line + col];
            let b1 = filters[line + col + SIDE];
            block00 = grow(block00, a0, b0);
            block01 = grow(block01, a0, b1);
            block10 = grow(block10, a1, b0);
            block11 = grow(block11, a1, b1);
        }
        workgroupBarrier();
    }

    // One row of the blocks at a time: a loop keeps the code of the stores small, the switch the blocks in registers. An `i`
    // from p.m on is of a row from p.m on.
    let n = n0 + 4u * col;
    for (var i = 0u; i < min(8u, p.m); i++) {
        var left: vec4<f32>;
        var right: vec4<f32>;
        switch i {
            case 0u: { left = block00[0]; right = block01[0]; }
            case 1u: { left = block00[1]; right = block01[1]; }
            case 2u: { left = block00[2]; right = block01[2]; }
            case 3u: { left = block00[3]; right = block01[3]; }
            case 4u: { left = block10[0]; right = block11[0]; }
            case 5u: { left = block10[1]; right = block11[1]; }
            case 6u: { left = block10[2]; right = block11[2]; }
            default: { left = block10[3]; right = block11[3]; }
        }
        let m = m0 + 4u * row + i % 4u + i / 4u * (TILE / 2u);
        store4(m, n, left);
        store4(m, n + TILE / 2u, right);
    }
}
