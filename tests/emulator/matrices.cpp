// Values of 8 and 16 bits, and products of matrices by warps and warpgroups. Sums are formed in f64 and rounded once: tensor cores
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

namespace {

float decode(Kind kind, std::uint16_t bits) { return kind == Kind::bf16 ? from_bf16(bits) : from_f16(bits); }
float half_of(Kind kind, unsigned word, int half) { return decode(kind, static_cast<std::uint16_t>(word >> (16 * half))); }

float from_e4m3(unsigned char bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    float x = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9) : std::ldexp(static_cast<float>(fraction + 8), exponent - 10);
    if (exponent == 15 && fraction == 7) x = NAN;
    return bits & 128 ? -x : x;
}

struct Fragments {
    void* d;
    const unsigned* a;
    unsigned b0, b1;
};

// d [16, 8] += a [16, K] b [K, 8]; `element` gives value `i` of a word, of which each holds K / 8.
template <int K, typename Sum, typename Out, typename Element> void multiply(void* const* brought, Element element) {
    constexpr int IN_WORD = K / 8;
    for (int lane = 0; lane < 32; ++lane) {
        auto* mine = static_cast<Fragments*>(brought[lane]);
        const int group = lane / 4, place = lane % 4;
        for (int i = 0; i < 4; ++i) {
            const int row = group + 8 * (i / 2), col = 2 * place + i % 2;
            auto* d = static_cast<Out*>(mine->d);
            Sum sum = d[i];
            for (int k = 0; k < K; ++k) {
                // The word of each operand that holds k: a's words are ordered by row, then by half of k.
                const int part = k / IN_WORD % 4, half = k / (K / 2);
                const auto* with_a = static_cast<Fragments*>(brought[row % 8 * 4 + part]);
                const auto* with_b = static_cast<Fragments*>(brought[col * 4 + part]);
                sum += static_cast<Sum>(element(with_a->a[row / 8 + 2 * half], k % IN_WORD)) *
                       static_cast<Sum>(element(half ? with_b->b1 : with_b->b0, k % IN_WORD));
            }
            d[i] = static_cast<Out>(sum);
        }
    }
}

struct Matrices {
    unsigned* words;
    unsigned char* row;
};

// A value in shared memory as a descriptor with 128-byte, 64-byte, 32-byte or no swizzle names it.
struct Operand {
    std::uint32_t start, lead, stride;
    unsigned swizzle;
};
Operand operand(std::uint64_t descriptor) {
    const auto field = [&](int at) { return static_cast<std::uint32_t>(descriptor >> at & 0x3fff) << 4; };
    return {field(0), field(16), field(32), static_cast<unsigned>(descriptor >> 62)};
}

// Address of element (mn, k) of a tile. The canonical layouts, in 16-bit elements: K-major, `span` elements of k a row, 8 rows an
// atom, atoms `stride` apart; MN-major, `span` elements of mn a row, 8 of k an atom, atoms of 8 k `stride` apart and atoms of
// `span` mn `lead` apart. The swizzle acts on address bits: those of the 16-byte part are changed by those of the row.
std::uint32_t element_address(const Operand& at, bool mn_major, int mn, int k) {
    const std::uint32_t row_bytes = at.swizzle == 1 ? 128 : at.swizzle == 2 ? 64 : at.swizzle == 3 ? 32 : 16;
    const int span = static_cast<int>(row_bytes) / 2;
    std::uint32_t address = at.start;
    if (mn_major) {
        address += mn / span * at.lead + k / 8 * at.stride + k % 8 * row_bytes + mn % span * 2;
    } else {
        address += mn / 8 * at.stride + mn % 8 * row_bytes + k / span * at.lead + k % span * 2;
    }
    const std::uint32_t mask = row_bytes / 16 - 1;
    return address ^ ((address >> 7 & mask) << 4);
}

void run(Block& block, const PendingProduct& product) {
    const Operand a = operand(product.a), b = operand(product.b);
    std::vector<float> values_a(64 * 16), values_b(static_cast<std::size_t>(product.n) * 16);
    const auto read = [&](std::uint32_t address) {
        unsigned char* p = shared_pointer(block, address, 2);
        touch(p, 2, Access::read);
        std::uint16_t bits;
        std::memcpy(&bits, p, 2);
        return decode(product.kind, bits);
    };
    for (int row = 0; row < 64; ++row)
        for (int k = 0; k < 16; ++k) {
            if (product.a_in_registers) {
                const int lane = row % 8 * 4 + k / 2 % 4, thread = row / 16 * 32 + lane;
                values_a[row * 16 + k] = half_of(product.kind, product.registers[thread][row / 8 % 2 + 2 * (k / 8)], k % 2);
            } else {
                values_a[row * 16 + k] = read(element_address(a, false, row, k));
            }
        }
    for (int col = 0; col < product.n; ++col)
        for (int k = 0; k < 16; ++k) values_b[col * 16 + k] = read(element_address(b, product.b_mn, col, k));
    for (int thread = 0; thread < 128; ++thread)
        for (int i = 0; i < product.n / 2; ++i) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2), col = i / 4 * 8 + thread % 4 * 2 + i % 2;
            double sum = product.add ? product.d[thread][i] : 0.0;
            for (int k = 0; k < 16; ++k) sum += static_cast<double>(values_a[row * 16 + k]) * values_b[col * 16 + k];
            product.d[thread][i] = static_cast<float>(sum);
        }
}

