/* The roofs of this machine, measured independently of the library.
 *
 *   cc -O3 [-mavx2 -mfma | -mavx512f ...] -pthread roof.c -o roof
 *   ./roof THREADS FIGURE [SECONDS]      FIGURE: fma | int8 | bf16 | read;  prints one number: 1e9 per second
 *
 * Built with -shared -fPIC, it offers the read loop as `roof_read`.
 *
 * The instruction set is the one it is compiled for.  Prints "none" for a figure that this set does not have.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 64
#define CHAINS 20
#elif defined(__AVX2__)
#define WIDTH 32
#define CHAINS 10
#else
#define WIDTH 16
#define CHAINS 10
#endif
typedef float vf __attribute__((vector_size(WIDTH)));
typedef uint64_t vu __attribute__((vector_size(WIDTH)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Keeps a vector in a register and hides its value from the compiler. */
#define OPAQUE(x) __asm__ volatile("" : "+x"(x))

static volatile float sink;

/* Each loop runs `turns` times and returns how many operations that were. */

static double loop_fma(long turns) {
    vf acc[CHAINS], a, b;
    for (unsigned i = 0; i < WIDTH / 4; i++) {
        a[i] = 0.75f;
        b[i] = 0.5f;
    }
#pragma GCC unroll 20
    for (int i = 0; i < CHAINS; i++) acc[i] = b + (float)i;
    OPAQUE(a);
    OPAQUE(b);
    for (long t = 0; t < turns; t++) {
#pragma GCC unroll 20
        for (int i = 0; i < CHAINS; i++) acc[i] = acc[i] * a + b;
    }
    vf sum = acc[0];
#pragma GCC unroll 20
    for (int i = 1; i < CHAINS; i++) sum += acc[i];
    sink = sum[0];
    return (double)turns * CHAINS * (WIDTH / 4) * 2;
}

#if defined(__AVX512VNNI__)
static double loop_int8(long turns) {
    __m512i acc[CHAINS], a = _mm512_set1_epi8(7), b = _mm512_set1_epi8(-3);
#pragma GCC unroll 20
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_epi32(i);
    OPAQUE(a);
    OPAQUE(b);
    for (long t = 0; t < turns; t++) {
#pragma GCC unroll 20
        for (int i = 0; i < CHAINS; i++) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[i]) : "v"(a), "v"(b));
    }
    __m512i sum = acc[0];
#pragma GCC unroll 20
    for (int i = 1; i < CHAINS; i++) sum = _mm512_add_epi32(sum, acc[i]);
    sink = (float)_mm512_reduce_add_epi32(sum);
    return (double)turns * CHAINS * 64 * 2;
}
#elif defined(__AVXVNNI__)
static double loop_int8(long turns) {
    __m256i acc[CHAINS], a = _mm256_set1_epi8(7), b = _mm256_set1_epi8(-3);
#pragma GCC unroll 20
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm256_set1_epi32(i);
    for (long t = 0; t < turns; t++) {
#pragma GCC unroll 20
        for (int i = 0; i < CHAINS; i++) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc[i]) : "x"(a), "x"(b));
    }
    __m256i sum = acc[0];
#pragma GCC unroll 20
    for (int i = 1; i < CHAINS; i++) sum = _mm256_add_epi32(sum, acc[i]);
    sink = (float)_mm256_extract_epi32(sum, 3);
    return (double)turns * CHAINS * 32 * 2;
}
#elif defined(__AVX2__)
static double loop_int8(long turns) {
    __m256i acc[8], a = _mm256_set1_epi8(7), b = _mm256_set1_epi8(-3), one = _mm256_set1_epi16(1);
    for (int i = 0; i < 8; i++) acc[i] = _mm256_set1_epi32(i);
    for (long t = 0; t < turns; t++) {
        OPAQUE(a);
        OPAQUE(b);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m256i x = a;
            OPAQUE(x);
            acc[i] = _mm256_add_epi32(acc[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, b), one));
        }
    }
    __m256i sum = acc[0];
    for (int i = 1; i < 8; i++) sum = _mm256_add_epi32(sum, acc[i]);
    sink = (float)_mm256_extract_epi32(sum, 3);
    return (double)turns * 8 * 32 * 2;
}
#else
static double loop_int8(long turns) {
    static int8_t a[256], b[256];
    int32_t sum = 0;
    for (int i = 0; i < 256; i++) {
        a[i] = (int8_t)i;
        b[i] = (int8_t)(3 * i);
    }
    for (long t = 0; t < turns; t++) {
        __asm__ volatile("" ::: "memory");
        for (int i = 0; i < 256; i++) sum += (int32_t)a[i] * b[i];
    }
    sink = (float)sum;
    return (double)turns * 256 * 2;
}
#endif

