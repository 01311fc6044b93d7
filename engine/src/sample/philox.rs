//! Counter-based random numbers: a request's numbers depend on its seed and step alone.

/// Philox-4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c0);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c2);
        (c0, c1, c2, c3) = ((p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [c0, c1, c2, c3]
}

/// A number in `[0, 1)`, a multiple of 2^-24, for a step of a request.
///
/// `seed` is the request's, `stream` separates several answers of one request, `step` counts the answer's tokens. The
/// first word of Philox-4x32-10 with key `seed` and counter `(step, stream)`, low words first, shifted right by 8.
pub fn uniform(seed: u64, stream: u64, step: u64) -> f32 {
    let words = |x: u64| [x as u32, (x >> 32) as u32];
    let ([s0, s1], [t0, t1]) = (words(step), words(stream));
    let [x, ..] = philox4x32([s0, s1, t0, t1], words(seed));
    (x >> 8) as f32 * (1.0 / 16_777_216.0)
}
