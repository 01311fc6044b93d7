// Threads as fibers, and everything at which they wait for each other.
#include "machine.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>

extern "C" void emulator_kernel(const void* params);
extern "C" unsigned long emulator_param_bytes();
extern "C" unsigned emulator_most_threads();

namespace emulator {

Machine machine;
EmulatorPlace* here = nullptr;

namespace {

constexpr std::size_t STACK = 128 << 10;
// Turns of nothing but spinning after which no thread will ever find what it spins for.
constexpr unsigned MOST_SPINS = 1'000'000;
// Threads that may be alive together: each has a clock of all, and the record of shared memory numbers them in 16 bits.
constexpr std::size_t MOST_THREADS = 16384;
constexpr unsigned long MOST_PARAM_BYTES = 4096;
constexpr unsigned MOST_CLUSTER = 8;

#if defined(__x86_64__)
// Saves the callee's registers and the stack pointer at *from and goes on where `to` was saved.
asm(R"(
.text
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void emulator_switch(void** from, void* to) asm("emulator_switch");
constexpr int SAVED = 6;
#elif defined(__aarch64__)
asm(R"(
.text
emulator_switch:
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret
)");
extern "C" void emulator_switch(void** from, void* to) asm("emulator_switch");
#else
#error "fibers are written for x86-64 and AArch64"
#endif

void leave() { emulator_switch(&machine.current->stack_pointer, machine.scheduler); }

void release(NamedBarrier& barrier) {
    for (Thread* thread : barrier.waiting) {
        // The barrier's clock has all that the thread knew when it came, but the moment that began then.
        const std::uint32_t own = thread->clock.seen[thread->number];
        thread->clock = barrier.clock;
        thread->clock.seen[thread->number] = own;
        wake(thread);
    }
    barrier = NamedBarrier{};
}

// Arrives at a barrier of `expected` threads; waits there unless it was the last, or need not.
void arrive(NamedBarrier& barrier, unsigned expected, bool wait, const char* what) {
    Thread& me = *machine.current;
    if (barrier.arrived > 0 && barrier.expected != expected && &barrier != &block_of(me).all && &barrier != &machine.cluster)
        fail("%s of %u threads, while others wait at it as one of %u", what, expected, barrier.expected);
    barrier.expected = expected;
    join(barrier.clock, me.clock);
    advance(me);
    barrier.arrived += 1;
    if (wait) barrier.waiting.push_back(&me);
    if (barrier.arrived >= expected) {
        release(barrier);
        if (wait) machine.ready.pop_back(); // woken with the others, but it runs already
        me.waits = nullptr;
    } else if (wait) {
        wait_for(what);
    }
}

unsigned alive() {
    unsigned all = 0;
    for (const auto& block : machine.blocks) all += block->alive;
    return all;
}

void run_thread() {
    emulator_kernel(machine.launch->params);
    Thread& me = *machine.current;
    if (me.stores > 0 && me.clock.of(me.stores) < me.stores_closed + me.stores_open)
        fail("the thread ends while its stores of the copy engine still read shared memory");
    me.done = true;
    Block& block = block_of(me);
    block.alive -= 1;
    // Threads that have ended count as arrived at the barriers of the block and of the cluster.
    if (block.all.arrived > 0 && block.all.arrived >= block.alive) release(block.all);
    if (machine.cluster.arrived > 0 && machine.cluster.arrived >= alive()) release(machine.cluster);
    leave();
    std::abort();
}

void prepare(Thread& thread) {
    auto* top = reinterpret_cast<void**>(thread.stack + STACK);
#if defined(__x86_64__)
    *--top = nullptr; // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(run_thread);
    for (int i = 0; i < SAVED; ++i) *--top = nullptr;
#else
    top -= 176 / sizeof(void*);
    std::memset(top, 0, 176);
    top[11] = reinterpret_cast<void*>(run_thread); // x30
#endif
    thread.stack_pointer = top;
}

std::string describe_waits() {
    std::map<std::string, std::pair<unsigned, const Thread*>> all;
    for (const auto& thread : machine.threads)
        if (!thread->done) {
            auto& entry = all[thread->waits != nullptr ? thread->waits : "a value in memory"];
            entry.first += 1;
            if (entry.second == nullptr) entry.second = thread.get();
        }
    std::string text;
    for (const auto& [what, entry] : all) {
        char line[160];
        const EmulatorPlace& at = entry.second->place;
        std::snprintf(line, sizeof line, "%s%u wait at %s (the first: block %u,%u,%u thread %u)", text.empty() ? "" : "; ",
                      entry.first, what.c_str(), at.block.x, at.block.y, at.block.z, at.thread.x);
        text += line;
    }
    return text;
}

// Runs the blocks first..first + count to their end.
void run_blocks(unsigned long first, unsigned count) {
    const Launch& launch = *machine.launch;
    machine.blocks.clear();
    machine.threads.clear();
    machine.ready.clear();
    machine.spinning = 0;
    machine.cluster = NamedBarrier{};
    machine.agents = count * launch.threads;
    const std::size_t total = static_cast<std::size_t>(count) * launch.threads;
    if (machine.stacks_len < total * STACK) {
        if (machine.stacks != nullptr) munmap(machine.stacks, machine.stacks_len);
        machine.stacks_len = total * STACK;
        void* stacks = mmap(nullptr, machine.stacks_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) {
            machine.stacks = nullptr, machine.stacks_len = 0;
            machine.error = "no memory for the stacks of " + std::to_string(total) + " threads";
            return;
        }
        machine.stacks = static_cast<unsigned char*>(stacks);
    }
    for (unsigned b = 0; b < count; ++b) {
        auto block = std::make_unique<Block>();
        const unsigned long index = first + b;
        block->index = {static_cast<unsigned>(index % launch.grid[0]), static_cast<unsigned>(index / launch.grid[0] % launch.grid[1]),
                        static_cast<unsigned>(index / launch.grid[0] / launch.grid[1])};
        block->shared = static_cast<unsigned char*>(std::aligned_alloc(1024, (launch.shared + 2047) / 1024 * 1024));
        std::memset(block->shared, 0xFF, launch.shared);
        block->shadow.resize(launch.shared);
        block->warps.resize((launch.threads + 31) / 32);
        block->warpgroups.resize((launch.threads + 127) / 128);
        for (Warpgroup& group : block->warpgroups) group.products = machine.agents++;
        for (Warp& warp : block->warps) warp.loads = machine.agents++;
        block->alive = launch.threads;
        for (unsigned t = 0; t < launch.threads; ++t) {
            auto thread = std::make_unique<Thread>();
            thread->number = b * launch.threads + t;
            thread->block = b;
            thread->stack = machine.stacks + thread->number * STACK;
            thread->place = {{t, 0, 0}, block->index, {launch.threads, 1, 1}, {launch.grid[0], launch.grid[1], launch.grid[2]}, block->shared, b};
            thread->clock.seen.assign(total, 1);
            thread->clock.seen[thread->number] = 2;
            prepare(*thread);
            machine.ready.push_back(thread.get());
            machine.threads.push_back(std::move(thread));
        }
        machine.blocks.push_back(std::move(block));
    }
    while (!machine.ready.empty() && machine.error.empty()) {
        Thread* next = machine.ready.front();
        machine.ready.pop_front();
        machine.current = next;
        here = &next->place;
        emulator_switch(&machine.scheduler, next->stack_pointer);
    }
    bool left = false;
    for (auto& thread : machine.threads) left |= !thread->done;
    if (machine.error.empty() && left) machine.error = "deadlock: " + describe_waits();
    for (auto& block : machine.blocks) std::free(block->shared);
}

} // namespace

Block& block_of(const Thread& thread) { return *machine.blocks[thread.block]; }

void join(Clock& into, const Clock& other) {
    const auto most = [](std::vector<std::uint32_t>& into, const std::vector<std::uint32_t>& other) {
        if (into.size() < other.size()) into.resize(other.size());
        for (std::size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
    };
    most(into.seen, other.seen);
    most(into.fenced, other.fenced);
}

void Clock::learn(unsigned who, std::uint32_t moment) {
    if (seen.size() <= who) seen.resize(who + 1);
    seen[who] = std::max(seen[who], moment);
}

void advance(Thread& thread) { thread.clock.seen[thread.number] += 1; }

void wait_for(const char* what) {
    machine.current->waits = what;
    leave();
}

void wake(Thread* thread) {
    thread->waits = nullptr;
    machine.spinning = 0;
    machine.ready.push_back(thread);
}

void spin() {
    if (++machine.spinning > MOST_SPINS) fail("deadlock: %s", describe_waits().c_str());
    machine.ready.push_back(machine.current);
    leave();
}

void fail(const char* format, ...) {
    char what[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    const EmulatorPlace& at = machine.current->place;
    char where[128];
    std::snprintf(where, sizeof where, "block %u,%u,%u thread %u: ", at.block.x, at.block.y, at.block.z, at.thread.x);
    machine.error = std::string(where) + what;
    for (;;) leave();
}

void meet(const char* kind, unsigned mask, void* brought, void (*work)(void* const*, void*), void* context) {
    Thread& me = *machine.current;
    const unsigned lane = me.place.thread.x & 31, warp = me.place.thread.x >> 5;
    if (!(mask >> lane & 1)) fail("%s: the lane is not in its own mask %08x", kind, mask);
    auto& meetings = block_of(me).warps[warp].meetings;
    std::size_t at = 0;
    while (at < meetings.size() && !(meetings[at].mask & mask)) ++at;
    if (at == meetings.size()) meetings.push_back(Meeting{kind, mask});
    if (meetings[at].mask != mask || std::strcmp(meetings[at].kind, kind) != 0)
        fail("divergence: at %s with mask %08x, while other lanes of the warp are at %s with mask %08x", kind, mask,
             meetings[at].kind, meetings[at].mask);
    Meeting& meeting = meetings[at];
    meeting.arrived |= 1u << lane;
    meeting.brought[lane] = brought;
    meeting.threads[lane] = &me;
    // A last warp that is not full has fewer lanes.
    const unsigned threads = machine.launch->threads, first = warp * 32;
    const unsigned lanes = threads - first >= 32 ? 0xffffffffu : (1u << (threads - first)) - 1;
    if (meeting.arrived != (mask & lanes)) {
        wait_for(kind);
        return;
    }
    const Meeting whole = meeting;
    meetings.erase(meetings.begin() + static_cast<long>(at));
    work(whole.brought.data(), context);
    for (Thread* thread : whole.threads)
        if (thread != nullptr && thread != &me) wake(thread);
}

void warp_barrier(unsigned mask) {
    meet("__syncwarp", mask, machine.current, [](void* const* brought, void*) {
        Clock all;
        for (int lane = 0; lane < 32; ++lane)
            if (brought[lane] != nullptr) join(all, static_cast<Thread*>(brought[lane])->clock);
        for (int lane = 0; lane < 32; ++lane)
            if (brought[lane] != nullptr) {
                auto* thread = static_cast<Thread*>(brought[lane]);
                thread->clock = all;
                advance(*thread);
            }
    }, nullptr);
}

void block_barrier() {
    Block& block = block_of(*machine.current);
    arrive(block.all, block.alive, true, "__syncthreads");
}

void named_barrier(unsigned id, unsigned threads, bool wait) {
    if (id == 0 || id > 15 || threads == 0 || threads % 32 != 0 || threads > machine.launch->threads)
        fail("named barrier %u of %u threads", id, threads);
    static const char* names[16] = {"", "barrier 1", "barrier 2", "barrier 3", "barrier 4", "barrier 5", "barrier 6", "barrier 7",
                                    "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
    arrive(block_of(*machine.current).named[id], threads, wait, names[id]);
}

void cluster_barrier() { arrive(machine.cluster, alive(), true, "the cluster's barrier"); }

} // namespace emulator

// Runs a launch; 0, or 1 with what went wrong.
extern "C" __attribute__((visibility("default"))) int emulator_run(const emulator::Launch* launch, char* error, unsigned long error_len) {
    using namespace emulator;
    static std::mutex one;
    const std::lock_guard<std::mutex> alone(one);
    machine.launch = launch;
    machine.error.clear();
    const unsigned long blocks = static_cast<unsigned long>(launch->grid[0]) * launch->grid[1] * launch->grid[2];
    const unsigned together = launch->cooperative ? static_cast<unsigned>(blocks) : launch->cluster;
    if (emulator_param_bytes() != launch->params_len)
        machine.error = "the kernel takes " + std::to_string(emulator_param_bytes()) + " bytes of parameters, the launch gives " +
                        std::to_string(launch->params_len);
    else if (launch->params_len > MOST_PARAM_BYTES)
        machine.error = std::to_string(launch->params_len) + " bytes of parameters: a launch takes " + std::to_string(MOST_PARAM_BYTES);
    else if (launch->threads == 0 || launch->threads > 1024)
        machine.error = "a block of " + std::to_string(launch->threads) + " threads";
    else if (launch->threads > emulator_most_threads())
        machine.error = "a block of " + std::to_string(launch->threads) + " threads of a kernel that is compiled for " +
                        std::to_string(emulator_most_threads());
    else if (launch->cluster == 0 || launch->cluster > MOST_CLUSTER)
        machine.error = "a cluster of " + std::to_string(launch->cluster) + " blocks";
    else if (static_cast<std::size_t>(together) * launch->threads > MOST_THREADS)
        machine.error = std::to_string(together) + " blocks alive together are too many for the emulator";
    else if (launch->grid[0] % launch->cluster != 0)
        machine.error = "a grid of " + std::to_string(launch->grid[0]) + " blocks in clusters of " + std::to_string(launch->cluster);
    for (unsigned long first = 0; first < blocks && machine.error.empty(); first += together) run_blocks(first, together);
    if (machine.error.empty()) return 0;
    std::snprintf(error, error_len, "%s", machine.error.c_str());
    return 1;
}
