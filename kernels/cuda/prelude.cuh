// What every kernel here builds on: element types, conversions, reductions, asynchronous copies, tensor-core tiles.
//
// Compiled at run time (NVRTC), so it includes nothing. With DARKROOM_EMULATED it is compiled for the CPU instead:
// `emulator/device.h` then gives what the hardware gives here, and the kernels are tested where there is no GPU.
// A kernel uses a GPU's own instructions only through the functions of this file.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// Elements as they lie in memory.
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct e4m3 { u8 bits; };

// N elements that are read or written by one instruction: at most 16 bytes, aligned to their size.
template <class T, int N> struct alignas(sizeof(T) * N) Pack { T at[N]; };

#ifndef DARKROOM_EMULATED

#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
// Memory that a block shares, its size given at launch; aligned for every instruction here.
#define SHARED(name) extern __shared__ __align__(1024) u8 name[]

__device__ __forceinline__ float bits_to_float(u32 bits) { return __uint_as_float(bits); }
__device__ __forceinline__ u32 float_to_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float half_bits_to_float(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
__device__ __forceinline__ u16 float_to_half_bits(float x) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
__device__ __forceinline__ u16 float_to_bf16_bits(float x) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}
// x / (1 + e^y) within a few units in the last place; 0 where e^y is beyond the largest number.
__device__ __forceinline__ float over_one_plus_exp(float x, float y) { return __fdividef(x, 1.0f + __expf(y)); }

// 16 bytes from global to shared memory without going through registers; zeros if `valid` is not set. What was
// started is a group after `copies_end_group`; `copies_wait<n>` returns when all but the last n groups have arrived,
// for this thread: a barrier makes them visible to the others.
__device__ __forceinline__ void copy_16_async(void *shared, const void *global, bool valid) {
    u32 to = (u32)__cvta_generic_to_shared(shared);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Four 8x8 tiles of 16-bit elements from shared memory: lane l gives the address of row l % 8 of tile l / 8 and gets,
// of each tile, elements 2 (l % 4) and the next of row l / 4. The transposed form gets elements of column l / 4.
__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const void *row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(from)
                 : "memory");
}
__device__ __forceinline__ void load_tiles_transposed(u32 (&tiles)[4], const void *row) {
    u32 from = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(from)
                 : "memory");
}

