// What may follow a product of queries, keys and values: columns are heads, of which queries and keys are turned (`rope.cu` says how);
// queries are the result, keys and values go to pages of the KV cache.
//
// w: heads_q heads of queries, heads_kv of keys, heads_kv of values, of head_dim rows each   positions: i32 [axes, m]
// inv_freq: f32 [pairs]   pair_axis: i32 [pairs] or null   slots: i32 [m]
// k_pages, v_pages: [pages, page_size, heads_kv, head_dim] of type kv_type
//
// What a thread ends is two columns of a row, those that are turned together or, beyond the pairs and in values, neighbours:
// duo `d` of a head, of which there are head_dim / 2. All a turn wants from memory is fetched before the product, so that nobody waits for
// it after. Rows with a slot that is negative or beyond the last are not kept.
#pragma once
#include "cuda/include/values.cuh"
#include "ops/rope/angle.cuh"

struct PageStrides {
    i64 page;
    i64 slot;
    i64 head;
};

struct Heads {
    const i32* positions;
    const f32* inv_freq;
    const i32* pair_axis;
    const i32* slots;
    void* k_pages;
    void* v_pages;
    PageStrides of_k;
    PageStrides of_v;
    i64 axis; // elements from axis to axis of the positions
    u32 axes;
    i32 heads_q;
    i32 heads_kv;
    i32 head_dim;
    i32 pairs;
    u32 interleaved; // whether pair p is elements 2 p and 2 p + 1, not p and p + pairs
    u32 page_size;
    u32 limit; // slots of all pages
    u32 kv_type;
    f32 scaling;
};

// Two columns of a head.
struct Duo {
    i32 head;
    i32 a; // elements of the head
    i32 b;
    i32 pair; // that is turned, or -1

    // Those of columns `col` and `col + 1`, were they in this order; col is even.
    DEVICE Duo(const Heads& h, i32 col) {
        head = col / h.head_dim;
        const i32 at = (col - head * h.head_dim) / 2;
        pair = head < h.heads_q + h.heads_kv && at < h.pairs ? at : -1;
        const bool apart = pair >= 0 && h.interleaved == 0;
        a = apart ? at : 2 * at;
        b = apart ? at + h.pairs : 2 * at + 1;
    }
    DEVICE i32 column(const Heads& h, i32 c) const { return head * h.head_dim + (c == 0 ? a : b); }
};

// What ends a duo of a row, on its way from memory.
struct Ending {
    i32 position;
    i32 slot;
    f32 freq;

    DEVICE Ending(const Heads& h, const Duo& duo, i32 row, bool there) {
        position = 0, slot = -1, freq = 0.0f;
        if (!there) return;
        if (duo.pair >= 0) {
            const u32 axis = h.pair_axis ? min_of(static_cast<u32>(h.pair_axis[duo.pair]), h.axes - 1) : 0;
            position = h.positions[axis * h.axis + row];
            freq = h.inv_freq[duo.pair];
        }
        if (duo.head >= h.heads_q) slot = h.slots[row];
    }
};

// Ends a duo of a row; `out`: queries, rows of which are `stride` elements apart.
DEVICE void emit_duo(const Heads& h, const Duo& duo, const Ending& by, void* out, u32 out_type, i64 stride, i32 row, f32 a, f32 b) {
    if (duo.pair >= 0) turn(a, b, turn_of(by.position, by.freq, h.scaling));
    if (duo.head < h.heads_q) {
        store_value(out, out_type, row * stride + duo.column(h, 0), a);
        store_value(out, out_type, row * stride + duo.column(h, 1), b);
        return;
    }
    if (by.slot < 0 || static_cast<u32>(by.slot) >= h.limit) return;
    const bool is_value = duo.head >= h.heads_q + h.heads_kv;
    const PageStrides& of = is_value ? h.of_v : h.of_k;
    const i64 page = static_cast<u32>(by.slot) / h.page_size, place = static_cast<u32>(by.slot) % h.page_size;
    const i32 head = duo.head - h.heads_q - (is_value ? h.heads_kv : 0);
    const i64 at = page * of.page + place * of.slot + head * of.head;
    store_value(is_value ? h.v_pages : h.k_pages, h.kv_type, at + duo.a, a);
    store_value(is_value ? h.v_pages : h.k_pages, h.kv_type, at + duo.b, b);
}
