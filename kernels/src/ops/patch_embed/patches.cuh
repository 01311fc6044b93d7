// What the patch embedding's kernels share: where pixels of a patch lie, and what is added to a product.
#pragma once
#include "cuda/include/ptx.cuh"

// Pictures of bytes [images, height, width, 3] or floats [images, 3, height, width], cut into patches of `patch` x `patch`,
// which follow each other row by row within a picture.
struct Pictures {
    u32 height;
    u32 width;
    u32 patch;
    // Patches in a line of a picture, in all of one, and in all pictures.
    u32 across;
    u32 per_image;
    u32 patches;
};

// Floats have a plane a channel; bytes of a pixel lie together.
template <typename Pixel> DEVICE constexpr bool planar() { return same_type<Pixel, f32>::value; }

// First pixel of a patch, in elements.
template <typename Pixel> DEVICE u64 corner_of(const Pictures& p, u32 patch) {
    const u32 image = patch / p.per_image;
    const u32 place = patch % p.per_image;
    const u32 top = place / p.across * p.patch;
    const u32 left = place % p.across * p.patch;
    if constexpr (planar<Pixel>()) return (static_cast<u64>(image) * 3 * p.height + top) * p.width + left;
    return ((static_cast<u64>(image) * p.height + top) * p.width + left) * 3;
}

// Distance from a patch's corner to its pixel (x, y) of channel c, in elements: the same in all patches.
template <typename Pixel> DEVICE u64 distance_of(const Pictures& p, u32 c, u32 y, u32 x) {
    if constexpr (planar<Pixel>()) return (static_cast<u64>(c) * p.height + y) * p.width + x;
    return (static_cast<u64>(y) * p.width + x) * 3 + c;
}

// Position embeddings [count, n] of any float type, or null. `ids` [patches] are their rows, or null, where patch p of each
// picture takes row p.
struct Positions {
    const void* rows;
    const i32* ids;
    u64 stride;
    u32 count;
    u32 type;

    // First element of the row of a patch.
    DEVICE u64 first(const Pictures& p, u32 patch) const {
        const u32 id = ids ? static_cast<u32>(max_of(ids[patch], 0)) : patch % p.per_image;
        return min_of(id, count - 1) * stride;
    }
};
