// Matrix products of warpgroups: wgmma.
//
// An operand in shared memory is named by a descriptor of 64 bits: bits 0-13 its address, 16-29 the leading and 32-45 the stride
// offset, each in units of 16 bytes; 49-51 a base offset, 0 where rows of 8 begin at multiples of 1024 bytes; 62-63 the swizzle,
// 1 for 128 bytes, the only one here. Elements of 16 bits (K-major also of 8, twice as many) lie so, before the swizzle (PTX ISA "Strides"; CUTLASS gives the same as
// canonical layouts, T = 8 elements, in elements):
//
//   K-major   ((8, m), (T, 2)) : ((8 T, stride), (1, T))      rows of 64 elements of k; 8 rows of mn an atom
//   MN-major  ((T, 8, m), (8, k)) : ((1, T, lead), (8 T, stride))   rows of 64 elements of mn; 8 rows of k an atom
//
// The swizzle acts on the bits of the address in shared memory: 4-6, the 16-byte part of a row, are changed by 7-9, the row. The
// copy engine does the same when it writes a box, so that addresses within a row may be advanced before the swizzle.
#include "machine.h"

#include <cmath>
#include <cstring>

namespace emulator {

namespace {

struct Operand {
    std::uint32_t start, lead, stride;
};

Operand operand(std::uint64_t descriptor) {
    const auto field = [&](int at) { return static_cast<std::uint32_t>(descriptor >> at & 0x3fff) << 4; };
    if (descriptor >> 62 != 1) fail("wgmma: a descriptor whose swizzle is not of 128 bytes");
    if (descriptor >> 49 & 7) fail("wgmma: a descriptor with a base offset");
    const Operand at = {field(0), field(16), field(32)};
    if (at.start & 0x380) fail("wgmma: an operand at byte %u of shared memory begins within 8 rows of 128 bytes", at.start);
    return at;
}

std::uint32_t element_address(const Operand& at, bool mn_major, int mn, int k, int size) {
    const std::uint32_t address = mn_major ? at.start + mn / 64 * at.lead + k / 8 * at.stride + k % 8 * 128 + mn % 64 * 2
                                           : at.start + mn / 8 * at.stride + mn % 8 * 128 + k * size;
    return address ^ ((address >> 7 & 7) << 4);
}

// What the threads of a warpgroup bring to a product.
struct Asked {
    Kind kind;
    int n;
    bool add, b_mn;
    const unsigned* a_registers;
    std::uint64_t a, b;
    float* d;
};

// Runs `work(warpgroup, threads, brought, what all of them know)` once all threads of the running thread's warpgroup are at `kind`.
template <typename Work> void together(const char* kind, void* brought, Work work) {
    Thread& me = *machine.current;
    const unsigned number = me.place.thread.x / 128;
    if (machine.launch->threads < number * 128 + 128) fail("%s by a warpgroup of fewer than 4 warps", kind);
    Warpgroup& group = block_of(me).warpgroups[number];
    if (!group.threads.empty() && std::strcmp(group.kind, kind) != 0)
        fail("divergence: at %s, while other threads of the warpgroup are at %s", kind, group.kind);
    group.kind = kind;
    group.threads.push_back(&me);
    group.brought.push_back(brought);
    if (group.threads.size() < 128) {
        wait_for(kind);
        return;
    }
    const std::vector<Thread*> threads = std::move(group.threads);
    const std::vector<void*> all_brought = std::move(group.brought);
    group.threads.clear();
    group.brought.clear();
    Clock all;
    for (Thread* thread : threads) join(all, thread->clock);
    work(group, threads, all_brought, all);
    for (Thread* thread : threads)
        if (thread != &me) wake(thread);
}

std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

// The product that has `d` of the first thread and is under way.
PendingProduct* last_with(Warpgroup& group, const float* d) {
    PendingProduct* last = nullptr;
    for (auto& products : group.groups)
        for (PendingProduct& product : products)
            if (product.d[0] == d) last = &product;
    for (PendingProduct& product : group.open)
        if (product.d[0] == d) last = &product;
    return last;
}

void start(Block& block, Warpgroup& group, const std::vector<Thread*>& threads, const std::vector<void*>& brought, const Clock& all) {
    const Asked& asked = *static_cast<Asked*>(brought[0]);
    // A row of either operand has 32 bytes.
    const int size = asked.kind == Kind::e4m3 ? 1 : 2, ks = 32 / size, in_word = 4 / size;
    PendingProduct product{asked.n, ks, asked.add, std::vector<float>(64 * ks), std::vector<float>(static_cast<std::size_t>(asked.n * ks)), {}, {}, false};
    std::array<const unsigned*, 128> registers{};
    for (std::size_t i = 0; i < 128; ++i) {
        const Asked& other = *static_cast<Asked*>(brought[i]);
        if (other.n != asked.n || other.kind != asked.kind || other.add != asked.add || other.a != asked.a || other.b != asked.b ||
            other.b_mn != asked.b_mn || (other.a_registers != nullptr) != (asked.a_registers != nullptr))
            fail("divergence: threads of one warpgroup ask for different products");
        const unsigned lane = threads[i]->place.thread.x % 128;
        product.d[lane] = other.d;
        registers[lane] = other.a_registers;
    }
    product.chained = last_with(group, product.d[0]) != nullptr;
    for (Thread* thread : threads)
        if (!product.chained && !thread->product_fence) fail("wgmma without a wgmma_fence since the last wgmma_wait");

    const auto read = [&](std::uint32_t address) {
        unsigned char* p = shared_pointer(block, address, size);
        touch_by({group.products, group.closed + 1, all, true}, p, size, Access::read);
        unsigned bits = 0;
        std::memcpy(&bits, p, size);
        return element_of(asked.kind, bits, 0);
    };
    const bool in_registers = asked.a_registers != nullptr;
    const Operand a = in_registers ? Operand{} : operand(asked.a), b = operand(asked.b);
    for (int row = 0; row < 64; ++row)
        for (int k = 0; k < ks; ++k) {
            const int thread = row / 16 * 32 + row % 8 * 4 + k / in_word % 4;
            product.a[row * ks + k] = in_registers ? element_of(asked.kind, registers[thread][row / 8 % 2 + 2 * (k / (ks / 2))], k % in_word)
                                                   : read(element_address(a, false, row, k, size));
        }
    for (int col = 0; col < asked.n; ++col)
        for (int k = 0; k < ks; ++k) product.b[col * ks + k] = read(element_address(b, asked.b_mn, col, k, size));

    for (float* d : product.d) {
        for (int i = 0; i < asked.n / 2; ++i) {
            if (!product.chained) product.start.push_back(d[i]);
            else if (bits_of(d[i]) != POISON) fail("wgmma: a sum was written while a product with it was under way");
            std::memcpy(d + i, &POISON, 4);
        }
    }
    group.open.push_back(std::move(product));
}

// Ends the first product under way; one that goes on with its sums takes them over.
void finish(PendingProduct& product, PendingProduct* next) {
    if (next != nullptr) next->start.resize(128 * static_cast<std::size_t>(next->n / 2));
    for (int thread = 0; thread < 128; ++thread)
        for (int i = 0; i < product.n / 2; ++i) {
            const int row = thread / 32 * 16 + thread % 32 / 4 + 8 * (i / 2 % 2), col = i / 4 * 8 + thread % 4 * 2 + i % 2;
            const std::size_t at = static_cast<std::size_t>(thread) * (product.n / 2) + i;
            double sum = product.add ? product.start[at] : 0.0;
            for (int k = 0; k < product.k; ++k) sum += static_cast<double>(product.a[row * product.k + k]) * product.b[col * product.k + k];
            if (bits_of(product.d[thread][i]) != POISON) fail("wgmma: a sum was written while its product was under way");
            if (next != nullptr) next->start[at] = static_cast<float>(sum);
            else product.d[thread][i] = static_cast<float>(sum);
        }
}

} // namespace

void wgmma(Kind kind, float* d, int n, const unsigned* a_registers, std::uint64_t a, std::uint64_t b, bool add, bool b_mn) {
    if (n < 8 || n > 256 || n % 8 != 0) fail("wgmma of %d columns", n);
    if (kind == Kind::e4m3 && b_mn) fail("wgmma of 8-bit floats takes K-major operands alone");
    Asked asked{kind, n, add, b_mn, a_registers, a, b, d};
    together("wgmma", &asked, [](Warpgroup& group, const auto& threads, const auto& brought, const Clock& all) {
        start(block_of(*machine.current), group, threads, brought, all);
    });
}

void wgmma_fence() { machine.current->product_fence = true; }

void wgmma_commit() {
    together("wgmma_commit", nullptr, [](Warpgroup& group, const auto&, const auto&, const Clock&) {
        group.groups.push_back(std::move(group.open));
        group.open.clear();
        group.closed += 1;
    });
}

void wgmma_wait(int pending) {
    const char* kind = pending == 0 ? "wgmma_wait<0>" : pending == 1 ? "wgmma_wait<1>" : "wgmma_wait of more";
    together(kind, nullptr, [pending](Warpgroup& group, const auto& threads, const auto&, const Clock&) {
        while (group.groups.size() > static_cast<std::size_t>(pending)) {
            std::vector<PendingProduct> products = std::move(group.groups.front());
            group.groups.pop_front();
            for (std::size_t i = 0; i < products.size(); ++i) {
                PendingProduct* next = nullptr;
                for (std::size_t j = i + 1; j < products.size() && next == nullptr; ++j)
                    if (products[j].d[0] == products[i].d[0]) next = &products[j];
                for (auto& later : group.groups)
                    for (PendingProduct& product : later)
                        if (next == nullptr && product.d[0] == products[i].d[0]) next = &product;
                for (PendingProduct& product : group.open)
                    if (next == nullptr && product.d[0] == products[i].d[0]) next = &product;
                finish(products[i], next);
            }
        }
        for (Thread* thread : threads) {
            thread->clock.learn(group.products, group.closed - static_cast<unsigned>(group.groups.size()));
            thread->product_fence = false;
        }
    });
}

} // namespace emulator
