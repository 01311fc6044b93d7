// Parameters of all attention kernels. Offsets and strides are in elements of their tensor.
struct Params {
    // Rows of q, and query heads that share a key head.
    tokens: u32,
    group: u32,
    q: u32,
    q_token: u32,
    q_head: u32,
    // Stride of a packed row or a page, of a slot in it, of a head.
    k: u32,
    k_page: u32,
    k_slot: u32,
    k_head: u32,
    v: u32,
    v_page: u32,
    v_slot: u32,
    v_head: u32,
    out: u32,
    out_token: u32,
    out_head: u32,
    q_starts: u32,
    // kv_starts of packed keys, kv_lens of paged ones.
    kv_lens: u32,
    block_table: u32,
    table_width: u32,
    page: u32,
    // Packed rows, or pages, that there are.
    kv_rows: u32,
    // Where the ends of ranges lie, and their beginnings.
    ranges_to: u32,
    ranges_from: u32,
    causal: u32,
    // 0 is no limit.
    window: u32,
    scale: f32,
    // 0 is off.
    softcap: f32,
    splits: u32,
    partial: u32,
    heads_q: u32,
}
${PARAMS} p: Params;