#if defined(__AMX_BF16__)
#define HAS_BF16 1
static double loop_bf16(long turns) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    syscall(SYS_arch_prctl, 0x1023, 18); /* tiles have to be asked for */
    _tile_loadconfig(&config);
    for (long t = 0; t < turns; t++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_release();
    return (double)turns * 4 * 16 * 16 * 32 * 2;
}
#elif defined(__AVX512BF16__)
#define HAS_BF16 1
static double loop_bf16(long turns) {
    __m512 acc[CHAINS];
    __m512i a = _mm512_set1_epi32(0x3c003c00);
#pragma GCC unroll 20
    for (int i = 0; i < CHAINS; i++) acc[i] = _mm512_set1_ps((float)i);
    for (long t = 0; t < turns; t++) {
#pragma GCC unroll 20
        for (int i = 0; i < CHAINS; i++) __asm__("vdpbf16ps %1, %1, %0" : "+v"(acc[i]) : "v"(a));
    }
    __m512 sum = acc[0];
#pragma GCC unroll 20
    for (int i = 1; i < CHAINS; i++) sum = _mm512_add_ps(sum, acc[i]);
    sink = _mm512_reduce_add_ps(sum);
    return (double)turns * CHAINS * 32 * 2;
}
#else
#define HAS_BF16 0
static double loop_bf16(long turns) { return (double)turns; }
#endif

static double xor_bytes(const char *p, size_t bytes) {
    vu s[4] = {{0}};
    const vu *v = (const vu *)p;
    for (size_t i = 0; i < bytes / WIDTH; i += 4) {
        __builtin_prefetch((const char *)(v + i) + 768, 0, 3);
        if (WIDTH == 64) {
            __builtin_prefetch((const char *)(v + i) + 832, 0, 3);
            __builtin_prefetch((const char *)(v + i) + 896, 0, 3);
            __builtin_prefetch((const char *)(v + i) + 960, 0, 3);
        } else if (WIDTH == 32) {
            __builtin_prefetch((const char *)(v + i) + 832, 0, 3);
        }
        for (int k = 0; k < 4; k++) s[k] ^= v[i + k];
    }
    vu all = s[0] ^ s[1] ^ s[2] ^ s[3];
    sink = (float)(all[0] ^ all[1]);
    return (double)bytes;
}

/* For a program that loads this one as a library. */
double roof_read(const char *p, size_t bytes) { return xor_bytes(p, bytes); }

enum { FMA, INT8, BF16, READ };
static int figure, threads;
static long turns;
static char *buffer;
static size_t buffer_bytes = (size_t)768 << 20, chunk = (size_t)48 << 20;
static pthread_barrier_t barrier;
static volatile int stop;
static double best, until;

static double once(int thread, long round) {
    if (figure == READ) {
        size_t part = chunk / (size_t)threads / 4096 * 4096;
        size_t at = ((size_t)round * chunk) % buffer_bytes;
        return xor_bytes(buffer + at + (size_t)thread * part, part);
    }
    return figure == FMA ? loop_fma(turns) : figure == INT8 ? loop_int8(turns) : loop_bf16(turns);
}

static void *worker(void *argument) {
    int thread = (int)(intptr_t)argument;
    for (long round = 0;; round++) {
        pthread_barrier_wait(&barrier);
        double start = now();
        double work = once(thread, round);
        pthread_barrier_wait(&barrier);
        if (thread == 0) {
            double rate = work * threads / (now() - start) / 1e9;
            if (round > 2 && rate > best) best = rate;
            stop = now() > until && round > 20;
        }
        pthread_barrier_wait(&barrier);
        if (stop) return NULL;
    }
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: roof THREADS fma|int8|bf16|read [SECONDS]\n");
        return 2;
    }
    threads = atoi(argv[1]);
    const char *names[] = {"fma", "int8", "bf16", "read"};
    for (figure = 0; figure < 4 && strcmp(argv[2], names[figure]) != 0; figure++) {
    }
    if (figure == 4 || threads < 1) {
        fprintf(stderr, "roof: unknown figure %s\n", argv[2]);
        return 2;
    }
    if (figure == BF16 && !HAS_BF16) {
        puts("none");
        return 0;
    }
    if (figure == READ) {
        size_t huge = (size_t)2 << 20;
        char *map = mmap(NULL, buffer_bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            perror("roof: mmap");
            return 1;
        }
        buffer = (char *)(((uintptr_t)map + huge - 1) / huge * huge);
#ifdef MADV_HUGEPAGE
        madvise(buffer, buffer_bytes, MADV_HUGEPAGE);
#endif
        for (size_t i = 0; i < buffer_bytes; i++) buffer[i] = (char)(i * 131 + (i >> 12));
    } else {
        /* A window of about two milliseconds. */
        turns = 1000;
        for (double t = 0; t < 1e-3;) {
            turns *= 2;
            double start = now();
            once(0, 0);
            t = now() - start;
        }
        turns *= 2;
    }
    until = now() + (argc > 3 ? atof(argv[3]) : 0.5);
    pthread_barrier_init(&barrier, NULL, (unsigned)threads);
    pthread_t *team = malloc(sizeof *team * (size_t)threads);
    for (int i = 0; i < threads; i++) pthread_create(&team[i], NULL, worker, (void *)(intptr_t)i);
    for (int i = 0; i < threads; i++) pthread_join(team[i], NULL);
    printf("%.3f\n", best);
    return 0;
}
