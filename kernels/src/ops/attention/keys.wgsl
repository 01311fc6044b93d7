// Sequences, and where their keys and values lie: packed one after another, or in pages through a block table.
//
// PAGED: whether keys lie in pages.
#include "ops/attention/params.wgsl"

@group(0) @binding(4) var<storage, read_write> q_starts: array<i32>;
@group(0) @binding(5) var<storage, read_write> kv_lens: array<i32>;
#if PAGED
@group(0) @binding(6) var<storage, read_write> block_table: array<i32>;
#endif

struct Sequence {
    number: u32,
    // First row in q, and rows.
    q_first: u32,
    q_len: u32,
    // First row of packed keys, and keys.
    kv_first: u32,
    kv_len: u32,
}

// What memory says of a sequence, kept within the bounds of the operands.
fn read_sequence(number: u32) -> Sequence {
    var s: Sequence;
    s.number = number;
    let q_first = clamp(q_starts[p.q_starts + number], 0, i32(p.tokens));
    s.q_first = u32(q_first);
    s.q_len = u32(clamp(q_starts[p.q_starts + number + 1u], q_first, i32(p.tokens)) - q_first);
#if PAGED
    s.kv_len = u32(clamp(kv_lens[p.kv_lens + number], 0, i32(p.table_width * p.page)));
#else
    let kv_first = clamp(kv_lens[p.kv_lens + number], 0, i32(p.kv_rows));
    s.kv_first = u32(kv_first);
    s.kv_len = u32(clamp(kv_lens[p.kv_lens + number + 1u], kv_first, i32(p.kv_rows)) - kv_first);
#endif
    return s;
}

// First elements of key and value `j < kv_len` of a sequence, at head 0.
fn key_row(s: Sequence, j: u32) -> vec2<u32> {
#if PAGED
    let block = block_table[p.block_table + s.number * p.table_width + j / p.page];
    let page = u32(clamp(block, 0, i32(p.kv_rows) - 1));
    let slot = j % p.page;
    return vec2<u32>(p.k + page * p.k_page + slot * p.k_slot, p.v + page * p.v_page + slot * p.v_slot);
#else
    let row = s.kv_first + j;
    return vec2<u32>(p.k + row * p.k_page, p.v + row * p.v_page);
#endif
}