// The four warps of a warpgroup at one instruction: each warp meets, and the first lane of the last warp acts for all.
struct Joined {
    PendingProduct* product;
    float* d;
    const unsigned* a;
};
std::map<std::pair<Block*, unsigned>, std::pair<std::vector<Thread*>, std::vector<Joined>>> gathered;

} // namespace

void load_matrices(unsigned* d, const void* row, int count, bool transposed) {
    Matrices mine = {d, static_cast<unsigned char*>(const_cast<void*>(row))};
    int context[2] = {count, transposed};
    const unsigned lane = here->thread.x & 31;
    if (lane < static_cast<unsigned>(8 * count)) {
        if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) fail("ldmatrix: a row at %p is not aligned to 16 bytes", row);
        shared_address(row);
        touch(row, 16, Access::read);
    }
    meet(transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &mine, [](void* const* brought, void* context) {
        const int* about = static_cast<int*>(context);
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
    Matrices mine = {const_cast<unsigned*>(d), static_cast<unsigned char*>(row)};
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
        multiply<16, double, float>(brought, [kind](unsigned word, int i) { return half_of(kind, word, i); });
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
        multiply<32, double, float>(brought, [](unsigned word, int i) { return from_e4m3(static_cast<unsigned char>(word >> (8 * i))); });
    }, nullptr);
}

void wgmma(Kind kind, float* d, int n, const unsigned* a_registers, std::uint64_t a, std::uint64_t b, bool add, bool b_mn) {
    Thread& me = *machine.current;
    Block& block = block_of(me);
    const unsigned group = me.place.thread.x / 128, first = group * 128;
    if (machine.launch->threads < first + 128) fail("wgmma by a warpgroup of fewer than 4 warps");
    PendingProduct asked{kind, n, add, b_mn, a_registers != nullptr, a, b, {}, {}};
    auto& [threads, joined] = gathered[{&block, group}];
    if (!joined.empty()) {
        const PendingProduct& other = *joined.front().product;
        if (other.n != n || other.kind != kind || other.add != add || other.a != a || other.b != b || other.b_mn != b_mn ||
            other.a_in_registers != asked.a_in_registers)
            fail("divergence: threads of one warpgroup ask for different products");
    }
    threads.push_back(&me);
    joined.push_back({&asked, d, a_registers});
    if (joined.size() < 128) {
        wait_for("wgmma");
        return;
    }
    for (std::size_t i = 0; i < 128; ++i) {
        const unsigned thread = threads[i]->place.thread.x - first;
        asked.d[thread] = joined[i].d;
        if (joined[i].a != nullptr) std::memcpy(asked.registers[thread].data(), joined[i].a, 16);
    }
    block.warpgroups[group].open.push_back(asked);
    const std::vector<Thread*> all = threads;
    gathered.erase({&block, group});
    for (Thread* thread : all)
        if (thread != &me) wake(thread);
}

namespace {

// Runs `work` once for the warpgroup of the running thread, when all of its threads have come. Their clocks are joined before:
// the products read what any of them may read.
template <typename Work> void together(const char* what, Work work) {
    struct Waiting {
        std::vector<Thread*> threads;
    };
    static std::map<std::pair<Block*, unsigned>, Waiting> all;
    Thread& me = *machine.current;
    Block& block = block_of(me);
    const unsigned group = me.place.thread.x / 128;
    auto& waiting = all[{&block, group}].threads;
    waiting.push_back(&me);
    if (waiting.size() < 128) {
        wait_for(what);
        return;
    }
    const std::vector<Thread*> threads = waiting;
    all.erase({&block, group});
    const Clock own = me.seen;
    for (Thread* thread : threads) join(me.seen, thread->seen);
    me.seen[me.number] = own[me.number];
    work(block, block.warpgroups[group]);
    me.seen = own;
    // What was read counts as read before the instruction, by every thread that goes on behind it.
    Clock done(me.number + 1);
    done[me.number] = own[me.number];
    for (Thread* thread : threads) {
        join(thread->seen, done);
        if (thread != &me) wake(thread);
    }
    advance(me);
}

} // namespace

void wgmma_commit() {
    together("wgmma.commit", [](Block&, Warpgroup& group) {
        group.groups.push_back(std::move(group.open));
        group.open.clear();
    });
}

void wgmma_wait(int pending) {
    together("wgmma.wait", [pending](Block& block, Warpgroup& group) {
        while (group.groups.size() > static_cast<std::size_t>(pending)) {
            for (const PendingProduct& product : group.groups.front()) run(block, product);
            group.groups.pop_front();
        }
    });
}

} // namespace emulator
