// Matrix products of a warpgroup (sm_90a): wgmma. The host emulator has a file of the same name and functions.
//
// d [64, N] (+)= a [64, K] b [K, N], sums f32; elements bf16 or f16 and K = 16, or e4m3 and K = 32, which is 32 bytes in any case. Operands in shared memory are named by descriptors. With
// w = warp % 4, g = lane / 4, t = lane % 4 a thread holds d (16 w + g + 8 h, 8 j + 2 t + e) in d[4 j + 2 h + e]; `a` in
// registers is as for mma_16816, rows 16 w on. The products are asynchronous: between wgmma_fence and wgmma_wait nobody else
// touches d or a.
#pragma once
#include "cuda/include/hopper.cuh"

// Before the first product, and whenever registers of d or a were written by other instructions.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Closes a group of products.
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the `N` latest groups are under way.
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// As above, but not before `x` >= 0 is known: the compiler likes to wait first, and to compute then what could have been computed
// meanwhile. A branch that is never taken holds it back.
template <int N> DEVICE void wgmma_wait_after(f32 x) {
    asm volatile("{.reg .pred no;\n setp.lt.f32 no, %0, 0f00000000;\n @no bra LATE;\n bra WAIT;\n LATE:\n nanosleep.u32 1;\n"
                 " WAIT:\n wgmma.wait_group.sync.aligned %1;}" ::"f"(x), "n"(N)
                 : "memory");
}
// Keeps the compiler from moving uses of d across a wait.
template <int COUNT> DEVICE void wgmma_pin(f32 (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of an operand in shared memory with 128-byte swizzle: tiles of 8 rows of 128 bytes, 1024-byte aligned. K-major (a row
// holds 64 elements along k): `stride` bytes lie between groups of 8 rows (1024 where dense), `lead` is unused. A step of
// 16 along k adds 32 bytes to the address. MN-major (a row holds 64 elements along n, 8 rows are 8 of k): `stride` bytes lie
// between groups of 8 along k, `lead` bytes between blocks of 64 along n; a step of 16 along k adds 2 * stride.
DEVICE u64 wgmma_descriptor(const void* p, u32 stride = 1024, u32 lead = 16) {
    const u64 address = shared_address(p);
    return ((address & 0x3ffff) >> 4) | (static_cast<u64>((lead & 0x3ffff) >> 4) << 16) |
           (static_cast<u64>((stride & 0x3ffff) >> 4) << 32) | (1ull << 62);
}

// The registers of d in the instruction's text, and as its operands, eight at a time.
#define WGMMA_R0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WGMMA_R1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_R2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_R3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_R4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_R5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_R6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_R7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_R8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define WGMMA_R9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_R10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define WGMMA_R11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_R12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define WGMMA_R13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_R14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define WGMMA_R15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_D(i) "+f"(d[8 * i]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define WGMMA_R_16 WGMMA_R0
#define WGMMA_D_16 WGMMA_D(0)
#define WGMMA_R_32 WGMMA_R0 ", " WGMMA_R1
#define WGMMA_D_32 WGMMA_D(0), WGMMA_D(1)
#define WGMMA_R_64 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3
#define WGMMA_D_64 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3)
#define WGMMA_R_80 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4
#define WGMMA_D_80 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4)
#define WGMMA_R_96 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5
#define WGMMA_D_96 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5)
#define WGMMA_R_128 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7
#define WGMMA_D_128 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5), WGMMA_D(6), WGMMA_D(7)
#define WGMMA_R_160 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7 ", " WGMMA_R8 ", " WGMMA_R9
#define WGMMA_D_160 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5), WGMMA_D(6), WGMMA_D(7), WGMMA_D(8), WGMMA_D(9)
#define WGMMA_R_176 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7 ", " WGMMA_R8 ", " WGMMA_R9 ", " WGMMA_R10
#define WGMMA_D_176 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5), WGMMA_D(6), WGMMA_D(7), WGMMA_D(8), WGMMA_D(9), WGMMA_D(10)
#define WGMMA_R_192 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7 ", " WGMMA_R8 ", " WGMMA_R9 ", " WGMMA_R10 ", " WGMMA_R11
#define WGMMA_D_192 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5), WGMMA_D(6), WGMMA_D(7), WGMMA_D(8), WGMMA_D(9), WGMMA_D(10), WGMMA_D(11)
#define WGMMA_R_256 WGMMA_R0 ", " WGMMA_R1 ", " WGMMA_R2 ", " WGMMA_R3 ", " WGMMA_R4 ", " WGMMA_R5 ", " WGMMA_R6 ", " WGMMA_R7 ", " WGMMA_R8 ", " WGMMA_R9 ", " WGMMA_R10 ", " WGMMA_R11 ", " WGMMA_R12 ", " WGMMA_R13 ", " WGMMA_R14 ", " WGMMA_R15
#define WGMMA_D_256 WGMMA_D(0), WGMMA_D(1), WGMMA_D(2), WGMMA_D(3), WGMMA_D(4), WGMMA_D(5), WGMMA_D(6), WGMMA_D(7), WGMMA_D(8), WGMMA_D(9), WGMMA_D(10), WGMMA_D(11), WGMMA_D(12), WGMMA_D(13), WGMMA_D(14), WGMMA_D(15)

// d = a b + (add ? d : 0), both operands in shared memory; `B_MN` where b is MN-major (its rows run along n).
template <int N, typename T, bool B_MN> struct Wgmma;

#define WGMMA_PRODUCT(N, T, NAME, B0, B1, B2, B3, B4, B5, B6) \
    template <bool B_MN> struct Wgmma<N, T, B_MN> { \
        static DEVICE void ss(f32 (&d)[N / 2], u64 a, u64 b, bool add) { \
            asm volatile("{.reg .pred p;\n setp.ne.b32 p, " B2 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" WGMMA_R_##N "}, " B0 ", " B1 \
                         ", p, 1, 1, 0, " B3 ";}" \
                         : WGMMA_D_##N \
                         : "l"(a), "l"(b), "r"(static_cast<i32>(add)), "n"(static_cast<i32>(B_MN))); \
        } \
        static DEVICE void rs(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) { \
            asm volatile("{.reg .pred p;\n setp.ne.b32 p, " B5 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME "." NAME " {" WGMMA_R_##N "}, {" B0 ", " B1 \
                         ", " B2 ", " B3 "}, " B4 ", p, 1, 1, " B6 ";}" \
                         : WGMMA_D_##N \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<i32>(add)), "n"(static_cast<i32>(B_MN))); \
        } \
    };
#define WGMMA_BOTH(N, B0, B1, B2, B3, B4, B5, B6) \
    WGMMA_PRODUCT(N, bf16, "bf16", B0, B1, B2, B3, B4, B5, B6) \
    WGMMA_PRODUCT(N, f16, "f16", B0, B1, B2, B3, B4, B5, B6)
WGMMA_BOTH(16, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA_BOTH(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_BOTH(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA_BOTH(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA_BOTH(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
WGMMA_BOTH(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA_BOTH(160, "%80", "%81", "%82", "%83", "%84", "%85", "%86")
WGMMA_BOTH(176, "%88", "%89", "%90", "%91", "%92", "%93", "%94")
WGMMA_BOTH(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA_BOTH(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

// Of 8-bit floats: both operands K-major in shared memory.
#define WGMMA_E4M3(N, B0, B1, B2) \
    template <> struct Wgmma<N, e4m3, false> { \
        static DEVICE void ss(f32 (&d)[N / 2], u64 a, u64 b, bool add) { \
            asm volatile("{.reg .pred p;\n setp.ne.b32 p, " B2 ", 0;\n" \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" WGMMA_R_##N "}, " B0 ", " B1 ", p, 1, 1;}" \
                         : WGMMA_D_##N \
                         : "l"(a), "l"(b), "r"(static_cast<i32>(add))); \
        } \
    };
WGMMA_E4M3(64, "%32", "%33", "%34")
WGMMA_E4M3(128, "%64", "%65", "%66")

// The products by name: both operands in shared memory; `a` in registers.
template <int N, typename T, bool B_MN = false> DEVICE void wgmma_ss(f32 (&d)[N / 2], u64 a, u64 b, bool add) {
    Wgmma<N, T, B_MN>::ss(d, a, b, add);
}
template <int N, typename T, bool B_MN = false>
DEVICE void wgmma_rs(f32 (&d)[N / 2], const u32 (&a)[4], u64 b, bool add) {
    Wgmma<N, T, B_MN>::rs(d, a, b, add);
}
