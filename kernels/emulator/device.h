// What a kernel sees of a GPU, on a CPU. `cuda/prelude.cuh` includes this in place of the hardware's instructions.
//
// A thread of a block is a fiber (`fiber.cpp`). Where threads must meet, at a barrier or in an operation of a warp, it
// waits for the others as on a card. An operation of a warp is done by its last lane for all of them, from what each
// left: the layouts are those of PTX's `mma.m16n8k16` and `ldmatrix`.
#pragma once

#include "device_types.h"
#include "half.h"
#include <math.h>

// Given by the emulator. The thread stays the same for as long as a kernel's function runs, so it is asked for once.
extern "C" {
emulated::Thread *darkroom_emulated_thread() __attribute__((const));
void darkroom_emulated_block_barrier();
// Waits until all lanes in `mask` are here; the last calls `together` with what each of 32 lanes brought (null: absent).
void darkroom_emulated_warp(unsigned mask, void (*together)(void *const *lanes), void *mine);
void darkroom_emulated_copy_16(void *shared, const void *global, bool valid);
void darkroom_emulated_copies_end_group();
void darkroom_emulated_copies_wait(int groups_left);
[[noreturn]] void darkroom_emulated_fail(const char *what);
}

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// One of each of these a system thread, which runs one block at a time; the emulator sets them to NaN for each block.
#define __shared__ static thread_local
// The compiler of kernels finds this mark after preprocessing, and makes the kernel's entry.
#define KERNEL(threads) extern "C" [[darkroom::kernel(threads)]] void
#define SHARED(name) u8 *const name = (u8 *)darkroom_emulated_thread()->shared

#define threadIdx (darkroom_emulated_thread()->thread)
#define blockIdx (darkroom_emulated_thread()->block)
#define blockDim (darkroom_emulated_thread()->block_size)
#define gridDim (darkroom_emulated_thread()->grid_size)
#define warpSize 32

