// Checked memory. The compiler's thread sanitizer puts a call before each access of a kernel, its alignment sanitizer one where
// a pointer is not aligned to its type; here they end. An access must lie in the block's shared memory, in an allocation of the
// device, or in the memory of the program itself.
#include "machine.h"

#include <cstring>

extern "C" char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace emulator {

namespace {

// Where shared memory begins as instructions count it; 0 is no address.
constexpr std::uint32_t SHARED_BASE = 1024;

void touch_shared(Block& block, std::size_t at, std::size_t size, Access access) {
    Thread& me = *machine.current;
    const std::uint32_t now = me.seen[me.number];
    for (std::size_t i = at; i < at + size; ++i) {
        Shadow& byte = block.shadow[i];
        const bool others_atomic = byte.atomic && access == Access::atomic;
        if (byte.filled && byte.writer != me.number && me.seen[byte.writer] < byte.written_at && !others_atomic)
            fail("race: %s of byte %zu of shared memory, which thread %u has written since the last barrier between them",
                 access == Access::read ? "read" : "write", i, byte.writer);
        if (access == Access::read) {
            if (!byte.filled) fail("byte %zu of shared memory is read before anything is written there", i);
            byte.reader = static_cast<std::uint16_t>(me.number);
            byte.read_at = now;
            continue;
        }
        if (byte.read_at > 0 && byte.reader != me.number && me.seen[byte.reader] < byte.read_at)
            fail("race: write of byte %zu of shared memory, which thread %u has read since the last barrier between them", i,
                 byte.reader);
        byte.filled = true;
        byte.atomic = access == Access::atomic;
        byte.writer = static_cast<std::uint16_t>(me.number);
        byte.written_at = now;
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

void touch(const void* p, std::size_t size, Access access) {
    if (machine.current == nullptr) return;
    const auto at = reinterpret_cast<std::uintptr_t>(p);
    for (auto& block : machine.blocks) {
        const auto base = reinterpret_cast<std::uintptr_t>(block->shared);
        // A whole kilobyte behind the end belongs to nobody else.
        if (at < base || at >= base + machine.launch->shared + 1024) continue;
        if (at + size > base + machine.launch->shared)
            fail("out of bounds: byte %zu of %u bytes of shared memory", at - base, machine.launch->shared);
        touch_shared(*block, at - base, size, access);
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
    machine.current->open_copies.push_back(copy);
}

void copy_async_commit() {
    Thread& me = *machine.current;
    me.copies.push_back(std::move(me.open_copies));
    me.open_copies.clear();
}

void copy_async_wait(int pending) {
    Thread& me = *machine.current;
    while (me.copies.size() > static_cast<std::size_t>(pending)) {
        for (const PendingCopy& copy : me.copies.front()) {
            touch(copy.to, copy.size, Access::write);
            std::memcpy(copy.to, copy.bytes.data(), copy.size);
        }
        me.copies.pop_front();
    }
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
extern "C" void __ubsan_handle_type_mismatch_v1(void*, unsigned long p) {
    emulator::fail("misaligned: an access at %lx, which is not a multiple of what the type asks for", p);
}
