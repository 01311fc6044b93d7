// What a kernel that is compiled for the host asks of the emulator. The .cpp files beside this folder implement it.
#pragma once
#include <cstdint>

#define EMULATOR_QUIET __attribute__((no_sanitize("thread", "alignment"))) inline

struct EmulatorDim {
    unsigned x, y, z;
};

// Where the running thread stands. One thread runs at a time.
struct EmulatorPlace {
    EmulatorDim thread, block, block_dim, grid_dim;
    unsigned char* shared; // the block's shared memory
    unsigned cluster_rank;
};

namespace emulator {

extern EmulatorPlace* here;

// ---- threads that meet ----

// Every lane of `mask` calls this with the same `kind`; the last to come runs `work` on what all of them brought (null for
// lanes outside of the mask), then all go on.
void meet(const char* kind, unsigned mask, void* brought, void (*work)(void* const* brought, void* context), void* context);
void block_barrier();
void named_barrier(unsigned id, unsigned threads, bool wait);
void cluster_barrier();
void warp_barrier(unsigned mask);
// Lets the other threads run: a thread that waits for memory to change.
void spin();

// ---- shared memory ----

unsigned shared_address(const void* p);
void copy_async(void* to, const void* from, unsigned size, unsigned bytes);
void copy_async_commit();
void copy_async_wait(int pending);

void barrier_init(std::uint64_t* bar, unsigned count);
void barrier_init_fence();
void barrier_arrive(std::uint64_t* bar, unsigned expect, int rank);
void barrier_wait(std::uint64_t* bar, unsigned parity);

// ---- the copy engine ----

void tensor_load(void* to, const void* map, std::uint64_t* bar, const int* at, unsigned rank, unsigned blocks);
void tensor_store(const void* map, const void* from, const int* at, unsigned rank);
void tensor_store_commit();
void tensor_store_wait(int pending);
// What the running thread knows to be written may be read by the copy engine and by products.
void fence_async();

// ---- matrices ----

enum class Kind { bf16, f16, e4m3 };
void load_matrices(unsigned* d, const void* row, int count, bool transposed);
void store_matrices(void* row, const unsigned* d, int count, bool transposed);
void mma_16816(Kind kind, float* d, const unsigned* a, unsigned b0, unsigned b1);
void mma_16832_i8(int* d, const unsigned* a, unsigned b0, unsigned b1);
void mma_16832_e4m3(float* d, const unsigned* a, unsigned b0, unsigned b1);
// d [64, n] (+)= a [64, k] b [k, n], k 16 or, of e4m3, 32, by the four warps of a warpgroup, done when it is waited for. `a_registers` or `a`.
void wgmma(Kind kind, float* d, int n, const unsigned* a_registers, std::uint64_t a, std::uint64_t b, bool add, bool b_mn);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int pending);

// ---- values ----

float from_bf16(std::uint16_t bits);
std::uint16_t to_bf16(float x);
float from_f16(std::uint16_t bits);
std::uint16_t to_f16(float x);
float from_e4m3(unsigned char bits);
unsigned char to_e4m3(float x);

[[noreturn]] void fail(const char* format, ...);

} // namespace emulator