// c += a b on a warp's tensor core, with a 16x16 (row by row), b 16x8 (column by column) and c 16x8 in float. Lane l
// holds, with r = l / 4 and k = 2 (l % 4): of a {r,k..} {r+8,k..} {r,k+8..} {r+8,k+8..}; of b {k..,r} {k+8..,r};
// of c {r,k} {r,k+1} {r+8,k} {r+8,k+1}.
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, bf16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1, f16) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else
#include "device.h"
// Rounded to nearest, ties to even; what is not a number stays so.
__device__ __forceinline__ u16 float_to_bf16_bits(float x) {
    u32 bits = float_to_bits(x);
    return x != x ? (u16)0x7fff : (u16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
__device__ __forceinline__ float over_one_plus_exp(float x, float y) { return x / (1.0f + expf(y)); }
#endif

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return bits_to_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_float(f16 x) { return half_bits_to_float(x.bits); }
// Its seven bits behind the sign, moved to where f16 has the like, are the number divided by 2^8: exponents' biases are
// 7 and 15. Numbers below the normal ones are so in both.
__device__ __forceinline__ float to_float(e4m3 x) {
    u32 size = x.bits & 0x7f, sign = x.bits & 0x80;
    float number = half_bits_to_float((u16)(size << 7 | sign << 8)) * 256.0f;
    return size == 0x7f ? bits_to_float(0x7fc00000) : number;
}

// Rounds to nearest, ties to even; what is not a number stays so.
__device__ __forceinline__ void set(float &to, float x) { to = x; }
__device__ __forceinline__ void set(bf16 &to, float x) { to.bits = float_to_bf16_bits(x); }
__device__ __forceinline__ void set(f16 &to, float x) { to.bits = float_to_half_bits(x); }
// Beyond 448, the largest, it saturates, as cuBLAS and PyTorch's scaled products have it.
__device__ __forceinline__ void set(e4m3 &to, float x) {
    u32 bits = float_to_bits(x);
    u8 sign = (u8)((bits >> 24) & 0x80);
    float size = bits_to_float(bits & 0x7fffffff);
    if (x != x) { to.bits = (u8)(sign | 0x7f); return; }
    if (size >= 464.0f) { to.bits = (u8)(sign | 0x7e); return; }
    if (size < 0.015625f) { // subnormal: steps of 2^-9; adding and taking away 2^14 rounds to them
        float steps = (size + 16384.0f) - 16384.0f;
        to.bits = (u8)(sign | (u8)(steps * 512.0f));
        return;
    }
    u32 rounded = float_to_bits(size) + 0x7ffff + ((float_to_bits(size) >> 20) & 1);
    u32 code = (rounded >> 20) - (120 << 3); // exponent bias 127 becomes 7
    to.bits = (u8)(sign | (code > 0x7e ? 0x7e : code));
}
template <class T> __device__ __forceinline__ T rounded(float x) {
    T to;
    set(to, x);
    return to;
}

// N neighbouring elements, aligned to their size or to 16 bytes, as floats.
template <int N, class T> __device__ __forceinline__ void load_floats(const T *from, float (&to)[N]) {
    const int W = N * sizeof(T) > 16 ? 16 / sizeof(T) : N;
#pragma unroll
    for (int i = 0; i < N; i += W) {
        Pack<T, W> part = *(const Pack<T, W> *)(from + i);
#pragma unroll
        for (int j = 0; j < W; j++) to[i + j] = to_float(part.at[j]);
    }
}

#ifndef DARKROOM_EMULATED
// Two 16-bit elements as a register of a tensor-core tile, the first in the lower half; rounded as by `set`.
template <class T> __device__ __forceinline__ u32 pair(float low, float high);
template <> __device__ __forceinline__ u32 pair<bf16>(float low, float high) {
    u32 both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
template <> __device__ __forceinline__ u32 pair<f16>(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// 2^x within two units in the last place; zero where it would be subnormal.
__device__ __forceinline__ float exp2_fast(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
#else
template <class T> __device__ __forceinline__ u32 pair(float low, float high) {
    return (u32)rounded<T>(low).bits | ((u32)rounded<T>(high).bits << 16);
}
__device__ __forceinline__ float exp2_fast(float x) { return exp2f(x); }
#endif

__device__ __forceinline__ float warp_sum(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
// The sum over each COUNT neighbouring lanes, a power of two of at most 32, in all of them. The whole warp takes part.
template <int COUNT> __device__ __forceinline__ float lanes_sum(float x) {
    for (int lanes = COUNT / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffffu, x, lanes);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int lanes = 16; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, lanes));
    return x;
}
// The sum over a block of whole warps, in every thread; `scratch`: a float for each warp, in shared memory.
__device__ __forceinline__ float block_sum(float x, float *scratch) {
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads(); // the last round's readers are done
    if (threadIdx.x % 32 == 0) scratch[warp] = x;
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < warps; i++) sum += scratch[i];
    return sum;
}

// The same numbers as `darkroom_kernels::Activation`.
enum { IDENTITY = 0, SILU = 1, GELU = 2, QUICK_GELU = 3, GELU_TANH = 4 };
__device__ __forceinline__ float activated(float x, int activation) {
    switch (activation) {
    case SILU: return over_one_plus_exp(x, -x);
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case QUICK_GELU: return over_one_plus_exp(x, -1.702f * x);
    case GELU_TANH: return over_one_plus_exp(x, -1.5957691f * (x + 0.044715f * x * x * x)); // 2 sqrt(2 / pi)
    default: return x;
    }
}
