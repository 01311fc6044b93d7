// Names that every kernel uses: element types, their conversions, the entry, shared memory.
//
// Kernels need no header of the toolkit. The host emulator compiles them as C++: it supplies what CUDA builds in (threadIdx,
// float4, atomicAdd...) and its own `ptx.cuh` and `hopper.cuh`; this file is shared.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;
typedef unsigned long long u64;
typedef long long i64;
typedef float f32;

// Values as they lie in memory. Arithmetic is done in f32, or in pairs by the functions of `ptx.cuh`.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};
// A float of 8 bits, see `quant/e4m3/mod.rs`.
struct e4m3 {
    u8 bits;
};

#define DEVICE __device__ __forceinline__

// The entry of a file: `KERNEL(threads, blocks per multiprocessor)(const __grid_constant__ Params p) { ... }`.
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) ocelli_kernel

// Shared memory of the block, of the size that the launch gives. A kernel declares it once and divides it by hand.
#ifndef SHARED_MEMORY
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) u8 name[]
#endif

DEVICE constexpr i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }
template <typename T> DEVICE constexpr T min_of(T a, T b) { return b < a ? b : a; }
template <typename T> DEVICE constexpr T max_of(T a, T b) { return a < b ? b : a; }

// Whether two types are one.
template <typename A, typename B> struct same_type {
    static constexpr bool value = false;
};
template <typename A> struct same_type<A, A> {
    static constexpr bool value = true;
};
