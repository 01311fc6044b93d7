// Weights stored as codes in groups, eight neighbours at a time; see `group.wgsl` for what it takes, and for scales and zero points.
//
// PACKED, SCALES, ZEROS: bindings; GROUPS: `eight` where eight neighbours share a group, `any` else; BYTES: whether integers are wanted as
// bytes; WVEC: whether rows of words begin at multiples of four words with BYTES, of two words for 8 bits without.
// Of the kernel's parameters `p` also: `k`; `w`, the first word; `w_stride`; `group`, weights along k that share a scale.
//
// A kernel reads and decodes eight weights at a time, which is one word of 4 bits, or two of 8:
//
//   let span = w_span(row, col);                  // col a multiple of eight, below k
//   let notes = w_notes(row, col);                // factor and zero
//   let w = w_eight(span, row, col, notes);       // times notes.x: weights col .. col + 8
//
// Weights past k are finite and mean nothing; the factors that they meet must be zero. With BYTES there are the fields
// of 32 weights as signed bytes instead, see `w_block`; groups are multiples of 32 then.
#include "quant/grouped/group.wgsl" SCALES=${SCALES} ZEROS=${ZEROS}
#if WVEC && BYTES
@group(0) @binding(${PACKED}) var<storage, read> w_packed: array<vec4<u32>>;
#elif WVEC
@group(0) @binding(${PACKED}) var<storage, read> w_packed: array<vec2<u32>>;
#else
@group(0) @binding(${PACKED}) var<storage, read> w_packed: array<u32>;
#endif

fn w_notes(row: u32, col: u32) -> vec2<f32> {
#if GROUPS == any
    return vec2<f32>(1.0, 0.0);
#else
    return w_group(row, col / p.group);
#endif
}

#if !BYTES
#if BITS == 4
alias Span = u32;

fn w_span(row: u32, col: u32) -> Span {
    return w_packed[p.w + row * p.w_stride + col / 8u];
}
#else
alias Span = vec2<u32>;

fn w_span(row: u32, col: u32) -> Span {
    let at = p.w + row * p.w_stride + col / 4u;
#if WVEC
    return w_packed[at >> 1u];
#else
    if col + 4u < p.k {
        return vec2<u32>(w_packed[at], w_packed[at + 1u]);
    }
    return vec2<u32>(w_packed[at], 0u);
#endif
}
#endif

#if GROUPS == any
// Scales or zeros of weights that may lie in two or more groups; past k those of the last.
fn w_each(row: u32, col: u32) -> array<vec4<f32>, 2> {
    let last = p.k - 1u;
    let a = w_group(row, min(col, last) / p.group);
    let b = w_group(row, min(col + 1u, last) / p.group);
    let c = w_group(row, min(col + 2u, last) / p.group);
    let d = w_group(row, min(col + 3u, last) / p.group);
    return array<vec4<f32>, 2>(vec4<f32>(a.x, b.x, c.x, d.x), vec4<f32>(a.y, b.y, c.y, d.y));
}
#endif

fn w_eight(span: Span, row: u32, col: u32, notes: vec2<f32>) -> Eight {
#if BITS == 4
    let words = vec2<u32>(span, span >> 16u);
#else
    let words = span;
#endif
#if GROUPS == any
    let low = w_each(row, col);
    let high = w_each(row, col + 4u);
    return Eight(code_four(words.x, low[1]) * low[0], code_four(words.y, high[1]) * high[0]);
#else
    return Eight(code_four(words.x, vec4<f32>(notes.y)), code_four(words.y, vec4<f32>(notes.y)));
#endif
}
#else
// The fields of 32 weights as bytes: of 8 bits, less 128, four neighbours a word, in order; of 4 bits, those at even
// places of each eight in `first`, those at odd places in `second`, so that a mask and a shift bring them there.
struct Block {
    first: vec4<u32>,
    second: vec4<u32>,
}

// What `w_group` calls zero, of these bytes.
const BYTE_ZERO: f32 = select(0.0, 128.0, ${BITS}u == 8u);

#if !WVEC
fn w_word(at: u32, col: u32) -> u32 {
    if col < p.k {
        return w_packed[at];
    }
    return 0u;
}
#endif

// Four words of packed fields from column `col` on, a multiple of 16; zeros past the end of the row.
fn w_words(row: u32, col: u32) -> vec4<u32> {
    let at = p.w + row * p.w_stride + col / PER_WORD;
#if WVEC
    if col < p.k {
        return w_packed[at >> 2u];
    }
    return vec4<u32>();
#else
    return vec4<u32>(
        w_word(at, col),
        w_word(at + 1u, col + PER_WORD),
        w_word(at + 2u, col + 2u * PER_WORD),
        w_word(at + 3u, col + 3u * PER_WORD),
    );
#endif
}

// Weights `col .. col + 32`, `col` a multiple of 32 below `p.k`.
fn w_block(row: u32, col: u32) -> Block {
#if BITS == 4
    let words = w_words(row, col);
    return Block(words & vec4<u32>(0x0f0f0f0fu), (words >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu));
#else
    let flip = vec4<u32>(0x80808080u);
    return Block(w_words(row, col) ^ flip, w_words(row, col + 16u) ^ flip);
#endif
}
#endif
