// Values of 8 and 16 bits, and products of matrices by warps. Sums are formed in f64 and rounded once: tensor cores
// round otherwise, within the bounds that tests allow.
#include "machine.h"

#include <cmath>
#include <cstring>

namespace emulator {

float from_bf16(std::uint16_t bits) {
    const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
}

std::uint16_t to_bf16(float x) {
    std::uint32_t word;
    std::memcpy(&word, &x, 4);
    if (std::isnan(x)) return 0x7fff;
    word += 0x7fff + (word >> 16 & 1);
    return static_cast<std::uint16_t>(word >> 16);
}

float from_f16(std::uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float x = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
              : exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                               : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return bits & 0x8000 ? -x : x;
}

std::uint16_t to_f16(float x) {
    const std::uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    if (std::isnan(x)) return 0x7fff;
    const float size = std::fabs(x);
    if (size == 0.0f) return sign;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent;
    std::frexp(size, &exponent);
    // The unit in the last place: of normal numbers, and of those below 2^-14.
    const int unit = std::max(exponent - 11, -24);
    const auto units = static_cast<std::uint32_t>(std::nearbyint(std::ldexp(size, -unit)));
    if (unit == -24) return static_cast<std::uint16_t>(sign | units);
    return static_cast<std::uint16_t>(sign + ((unit + 24) << 10) + units);
}

float decode(Kind kind, std::uint16_t bits) { return kind == Kind::bf16 ? from_bf16(bits) : from_f16(bits); }

float from_e4m3(unsigned char bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    float x = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9) : std::ldexp(static_cast<float>(fraction + 8), exponent - 10);
    if (exponent == 15 && fraction == 7) x = NAN;
    return bits & 128 ? -x : x;
}

// Too large a value becomes the largest.
unsigned char to_e4m3(float x) {
    const unsigned char sign = std::signbit(x) ? 128 : 0;
    if (std::isnan(x)) return 127;
    const float size = std::min(std::fabs(x), 448.0f);
    int exponent;
    std::frexp(size, &exponent);
    const int unit = std::max(exponent - 4, -9);
    const auto units = static_cast<int>(std::nearbyint(std::ldexp(size, -unit)));
    return static_cast<unsigned char>(sign + (size == 0.0f ? 0 : ((unit + 9) << 3) + units));
}

float element_of(Kind kind, unsigned word, int i) {
    if (kind == Kind::e4m3) return from_e4m3(static_cast<unsigned char>(word >> (8 * i)));
    return decode(kind, static_cast<std::uint16_t>(word >> (16 * i)));
}

namespace {

struct Fragments {
    void* d;
    const unsigned* a;
    unsigned b0, b1;
};

// d [16, 8] += a [16, K] b [K, 8]; `element` gives value `i` of a word, of which each holds K / 8.
template <int K, typename Sum, typename Out, typename Element> void multiply(void* const* brought, Element element) {
    constexpr int IN_WORD = K / 8;
    Sum a[16][K], b[8][K];
    for (int k = 0; k < K; ++k) {
        // The word of each operand that holds k: a's words are ordered by row, then by half of k.
        const int part = k / IN_WORD % 4, half = k / (K / 2);
        for (int row = 0; row < 16; ++row)
            a[row][k] = element(static_cast<Fragments*>(brought[row % 8 * 4 + part])->a[row / 8 + 2 * half], k % IN_WORD);
        for (int col = 0; col < 8; ++col) {
            const auto* with_b = static_cast<Fragments*>(brought[col * 4 + part]);
            b[col][k] = element(half ? with_b->b1 : with_b->b0, k % IN_WORD);
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), col = 2 * (lane % 4) + i % 2;
            Out& d = static_cast<Out*>(static_cast<Fragments*>(brought[lane])->d)[i];
            Sum sum = d;
            for (int k = 0; k < K; ++k) sum += a[row][k] * b[col][k];
            d = static_cast<Out>(sum);
        }
}

struct Matrices {
    unsigned* words;
    unsigned char* row;
    Thread* thread;
};

} // namespace

