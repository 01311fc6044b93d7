// The emulated multiprocessor: blocks that are alive together, their threads as fibers, what they wait for, and the order
// between their accesses to shared memory.
#pragma once
#include "include/runtime.h"

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

// How far the accesses of others are known: those of `who` up to the moment `seen[who]` happened before. `who` is a thread, or an
// agent: a part of the machine that works beside the threads (a barrier's copies, a warpgroup's products, a thread's stores, a warp's ldmatrix).
// `fenced` is the same for what the copy engine and products may read: writes that a `fence_async_shared` followed.
struct Clock {
    std::vector<std::uint32_t> seen, fenced;
    std::uint32_t of(unsigned who) const { return who < seen.size() ? seen[who] : 0; }
    std::uint32_t fenced_of(unsigned who) const { return who < fenced.size() ? fenced[who] : 0; }
    void learn(unsigned who, std::uint32_t moment);
};
void join(Clock& into, const Clock& other);

// A copy from global to shared memory that its thread has not waited for.
struct PendingCopy {
    unsigned char* to;
    unsigned size;
    std::array<unsigned char, 16> bytes;
};

struct Thread {
    void* stack_pointer = nullptr;
    unsigned char* stack = nullptr;
    EmulatorPlace place{};
    unsigned number = 0; // among the threads that are alive together
    unsigned block = 0;  // its block, likewise
    bool done = false;
    const char* waits = nullptr; // what it waits for; null if it can run
    Clock clock;
    std::vector<PendingCopy> open_copies;
    std::deque<std::vector<PendingCopy>> copies;
    bool product_fence = false; // since the last wait for products
    unsigned stores = 0; // its agent, once it has started a store of the copy engine
    unsigned stores_closed = 0, stores_open = 0;
};

// Lanes of a warp that meet at an instruction.
struct Meeting {
    const char* kind;
    unsigned mask, arrived = 0;
    std::array<void*, 32> brought{};
    std::array<Thread*, 32> threads{};
};

struct NamedBarrier {
    unsigned expected = 0, arrived = 0;
    Clock clock;
    std::vector<Thread*> waiting;
};

// An mbarrier. Its word in shared memory only marks its place.
struct PhaseBarrier {
    unsigned count, pending;
    long bytes = 0;
    unsigned phase = 0;
    unsigned copies = 0; // the agent that brings copies
    unsigned maker = 0;  // the thread that initialized it
    bool shown = false;  // to the copy engine and to the cluster, by a fence of that thread
    Clock clock, last;   // of the phase under way, and of the ones that ended
    std::vector<std::pair<Thread*, unsigned>> waiting;
};

// A product of a warpgroup that has not been waited for. Its operands were read when it was started; its sums are written when it
// is waited for, and until then the threads' `d` hold POISON.
constexpr std::uint32_t POISON = 0x7f8dead5; // a signalling NaN, which changes in any computation;
struct PendingProduct {
    int n, k;
    bool add;
    std::vector<float> a, b;      // [64, k], [n, k]
    std::array<float*, 128> d;    // of each thread
    std::vector<float> start;     // [128, n / 2], what d was
    bool chained = false;         // d is of a product that is under way, whose sums this one takes over
};
struct Warpgroup {
    std::vector<PendingProduct> open;
    std::deque<std::vector<PendingProduct>> groups;
    unsigned products = 0; // its agent
    unsigned closed = 0;   // groups so far
    // Threads that have come to an instruction of the whole warpgroup, and what they brought.
    const char* kind = nullptr;
    std::vector<Thread*> threads;
    std::vector<void*> brought;
};

// What is known of a byte of shared memory: its last write, and two reads since then that do not know of each other.
struct Shadow {
    std::uint32_t written_at = 0;
    std::array<std::uint32_t, 2> read_at{};
    std::array<std::uint16_t, 2> reader{};
    std::uint16_t writer = 0;
    bool filled = false;
    bool atomic = false;  // the last write was
    bool engine = false;  // the copy engine wrote
    bool copying = false; // a cp.async that was not waited for writes here
    std::uint16_t unused = 0; // no padding: neighbours that are alike compare so
};

// A warp: the meetings of its lanes, and the agent that reads matrices for all of them.
struct Warp {
    std::vector<Meeting> meetings;
    unsigned loads = 0;
    std::uint32_t loaded = 0; // loads so far
};

struct Block {
    EmulatorDim index{};
    unsigned char* shared = nullptr;
    std::vector<Shadow> shadow;
    std::vector<Warp> warps;
    std::vector<Warpgroup> warpgroups;
    NamedBarrier all;
    std::array<NamedBarrier, 16> named;
    std::map<std::uint32_t, PhaseBarrier> phases;
    unsigned alive = 0;
};

// Memory of the device that the kernel may use.
struct Allocation {
    std::uint64_t address, bytes;
};

struct Launch {
    unsigned grid[3], threads, shared, cluster, cooperative;
    const void* params;
    std::uint64_t params_len;
    const Allocation* allocations; // by address
    std::uint64_t allocation_count;
};

struct Machine {
    const Launch* launch = nullptr;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Thread>> threads;
    std::deque<Thread*> ready;
    Thread* current = nullptr;
    void* scheduler = nullptr;
    unsigned char* stacks = nullptr;
    std::size_t stacks_len = 0;
    unsigned agents = 0;   // numbers given to threads and agents
    unsigned spinning = 0; // turns since something other than a spin happened
    NamedBarrier cluster;
    std::string error;
};
extern Machine machine;

// Hands the processor on until somebody wakes the running thread.
void wait_for(const char* what);
void wake(Thread* thread);
// A new moment of the running thread: what it does from here on is not known to those who have seen it before.
void advance(Thread& thread);
Block& block_of(const Thread& thread);

float decode(Kind kind, std::uint16_t bits);
float element_of(Kind kind, unsigned word, int i); // element `i` of a word

// ---- checked memory ----

enum class Access { read, write, atomic };
// Checks an access of the running thread.
void touch(const void* p, std::size_t size, Access access);
// Somebody who reads or writes: a thread, or an agent that knows what `clock` knows and is done at its own `moment`.
struct Actor {
    unsigned number;
    std::uint32_t moment;
    const Clock& clock;
    bool engine; // the copy engine or a product: it sees what threads wrote only behind a fence
};
void touch_by(const Actor& by, const void* p, std::size_t size, Access access);
unsigned char* shared_pointer(Block& block, std::uint32_t address, std::size_t size);

} // namespace emulator
