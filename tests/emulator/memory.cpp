// Checked memory. The compiler's thread sanitizer puts a call before each access of a kernel, its alignment sanitizer one where
// a pointer is not aligned to its type; here they end. An access must lie in the block's shared memory, in an allocation of the
// device, or in the memory of the program itself.
#include "machine.h"

#include <cstring>
#include <string>

extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace emulator {

namespace {

// Where shared memory begins as instructions count it; 0 is no address.
constexpr std::uint32_t SHARED_BASE = 1024;

std::string name_of(unsigned who) {
    if (who < machine.threads.size()) {
        const EmulatorPlace& at = machine.threads[who]->place;
        const std::string thread = "thread " + std::to_string(at.thread.x);
        return machine.blocks.size() == 1 ? thread : "block " + std::to_string(at.block.x) + " " + thread;
    }
    for (const auto& block : machine.blocks) {
        for (const Warpgroup& group : block->warpgroups)
            if (group.products == who) return "a product of a warpgroup";
        for (std::size_t warp = 0; warp < block->warps.size(); ++warp)
            if (block->warps[warp].loads == who) return "warp " + std::to_string(warp) + " by ldmatrix";
    }
    return "the copy engine";
}

void note_read(Shadow& byte, const Actor& by) {
    // The slot of the same reader, or of one whose read is known: who comes behind this read comes behind that one.
    std::size_t slot = 1;
    for (std::size_t i = 0; i < 2; ++i)
        if (byte.read_at[i] == 0 || byte.reader[i] == by.number || by.clock.of(byte.reader[i]) >= byte.read_at[i]) {
            slot = i;
            break;
        }
    byte.reader[slot] = static_cast<std::uint16_t>(by.number);
    byte.read_at[slot] = by.moment;
}

// Checks an access to one byte and notes it.
void touch_byte(Shadow& byte, std::size_t at, Access access, const Actor& by) {
    const char* what = access == Access::read ? "read" : "write";
    if (byte.copying) fail("race: %s of byte %zu of shared memory, to which a cp.async of %s is under way", what, at, name_of(byte.writer).c_str());
    if (!byte.filled && access != Access::write) fail("byte %zu of shared memory is read before anything is written there", at);
    const bool both_atomic = byte.atomic && access == Access::atomic;
    // Copies of one barrier are as unordered as those of several.
    const bool own = byte.writer == by.number && !by.engine;
    if (byte.filled && !own && by.clock.of(byte.writer) < byte.written_at && !both_atomic)
        fail("race: %s of byte %zu of shared memory, which %s has written: no barrier lies between", what, at,
             name_of(byte.writer).c_str());
    if (access == Access::read) {
        if (by.engine && !byte.engine && by.clock.fenced_of(byte.writer) < byte.written_at)
            fail("byte %zu of shared memory, which %s has written, is read by the copy engine or a product without a "
                 "fence_async_shared in between", at, name_of(byte.writer).c_str());
        note_read(byte, by);
        return;
    }
    for (std::size_t r = 0; r < 2; ++r)
        if (byte.read_at[r] > 0 && byte.reader[r] != by.number && by.clock.of(byte.reader[r]) < byte.read_at[r])
            fail("race: write of byte %zu of shared memory, which %s has read: no barrier lies between", at,
                 name_of(byte.reader[r]).c_str());
    byte.read_at = {};
    byte.reader = {};
    byte.filled = true;
    byte.atomic = access == Access::atomic;
    byte.engine = by.engine;
    byte.writer = static_cast<std::uint16_t>(by.number);
    byte.written_at = by.moment;
}

void touch_shared(Block& block, std::size_t at, std::size_t size, Access access, const Actor& by) {
    static_assert(sizeof(Shadow) == 24, "without padding");
    Shadow* const bytes = block.shadow.data() + at;
    for (std::size_t i = 0; i < size;) {
        // Neighbours mostly have one history.
        const Shadow before = bytes[i];
        touch_byte(bytes[i], at + i, access, by);
        const Shadow after = bytes[i];
        for (++i; i < size && std::memcmp(bytes + i, &before, sizeof before) == 0; ++i) bytes[i] = after;
    }
}

void touch_global(std::uint64_t at, std::size_t size, Access access) {
    static std::uint64_t last = 0;
    const Launch& launch = *machine.launch;
    const auto inside = [&](std::uint64_t i) {
        const Allocation& one = launch.allocations[i];
        return one.address <= at && at + size <= one.address + one.bytes;
    };
    if (last < launch.allocation_count && inside(last)) return;
    std::uint64_t low = 0, high = launch.allocation_count;
    while (low < high) {
        const std::uint64_t middle = (low + high) / 2;
        if (launch.allocations[middle].address <= at) low = middle + 1;
        else high = middle;
    }
    if (low > 0 && inside(low - 1)) {
        last = low - 1;
        return;
    }
    const char* what = access == Access::read ? "read" : "write";
    if (low > 0)
        fail("out of bounds: %s of %zu bytes at byte %lld of an allocation of %llu bytes", what, size,
             static_cast<long long>(at - launch.allocations[low - 1].address),
             static_cast<unsigned long long>(launch.allocations[low - 1].bytes));
    fail("out of bounds: %s of %zu bytes at address %llx", what, size, static_cast<unsigned long long>(at));
}

} // namespace

void touch_by(const Actor& by, const void* p, std::size_t size, Access access) {
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    for (auto& block : machine.blocks) {
        const auto base = reinterpret_cast<std::uintptr_t>(block->shared);
        // A whole kilobyte behind the end belongs to nobody else.
        if (at < base || at >= base + machine.launch->shared + 1024) continue;
        if (at + size > base + machine.launch->shared)
            fail("out of bounds: byte %zu of %u bytes of shared memory", at - base, machine.launch->shared);
        touch_shared(*block, at - base, size, access, by);
        return;
    }
    const auto stacks = reinterpret_cast<std::uintptr_t>(machine.stacks);
    if (at >= stacks && at + size <= stacks + machine.stacks_len) return;
    if (at >= reinterpret_cast<std::uintptr_t>(__ehdr_start) && at < reinterpret_cast<std::uintptr_t>(_end)) return;
    const auto params = reinterpret_cast<std::uintptr_t>(machine.launch->params);
    if (at >= params && at + size <= params + machine.launch->params_len) return;
    // Where threads stand is memory of the emulator.
    const auto place = reinterpret_cast<std::uintptr_t>(here);
    if (at >= place && at + size <= place + sizeof(EmulatorPlace)) return;
    touch_global(at, size, access);
}

void touch(const void* p, std::size_t size, Access access) {
    if (machine.current == nullptr) return;
    const Thread& me = *machine.current;
    touch_by({me.number, me.clock.seen[me.number], me.clock, false}, p, size, access);
}

void touch_atomic(const void* p, unsigned size) {
    if (reinterpret_cast<std::uintptr_t>(p) % size != 0) fail("an atomic of %u bytes at %p", size, p);
    touch(p, size, Access::atomic);
}

unsigned shared_address(const void* p) {
    const auto* shared = here->shared;
    const auto* at = static_cast<const unsigned char*>(p);
    if (at < shared || at > shared + machine.launch->shared) fail("%p is no address in the block's shared memory", p);
    return SHARED_BASE + static_cast<unsigned>(at - shared);
}

unsigned char* shared_pointer(Block& block, std::uint32_t address, std::size_t size) {
    if (address < SHARED_BASE || address - SHARED_BASE + size > machine.launch->shared)
        fail("out of bounds: byte %ld of %u bytes of shared memory", static_cast<long>(address) - SHARED_BASE, machine.launch->shared);
    return block.shared + (address - SHARED_BASE);
}

void copy_async(void* to, const void* from, unsigned size, unsigned bytes) {
    if (bytes > size) fail("cp.async of %u bytes of %u", bytes, size);
    if (reinterpret_cast<std::uintptr_t>(to) % size != 0 || reinterpret_cast<std::uintptr_t>(from) % size != 0)
        fail("cp.async of %u bytes from %p to %p: not aligned", size, from, to);
    const unsigned offset = shared_address(to) - SHARED_BASE;
    if (offset + size > machine.launch->shared) fail("out of bounds: byte %u of %u bytes of shared memory", offset, machine.launch->shared);
    PendingCopy copy{static_cast<unsigned char*>(to), size, {}};
    if (bytes > 0) {
        touch(from, bytes, Access::read);
        std::memcpy(copy.bytes.data(), from, bytes);
    }
    // From here to the wait nobody may look at the bytes.
    touch(to, size, Access::write);
    Block& block = block_of(*machine.current);
    for (unsigned i = 0; i < size; ++i) block.shadow[offset + i].copying = true;
    machine.current->open_copies.push_back(copy);
}

void copy_async_commit() {
    Thread& me = *machine.current;
    me.copies.push_back(std::move(me.open_copies));
    me.open_copies.clear();
}

void copy_async_wait(int pending) {
    Thread& me = *machine.current;
    Block& block = block_of(me);
    while (me.copies.size() > static_cast<std::size_t>(pending)) {
        for (const PendingCopy& copy : me.copies.front()) {
            const std::size_t offset = static_cast<std::size_t>(copy.to - block.shared);
            for (unsigned i = 0; i < copy.size; ++i) block.shadow[offset + i].copying = false;
            touch(copy.to, copy.size, Access::write);
            std::memcpy(copy.to, copy.bytes.data(), copy.size);
        }
        me.copies.pop_front();
    }
}

void fence_async() {
    Thread& me = *machine.current;
    me.clock.fenced = me.clock.seen;
    advance(me);
}

} // namespace emulator

#define HOOK(SIZE) \
    extern "C" void __tsan_read##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::read); } \
    extern "C" void __tsan_write##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::write); } \
    extern "C" void __tsan_unaligned_read##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::read); } \
    extern "C" void __tsan_unaligned_write##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::write); } \
    extern "C" void __tsan_volatile_read##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::read); } \
    extern "C" void __tsan_volatile_write##SIZE(void* p) { emulator::touch(p, SIZE, emulator::Access::write); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
extern "C" void __tsan_read_range(void* p, unsigned long size) { emulator::touch(p, size, emulator::Access::read); }
extern "C" void __tsan_write_range(void* p, unsigned long size) { emulator::touch(p, size, emulator::Access::write); }
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __ubsan_handle_out_of_bounds(void*, unsigned long index) {
    emulator::fail("out of bounds: element %ld of an array", static_cast<long>(index));
}
extern "C" void __ubsan_handle_shift_out_of_bounds(void*, unsigned long, unsigned long by) {
    emulator::fail("a shift by %ld bits", static_cast<long>(by));
}
extern "C" void __ubsan_handle_type_mismatch_v1(void*, unsigned long p) {
    emulator::fail("misaligned: an access at %lx, which is not a multiple of what the type asks for", p);
}
