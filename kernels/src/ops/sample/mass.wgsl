// Sums of 64 bits: low word, high word.

fn add64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + select(0u, 1u, low < a.x));
}

fn sub64(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    return vec2<u32>(a.x - b.x, a.y - b.y - select(0u, 1u, a.x < b.x));
}

fn less64(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x < b.x);
}

// A share of a mass, rounded down.
fn share64(mass: vec2<u32>, share: f32) -> vec2<u32> {
    let value = share * (f32(mass.y) * 4294967296.0 + f32(mass.x));
    let high = u32(value / 4294967296.0);
    return vec2<u32>(u32(value - f32(high) * 4294967296.0), high);
}
