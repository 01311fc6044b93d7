// Sequences: where their queries, keys and values lie, and which keys a query sees.
//
// The query heads that share a key head are rows of one problem, so that a key is loaded once for all of them: row r of a
// sequence and a key head is query r / group, head r % group of the key head's.
//
// A query sees the keys first .. end, whose bounds ascend with the query. RANGES: whether memory says them for each row of q, or
// they follow from the query's position.
#pragma once
#include "cuda/include/types.cuh"

// Operands of every attention kernel. Strides are in elements.
struct Operands {
    const void* q;
    const void* k;
    const void* v;
    void* out;
    // First row of each sequence in q, and one more.
    const i32* q_starts;
    // Packed keys: first row of each sequence, and one more. Pages: keys of each sequence.
    const i32* kv_lens;
    // Null where keys are packed.
    const i32* block_table;
    // RANGES: of each row of q the first key that it sees, or null where that is the first of all, and the end of these keys.
    const i32* from;
    const i32* to;
    // Split keys: sums of each part, see partial.cuh; null otherwise.
    f32* partial;
    u32* counters;
    i64 q_token, q_head;
    i64 k_page, k_slot, k_head;
    i64 v_page, v_slot, v_head;
    i64 out_token, out_head;
    i64 table_row;
    // Rows of q; packed rows or pages of keys; pages that a sequence may have; slots of a page, 0 where keys are packed.
    i32 tokens, kv_rows, table_width, page;
    i32 heads_kv, group, head_dim;
    i32 causal, window;
    // Parts that keys are split into.
    i32 splits;
    f32 scale;
    // 0 for none.
    f32 softcap;
    // ValueType of q and out, of k and v.
    u32 x_type, kv_type;
    // Whether vectors of four may be loaded.
    u32 aligned;
    u32 reserved;
};

struct Sequence {
    // First row in q, and rows.
    i32 q_first, q_len;
    // First row of packed keys, and keys.
    i32 kv_first, kv_len;
    const i32* pages;
};

DEVICE i32 clamp_to(i32 x, i32 low, i32 high) { return min_of(max_of(x, low), high); }

// What memory says of a sequence, kept within the bounds of the operands.
DEVICE Sequence read_sequence(const Operands& p, i32 number) {
    Sequence s;
    s.q_first = clamp_to(p.q_starts[number], 0, p.tokens);
    s.q_len = clamp_to(p.q_starts[number + 1], s.q_first, p.tokens) - s.q_first;
    if (p.block_table != nullptr) {
        s.kv_first = 0;
        s.kv_len = clamp_to(p.kv_lens[number], 0, p.kv_rows > 0 ? p.table_width * p.page : 0);
        s.pages = p.block_table + number * p.table_row;
    } else {
        s.kv_first = clamp_to(p.kv_lens[number], 0, p.kv_rows);
        s.kv_len = clamp_to(p.kv_lens[number + 1], s.kv_first, p.kv_rows) - s.kv_first;
        s.pages = nullptr;
    }
    return s;
}

// Query rows of a key head.
DEVICE i32 rows_of(const Operands& p, const Sequence& s) { return s.q_len * p.group; }

// Elements from the beginning of q, of out to row `row` of key head `head`.
DEVICE i64 q_place(const Operands& p, const Sequence& s, i32 head, i32 row) {
    const i32 query = row / p.group;
    return (s.q_first + query) * p.q_token + (head * p.group + row - query * p.group) * p.q_head;
}
DEVICE i64 out_place(const Operands& p, const Sequence& s, i32 head, i32 row) {
    const i32 query = row / p.group;
    return (s.q_first + query) * p.out_token + (head * p.group + row - query * p.group) * p.out_head;
}

// Where key `j` < kv_len of a sequence lies. Packed keys are slots of a single page.
struct Slot {
    i32 page, slot;
};
DEVICE Slot slot_of(const Operands& p, const Sequence& s, i32 j, i32 page_size) {
    if (page_size == 0) return {0, s.kv_first + j};
    const i32 block = j / page_size;
    return {clamp_to(s.pages[block], 0, p.kv_rows - 1), j - block * page_size};
}
// Elements from the beginning of k, of v to a slot of key head `head`.
DEVICE i64 k_place(const Operands& p, Slot at, i32 head) { return at.page * p.k_page + at.slot * p.k_slot + head * p.k_head; }
DEVICE i64 v_place(const Operands& p, Slot at, i32 head) { return at.page * p.v_page + at.slot * p.v_slot + head * p.v_head; }

// The keys that a row sees; none where `end` is not beyond `first`.
struct Seen {
    i32 first, end;
};
DEVICE Seen seen_by(const Operands& p, const Sequence& s, i32 row) {
    if constexpr (RANGES) {
        // Rows beyond the last do what the last one does.
        const i32 token = s.q_first + min_of(row / p.group, s.q_len - 1);
        return {p.from != nullptr ? clamp_to(p.from[token], 0, s.kv_len) : 0, clamp_to(p.to[token], 0, s.kv_len)};
    } else {
        if (!p.causal) return {0, s.kv_len};
        // The queries of a sequence are its last ones.
        const i32 position = s.kv_len - s.q_len + row / p.group;
        return {p.window > 0 ? max_of(position - p.window + 1, 0) : 0, clamp_to(position + 1, 0, s.kv_len)};
    }
}
DEVICE bool sees(Seen seen, i32 key) { return key >= seen.first && key < seen.end; }

// The tiles of `SIZE` keys that some of the rows row .. last see.
template <i32 SIZE> struct KeyTiles {
    i32 first, count;
    // The keys whose values are numbers: begin .. end. Those of others in a tile are to be taken as zero, because a power of 0
    // times whatever memory holds there may be NaN.
    i32 begin, end;
    // Keys that every row sees.
    i32 whole_first, whole_end;

    DEVICE KeyTiles(const Operands& p, const Sequence& s, i32 row, i32 last) {
        const Seen low = seen_by(p, s, row);
        const Seen high = seen_by(p, s, last);
        begin = low.first;
        // Where positions say what is seen, the last row of the sequence sees its last key.
        end = RANGES ? high.end : s.kv_len;
        whole_first = high.first;
        whole_end = low.end;
        first = begin / SIZE;
        count = high.end > begin ? (high.end + SIZE - 1) / SIZE - first : 0;
    }
    // First key of tile `i` < count.
    DEVICE i32 key(i32 i) const { return SIZE * (first + i); }
    // Whether every row sees each key of the tile at `key`.
    DEVICE bool whole(i32 key) const { return key >= whole_first && key + SIZE <= whole_end; }
};