// Barriers and fences.
inline void __syncthreads() { darkroom_emulated_block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    darkroom_emulated_warp(mask, [](void *const *) {}, (void *)1);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Shuffles and votes.
namespace emulated {
template <class T> struct Shuffle {
    T mine, got;
    unsigned from;
    static void together(void *const *lanes) {
        for (int i = 0; i < 32; i++) {
            auto *lane = (Shuffle *)lanes[i];
            if (!lane) continue;
            auto *source = (Shuffle *)lanes[lane->from];
            if (source) lane->got = source->mine;
            else memset(&lane->got, 0xff, sizeof(T)); // undefined on a card
        }
    }
};
template <class T> T shuffle(unsigned mask, T mine, unsigned from) {
    Shuffle<T> s{mine, mine, from};
    darkroom_emulated_warp(mask, Shuffle<T>::together, &s);
    return s.got;
}
struct Vote {
    bool mine;
    unsigned all;
    static void together(void *const *lanes) {
        unsigned all = 0;
        for (int i = 0; i < 32; i++) all |= (unsigned)(lanes[i] && ((Vote *)lanes[i])->mine) << i;
        for (int i = 0; i < 32; i++) if (lanes[i]) ((Vote *)lanes[i])->all = all;
    }
};
} // namespace emulated
template <class T> T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
    unsigned lane = darkroom_emulated_thread()->lane;
    return emulated::shuffle(mask, x, (lane & ~(width - 1)) | ((unsigned)from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T x, int lanes, int width = 32) {
    unsigned lane = darkroom_emulated_thread()->lane, from = lane ^ (unsigned)lanes;
    return emulated::shuffle(mask, x, from / width > lane / width ? lane : from);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned lanes, int width = 32) {
    unsigned lane = darkroom_emulated_thread()->lane, from = lane + lanes;
    return emulated::shuffle(mask, x, from / width != lane / width ? lane : from);
}
template <class T> T __shfl_up_sync(unsigned mask, T x, unsigned lanes, int width = 32) {
    unsigned lane = darkroom_emulated_thread()->lane;
    return emulated::shuffle(mask, x, lane % width < lanes ? lane : lane - lanes);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
    emulated::Vote v{vote, 0};
    darkroom_emulated_warp(mask, emulated::Vote::together, &v);
    return v.all;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline bool __all_sync(unsigned mask, bool vote) { return __ballot_sync(mask, !vote) == 0; }

// Atomics: also between blocks, which may run on several processors.
template <class T> T atomicAdd(T *at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(at, &old, (T)(old + x), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}
inline float atomicAdd(float *at, float x) {
    unsigned old = __atomic_load_n((unsigned *)at, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n((unsigned *)at, &old, emulated::bits_of_float(emulated::float_of_bits(old) + x),
                                        true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return emulated::float_of_bits(old);
}
template <class T> T atomicMax(T *at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (old < x && !__atomic_compare_exchange_n(at, &old, x, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}
template <class T> T atomicMin(T *at, T x) {
    T old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (x < old && !__atomic_compare_exchange_n(at, &old, x, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
    return old;
}
template <class T> T atomicExch(T *at, T x) { return __atomic_exchange_n(at, x, __ATOMIC_SEQ_CST); }
template <class T> T atomicOr(T *at, T x) { return __atomic_fetch_or(at, x, __ATOMIC_SEQ_CST); }
template <class T> T atomicCAS(T *at, T expected, T x) {
    __atomic_compare_exchange_n(at, &expected, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return expected;
}

// Arithmetic that CUDA has and C has not.
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fadd_rn(float x, float y) { volatile float sum = x + y; return sum; }
inline float __fsub_rn(float x, float y) { volatile float difference = x - y; return difference; }
inline float __fmul_rn(float x, float y) { volatile float product = x * y; return product; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __saturatef(float x) { return x >= 0.0f ? (x > 1.0f ? 1.0f : x) : 0.0f; }
inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline unsigned __float_as_uint(float x) { return emulated::bits_of_float(x); }
inline float __uint_as_float(unsigned bits) { return emulated::float_of_bits(bits); }
inline int __float_as_int(float x) { return (int)emulated::bits_of_float(x); }
inline float __int_as_float(int bits) { return emulated::float_of_bits((unsigned)bits); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((unsigned long long)x * y >> 32); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
template <class T> T __ldg(const T *at) { return *at; }
template <class A, class B> constexpr auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class A, class B> constexpr auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

// What `prelude.cuh` gives on a card by instructions of PTX.
inline float bits_to_float(u32 bits) { return emulated::float_of_bits(bits); }
inline u32 float_to_bits(float x) { return emulated::bits_of_float(x); }
inline float half_bits_to_float(u16 bits) { return emulated::float_of_half(bits); }
inline u16 float_to_half_bits(float x) { return emulated::half_of_float(x); }

// Until a wait asks for its group, what is copied is not there: NaN is.
inline void copy_16_async(void *shared, const void *global, bool valid) {
    darkroom_emulated_copy_16(shared, global, valid);
}
inline void copies_end_group() { darkroom_emulated_copies_end_group(); }
template <int N> void copies_wait() { darkroom_emulated_copies_wait(N); }

namespace emulated {
inline void require_whole_warp(void *const *lanes) {
    for (int i = 0; i < 32; i++) if (!lanes[i]) darkroom_emulated_fail("tiles need all 32 lanes of a warp");
}
template <bool transposed> struct LoadTiles {
    const void *row;
    u32 *tiles;
    static void together(void *const *lanes) {
        require_whole_warp(lanes);
        auto lane = [&](int i) { return (LoadTiles *)lanes[i]; };
        for (int i = 0; i < 32; i++)
            if ((uintptr_t)lane(i)->row % 16) darkroom_emulated_fail("the row of a tile is not aligned to 16 bytes");
        for (int i = 0; i < 32; i++)
            for (int t = 0; t < 4; t++) {
                auto element = [&](int row, int column) { return (u32)((const u16 *)lane(8 * t + row)->row)[column]; };
                int major = i / 4, minor = 2 * (i % 4);
                lane(i)->tiles[t] = transposed ? element(minor, major) | element(minor + 1, major) << 16
                                               : element(major, minor) | element(major, minor + 1) << 16;
            }
    }
};
inline float element_of_bits(u16 bits, bf16) { return float_of_bits((u32)bits << 16); }
inline float element_of_bits(u16 bits, f16) { return float_of_half(bits); }
template <class T> struct MultiplyAdd {
    float *c;
    const u32 *a;
    u32 b[2];
    static void together(void *const *lanes) {
        require_whole_warp(lanes);
        float a[16][16], b[8][16]; // b by columns
        for (int i = 0; i < 32; i++) {
            auto *lane = (MultiplyAdd *)lanes[i];
            int r = i / 4, k = 2 * (i % 4);
            for (int half = 0; half < 2; half++) {
                auto x = [&](u32 pair) { return element_of_bits((u16)(pair >> 16 * half), T{}); };
                a[r][k + half] = x(lane->a[0]);
                a[r + 8][k + half] = x(lane->a[1]);
                a[r][k + 8 + half] = x(lane->a[2]);
                a[r + 8][k + 8 + half] = x(lane->a[3]);
                b[r][k + half] = x(lane->b[0]);
                b[r][k + 8 + half] = x(lane->b[1]);
            }
        }
        for (int i = 0; i < 32; i++) {
            auto *lane = (MultiplyAdd *)lanes[i];
            for (int j = 0; j < 4; j++) {
                const float *row = a[i / 4 + (j >= 2 ? 8 : 0)], *column = b[2 * (i % 4) + j % 2];
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += row[k] * column[k];
                lane->c[j] += sum;
            }
        }
    }
};
} // namespace emulated
inline void load_tiles(u32 (&tiles)[4], const void *row) {
    emulated::LoadTiles<false> mine{row, tiles};
    darkroom_emulated_warp(0xffffffffu, emulated::LoadTiles<false>::together, &mine);
}
inline void load_tiles_transposed(u32 (&tiles)[4], const void *row) {
    emulated::LoadTiles<true> mine{row, tiles};
    darkroom_emulated_warp(0xffffffffu, emulated::LoadTiles<true>::together, &mine);
}
template <class T> void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, T) {
    emulated::MultiplyAdd<T> mine{c, a, {b0, b1}};
    darkroom_emulated_warp(0xffffffffu, emulated::MultiplyAdd<T>::together, &mine);
}
