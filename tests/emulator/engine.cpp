// mbarriers and the copy engine. A copy is done when it is started, but by an agent of its barrier, of whose work only those know
// who have waited there: whoever reads it without waiting makes a race. Stores read for an agent of their thread likewise.
#include "machine.h"

#include <cstring>

namespace emulator {

namespace {

PhaseBarrier& phase_barrier(Block& block, std::uint32_t address) {
    const auto found = block.phases.find(address);
    if (found == block.phases.end()) fail("an mbarrier at %u that was not initialized", address);
    return found->second;
}

// Ends the phase if everything has come.
void settle(PhaseBarrier& bar) {
    if (bar.pending > 0 || bar.bytes != 0) return;
    bar.phase += 1;
    bar.pending = bar.count;
    join(bar.last, bar.clock);
    bar.last.learn(bar.copies, bar.phase);
    bar.clock = Clock{};
    auto waiting = std::move(bar.waiting);
    bar.waiting.clear();
    for (auto& [thread, parity] : waiting) {
        join(thread->clock, bar.last);
        wake(thread);
    }
}

void come(PhaseBarrier& bar) {
    join(bar.clock, machine.current->clock);
    advance(*machine.current);
}

// A tensor map: what `EmulatedDriver` writes into its 16 words.
struct Map {
    std::uint64_t magic, address, rank, element, swizzle;
    std::uint64_t shape[5], strides[4]; // strides of axes 1 on, in bytes
    std::uint16_t tile[8];
};
static_assert(sizeof(Map) == 128, "a tensor map has 128 bytes");
constexpr std::uint64_t MAGIC = 0x6f63656c6c69;

const Map& map_of(const void* p) {
    if (reinterpret_cast<std::uintptr_t>(p) % 64 != 0) fail("a tensor map at %p is not aligned to 64 bytes", p);
    const Map& map = *static_cast<const Map*>(p);
    if (map.magic != MAGIC) fail("the tensor map at %p is none", p);
    return map;
}

// Calls `each(bytes in shared memory, bytes of the tensor or null, count)` for every row of a box.
template <typename Each> void for_each_row(const Map& map, unsigned char* box, const int* at, Each each) {
    const std::uint64_t row = map.tile[0] * map.element;
    std::uint64_t rows = 1;
    for (std::uint64_t axis = 1; axis < map.rank; ++axis) rows *= map.tile[axis];
    for (std::uint64_t r = 0; r < rows; ++r) {
        std::uint64_t rest = r, address = map.address;
        bool outside = false;
        for (std::uint64_t axis = 1; axis < map.rank; ++axis) {
            const long place = at[axis] + static_cast<long>(rest % map.tile[axis]);
            rest /= map.tile[axis];
            outside |= place < 0 || place >= static_cast<long>(map.shape[axis]);
            address += static_cast<std::uint64_t>(place) * map.strides[axis - 1];
        }
        for (std::uint64_t i = 0; i < map.tile[0]; ++i) {
            const long x = at[0] + static_cast<long>(i);
            const bool out = outside || x < 0 || x >= static_cast<long>(map.shape[0]);
            auto to = reinterpret_cast<std::uintptr_t>(box) + r * row + i * map.element;
            if (map.swizzle) to ^= (to >> 7 & 7) << 4;
            each(reinterpret_cast<unsigned char*>(to), out ? nullptr : reinterpret_cast<unsigned char*>(address + static_cast<std::uint64_t>(x) * map.element), map.element);
        }
    }
}

std::uint64_t box_bytes(const Map& map) {
    std::uint64_t bytes = map.element;
    for (std::uint64_t axis = 0; axis < map.rank; ++axis) bytes *= map.tile[axis];
    return bytes;
}

} // namespace

void barrier_init(std::uint64_t* bar, unsigned count) {
    if (count == 0) fail("an mbarrier of no arrivals");
    if (reinterpret_cast<std::uintptr_t>(bar) % 8 != 0) fail("an mbarrier at %p: not aligned to 8", static_cast<void*>(bar));
    touch(bar, 8, Access::write);
    PhaseBarrier fresh{};
    fresh.count = fresh.pending = count;
    fresh.copies = machine.agents++;
    fresh.maker = machine.current->number;
    block_of(*machine.current).phases[shared_address(bar)] = fresh;
}

void barrier_init_fence() {
    for (auto& [address, bar] : block_of(*machine.current).phases) bar.shown |= bar.maker == machine.current->number;
}

void barrier_arrive(std::uint64_t* bar, unsigned expect, int rank) {
    Block& mine = block_of(*machine.current);
    if (rank >= static_cast<int>(machine.blocks.size())) fail("block %d of a cluster of %zu", rank, machine.blocks.size());
    Block& block = rank < 0 ? mine : *machine.blocks[static_cast<std::size_t>(rank)];
    if (block.alive == 0) fail("an arrival at an mbarrier of block %d of the cluster, which has ended", rank);
    PhaseBarrier& to = phase_barrier(block, shared_address(bar));
    if (&block != &mine && !to.shown) fail("an arrival at another block's mbarrier, which no mbarrier_init_fence has shown");
    touch(shared_pointer(block, shared_address(bar), 8), 8, Access::atomic);
    if (to.pending == 0) fail("an arrival at an mbarrier whose phase has had all of its %u", to.count);
    come(to);
    to.bytes += expect;
    to.pending -= 1;
    settle(to);
}

void barrier_wait(std::uint64_t* bar, unsigned parity) {
    Thread& me = *machine.current;
    PhaseBarrier& at = phase_barrier(block_of(me), shared_address(bar));
    if (parity > 1) fail("parity %u", parity);
    touch(bar, 8, Access::atomic);
    if ((at.phase & 1) != parity) {
        join(me.clock, at.last);
        return;
    }
    at.waiting.emplace_back(&me, parity);
    wait_for(parity ? "an mbarrier (parity 1)" : "an mbarrier (parity 0)");
}

void tensor_load(void* to, const void* p, std::uint64_t* bar, const int* at, unsigned rank, unsigned blocks) {
    const Map& map = map_of(p);
    if (map.rank != rank) fail("a copy of rank %u with a map of rank %llu", rank, static_cast<unsigned long long>(map.rank));
    const std::uint32_t offset = shared_address(to), bar_at = shared_address(bar);
    if (offset % 128 != 0) fail("a box at byte %u of shared memory: not aligned to 128", offset);
    Thread& me = *machine.current;
    for (std::size_t b = 0; b < machine.blocks.size(); ++b) {
        Block& block = *machine.blocks[b];
        if (blocks == 0 ? &block != &block_of(me) : !(blocks >> b & 1)) continue;
        if (block.alive == 0) fail("a copy to block %zu of the cluster, which has ended", b);
        unsigned char* box = shared_pointer(block, offset, box_bytes(map));
        PhaseBarrier& counts = phase_barrier(block, bar_at);
        if (!counts.shown) fail("a copy that counts at an mbarrier, which no mbarrier_init_fence has shown");
        for_each_row(map, box, at, [&](unsigned char* to, const unsigned char* from, std::uint64_t size) {
            touch_by({counts.copies, counts.phase + 1, me.clock, true}, to, size, Access::write);
            if (from == nullptr) {
                std::memset(to, 0, size);
            } else {
                touch(from, size, Access::read);
                std::memcpy(to, from, size);
            }
        });
        counts.bytes -= static_cast<long>(box_bytes(map));
        settle(counts);
    }
}

void tensor_store(const void* p, const void* from, const int* at, unsigned rank) {
    const Map& map = map_of(p);
    if (map.rank != rank) fail("a copy of rank %u with a map of rank %llu", rank, static_cast<unsigned long long>(map.rank));
    const std::uint32_t offset = shared_address(from);
    if (offset % 128 != 0) fail("a box at byte %u of shared memory: not aligned to 128", offset);
    unsigned char* box = shared_pointer(block_of(*machine.current), offset, box_bytes(map));
    Thread& me = *machine.current;
    if (me.stores == 0) me.stores = machine.agents++;
    me.stores_open = 1;
    for_each_row(map, box, at, [&](unsigned char* from, unsigned char* to, std::uint64_t size) {
        if (to == nullptr) return;
        touch_by({me.stores, me.stores_closed + 1, me.clock, true}, from, size, Access::read);
        touch(to, size, Access::write);
        std::memcpy(to, from, size);
    });
}

void tensor_store_commit() {
    Thread& me = *machine.current;
    me.stores_closed += 1;
    me.stores_open = 0;
}

void tensor_store_wait(int pending) {
    Thread& me = *machine.current;
    if (me.stores > 0 && me.stores_closed > static_cast<unsigned>(pending)) me.clock.learn(me.stores, me.stores_closed - static_cast<unsigned>(pending));
}

} // namespace emulator
