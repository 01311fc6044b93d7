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

// How far each thread's accesses are known: entry t is the last moment of thread t that happened before.
using Clock = std::vector<std::uint32_t>;
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
    Clock seen;
    std::vector<PendingCopy> open_copies;
    std::deque<std::vector<PendingCopy>> copies;
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
    Clock clock, last; // of the phase under way, and of the ones that ended
    std::vector<std::pair<Thread*, unsigned>> waiting;
};

// A product of a warpgroup that has not been waited for.
struct PendingProduct {
    Kind kind;
    int n;
    bool add, b_mn, a_in_registers;
    std::uint64_t a, b;
    std::array<float*, 128> d;
    std::array<std::array<unsigned, 4>, 128> registers;
};
struct Warpgroup {
    std::vector<PendingProduct> open;
    std::deque<std::vector<PendingProduct>> groups;
};

// What is known of a byte of shared memory.
struct Shadow {
    std::uint32_t written_at = 0, read_at = 0;
    std::uint16_t writer = 0, reader = 0;
    bool atomic = false, filled = false;
};

struct Block {
    EmulatorDim index{};
    unsigned char* shared = nullptr;
    std::vector<Shadow> shadow;
    std::vector<std::vector<Meeting>> warps;
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

// ---- checked memory ----

enum class Access { read, write, atomic };
// Checks an access of the running thread, by itself or for a part of the machine that acts for it.
void touch(const void* p, std::size_t size, Access access);
unsigned char* shared_pointer(Block& block, std::uint32_t address, std::size_t size);

} // namespace emulator