void load_matrices(unsigned* d, const void* row, int count, bool transposed) {
    Matrices mine = {d, static_cast<unsigned char*>(const_cast<void*>(row)), machine.current};
    int context[2] = {count, transposed};
    const unsigned lane = here->thread.x & 31;
    if (lane < static_cast<unsigned>(8 * count)) {
        if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row at %p is not aligned to 16 bytes", row);
        shared_address(row);
    }
    meet(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &mine, [](void* const* brought, void* context) {
        const int* about = static_cast<int*>(context);
        // The warp reads as one: each row as its lane sees memory, done for all lanes.
        Warp& warp = block_of(*machine.current).warps[here->thread.x / 32];
        warp.loaded += 1;
        for (int lane = 0; lane < 32; ++lane) {
            const auto* mine = static_cast<Matrices*>(brought[lane]);
            if (lane < 8 * about[0]) touch_by({warp.loads, warp.loaded, mine->thread->clock, false}, mine->row, 16, Access::read);
            mine->thread->clock.learn(warp.loads, warp.loaded);
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < about[0]; ++m)
                for (int half = 0; half < 2; ++half) {
                    const int major = lane / 4, minor = 2 * (lane % 4) + half;
                    const int row = about[1] ? minor : major, col = about[1] ? major : minor;
                    std::uint16_t bits;
                    std::memcpy(&bits, static_cast<Matrices*>(brought[8 * m + row])->row + 2 * col, 2);
                    unsigned& word = static_cast<Matrices*>(brought[lane])->words[m];
                    word = half == 0 ? bits : (word & 0xffff) | static_cast<unsigned>(bits) << 16;
                }
    }, context);
}

void store_matrices(void* row, const unsigned* d, int count, bool transposed) {
    Matrices mine = {const_cast<unsigned*>(d), static_cast<unsigned char*>(row), machine.current};
    int context[2] = {count, transposed};
    const unsigned lane = here->thread.x & 31;
    if (lane < static_cast<unsigned>(8 * count)) {
        if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("stmatrix: a row at %p is not aligned to 16 bytes", row);
        shared_address(row);
        touch(row, 16, Access::write);
    }
    meet(transposed ? "stmatrix.trans" : "stmatrix", 0xffffffffu, &mine, [](void* const* brought, void* context) {
        const int* about = static_cast<int*>(context);
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < about[0]; ++m)
                for (int half = 0; half < 2; ++half) {
                    const int major = lane / 4, minor = 2 * (lane % 4) + half;
                    const int row = about[1] ? minor : major, col = about[1] ? major : minor;
                    const auto bits = static_cast<std::uint16_t>(static_cast<Matrices*>(brought[lane])->words[m] >> (16 * half));
                    std::memcpy(static_cast<Matrices*>(brought[8 * m + row])->row + 2 * col, &bits, 2);
                }
    }, context);
}

void mma_16816(Kind kind, float* d, const unsigned* a, unsigned b0, unsigned b1) {
    Fragments mine = {d, a, b0, b1};
    meet("mma.m16n8k16", 0xffffffffu, &mine, [](void* const* brought, void* context) {
        const Kind kind = *static_cast<Kind*>(context);
        multiply<16, double, float>(brought, [kind](unsigned word, int i) { return element_of(kind, word, i); });
    }, &kind);
}

void mma_16832_i8(int* d, const unsigned* a, unsigned b0, unsigned b1) {
    Fragments mine = {d, a, b0, b1};
    meet("mma.m16n8k32.s8", 0xffffffffu, &mine, [](void* const* brought, void*) {
        multiply<32, long, int>(brought, [](unsigned word, int i) { return static_cast<signed char>(word >> (8 * i)); });
    }, nullptr);
}

void mma_16832_e4m3(float* d, const unsigned* a, unsigned b0, unsigned b1) {
    Fragments mine = {d, a, b0, b1};
    meet("mma.m16n8k32.e4m3", 0xffffffffu, &mine, [](void* const* brought, void*) {
        multiply<32, double, float>(brought, [](unsigned word, int i) { return element_of(Kind::e4m3, word, i); });
    }, nullptr);
}

} // namespace emulator
