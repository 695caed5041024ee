// 2-D convolution of channels-last pictures as one matrix product whose left side is never written down ("implicit
// GEMM"): y[m, n] = sum over k of a[m, k] w[n, k], with m a pixel of the output, n an output channel and k a tap of
// the kernel and an input channel. Linear layers are the kernel of one tap.
//
// T: what products are formed of. U: what is stored, and the residual. GATHER: 1 where a tap's channels are no whole
// vectors (8 elements of 16 bits, 4 of 32), which are then read one by one. UPSAMPLE: 1 to convolve the picture of
// twice the height and width whose every 2x2 pixels are one of x. Sums run over k upwards, whatever the tile: an image
// comes out the same to the bit in every batch.
//
// Registers on sm_80 and sm_90a, by pixels and channels of the tile: 128x128: 240 and 244, 128x32: 96 and 96, 64x64: 93
// and 94, or 140 and 128 where it gathers; plain: 57 to 63 on sm_90a. Shared memory: 64, 40, 32 and 8.5 KB.
// spills: a gathering tile keeps up to 24 bytes of its divisions on sm_90a; it is for the first layer of a network.
// compile: T=bf16 U=bf16 BM=128 BN=128 WM=64 WN=64 GATHER=0 UPSAMPLE=0
// compile: T=bf16 U=bf16 BM=128 BN=128 WM=64 WN=64 GATHER=0 UPSAMPLE=1
// compile: T=bf16 U=bf16 BM=128 BN=32 WM=32 WN=32 GATHER=0 UPSAMPLE=0
// compile: T=bf16 U=bf16 BM=64 BN=64 WM=32 WN=32 GATHER=0 UPSAMPLE=0
// compile: T=bf16 U=bf16 BM=64 BN=64 WM=32 WN=32 GATHER=0 UPSAMPLE=1
// compile: T=bf16 U=bf16 BM=64 BN=64 WM=32 WN=32 GATHER=1 UPSAMPLE=0
// compile: T=bf16 U=bf16 BM=64 BN=64 WM=32 WN=32 GATHER=1 UPSAMPLE=1
// compile: T=bf16 U=float BM=128 BN=128 WM=64 WN=64 GATHER=0 UPSAMPLE=0
// compile: T=f16 U=f16 BM=128 BN=128 WM=64 WN=64 GATHER=0 UPSAMPLE=0
// compile: T=f16 U=f16 BM=128 BN=32 WM=32 WN=32 GATHER=0 UPSAMPLE=0
// compile: T=f16 U=f16 BM=64 BN=64 WM=32 WN=32 GATHER=0 UPSAMPLE=0
// compile: T=f16 U=f16 BM=64 BN=64 WM=32 WN=32 GATHER=1 UPSAMPLE=0
// compile: T=float U=float PLAIN=1 GATHER=0 UPSAMPLE=0
// compile: T=float U=float PLAIN=1 GATHER=1 UPSAMPLE=0
// compile: T=float U=float PLAIN=1 GATHER=0 UPSAMPLE=1
// compile: T=float U=bf16 PLAIN=1 GATHER=0 UPSAMPLE=0
// compile: T=bf16 U=bf16 FINISH=1 GATHER=0 UPSAMPLE=0

// The picture and how the kernel moves over it.
struct Geometry {
    int height, width, channels;                // of x, before upsampling
    int out_height, out_width, out;             // of y
    int kernel_height, kernel_width, stride, top, left;
    int rows;                                   // pixels of y, of the whole batch
    int depth;                                  // kernel_height * kernel_width * channels
    int bias_rows;                              // 1, or the batch: a bias for each sample
};

// Where a pixel of y begins to read: its sample, and the place of the kernel's first tap, which padding may put outside.
struct Pixel {
    const T *sample;
    int row, column;
    bool inside; // of y
};

__device__ __forceinline__ Pixel pixel_of(const T *x, const Geometry &g, int m) {
    Pixel p;
    p.inside = m < g.rows;
    int at = p.inside ? m : 0;
    int area = g.out_height * g.out_width;
    int sample = at / area, rest = at % area;
    p.sample = x + (i64)sample * g.height * g.width * g.channels;
    p.row = rest / g.out_width * g.stride - g.top;
    p.column = rest % g.out_width * g.stride - g.left;
    return p;
}

// Where a pixel's element of a tap lies; `valid` is false in the padding.
__device__ __forceinline__ const T *element_of(const Pixel &p, const Geometry &g, int ky, int kx, int channel, bool &valid) {
    int row = p.row + ky, column = p.column + kx;
#if UPSAMPLE
    valid = valid && p.inside && (u32)row < 2u * g.height && (u32)column < 2u * g.width;
    row >>= 1;
    column >>= 1;
#else
    valid = valid && p.inside && (u32)row < (u32)g.height && (u32)column < (u32)g.width;
#endif
    return valid ? p.sample + (i64)(row * g.width + column) * g.channels + channel : p.sample;
}

// One element, found by its place in the sum.
__device__ __forceinline__ T gathered(const Pixel &p, const Geometry &g, int k) {
    int tap = k / g.channels, ky = tap / g.kernel_width;
    bool valid = k < g.depth;
    const T *from = element_of(p, g, ky, tap - ky * g.kernel_width, k - tap * g.channels, valid);
    return valid ? *from : rounded<T>(0.0f);
}

// y = activation(sum + bias + residual) for N neighbouring channels of a pixel. Either of the last two may be null.
template <int N>
__device__ __forceinline__ void store(const float (&sums)[N], const float *bias, const U *residual, U *y, const Geometry &g,
                                      int activation, int m, int n) {
    if (m >= g.rows || n >= g.out) return;
    i64 at = (i64)m * g.out + n;
    if (bias && g.bias_rows > 1) bias += (i64)(m / (g.out_height * g.out_width)) * g.out;
    if (g.out % N == 0) {
        const int V = N * sizeof(U) > 16 ? 16 / (int)sizeof(U) : N;
        for (int part = 0; part < N; part += V) {
            Pack<U, V> before, after;
            if (residual) before = *(const Pack<U, V> *)(residual + at + part);
            for (int i = 0; i < V; i++) {
                float sum = sums[part + i] + (bias ? bias[n + part + i] : 0.0f);
                if (residual) sum += to_float(before.at[i]);
                set(after.at[i], activated(sum, activation));
            }
            *(Pack<U, V> *)(y + at + part) = after;
        }
        return;
    }
    for (int i = 0; i < N && n + i < g.out; i++) {
        float sum = sums[i] + (bias ? bias[n + i] : 0.0f);
        if (residual) sum += to_float(residual[at + i]);
        set(y[at + i], activated(sum, activation));
    }
}

#ifdef FINISH

// y = activation(y + bias + residual), where a library made the sums: 8 channels, which divide `out`, a thread.
KERNEL(256) finish(const float *bias, const U *residual, U *y, Geometry g, int activation) {
    u64 first = ((u64)blockIdx.x * 256 + threadIdx.x) * 8;
    if (first >= (u64)g.rows * g.out) return;
    float sums[8];
    const int V = 16 / sizeof(U);
    for (int part = 0; part < 8; part += V) {
        Pack<U, V> sum = *(const Pack<U, V> *)(y + first + part);
        for (int i = 0; i < V; i++) sums[part + i] = to_float(sum.at[i]);
    }
    store(sums, bias, residual, y, g, activation, (int)(first / g.out), (int)(first % g.out));
}

#elif !defined(PLAIN)

// Tensor cores. A block computes BM pixels x BN channels, its warps WM x WN each. Of every BK terms of the sum both
// sides lie in shared memory, STAGES times over: while one is multiplied the next ones arrive.
#define BK 32
#define STAGES 4
#define THREADS (BM / WM * (BN / WN) * 32)

// 16-byte chunks of a row of BK elements, and rows that the block fetches at once.
#define CHUNKS (BK / 8)
#define ROWS_AT_ONCE (THREADS / CHUNKS)

// Where a chunk of a row lies, in bytes: swizzled, so that the eight rows of a tile lie in all 32 banks.
__device__ __forceinline__ int place(int row, int chunk) { return row * (BK * 2) + ((chunk ^ (row >> 1)) & (CHUNKS - 1)) * 16; }

KERNEL(THREADS) convolve(const T *x, const T *w, const float *bias, const U *residual, U *y, Geometry g, int activation) {
    SHARED(shared);
    const int STAGE = (BM + BN) * BK * 2;
    int tiles_n = (g.out + BN - 1) / BN;
    int m0 = (int)(blockIdx.x / tiles_n) * BM, n0 = (int)(blockIdx.x % tiles_n) * BN;
    int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

    // What this thread fetches: one chunk of some rows of each side.
    int chunk = thread % CHUNKS, row = thread / CHUNKS;
    Pixel pixels[BM / ROWS_AT_ONCE];
#pragma unroll
    for (int i = 0; i < BM / ROWS_AT_ONCE; i++) pixels[i] = pixel_of(x, g, m0 + row + i * ROWS_AT_ONCE);
    const T *filters = w + (i64)(n0 + row) * g.depth;
    int k = chunk * 8, channel = k, ky = 0, kx = 0; // the next chunk's place in the sum, and its tap
    auto next_tap = [&]() {
        while (channel >= g.channels) {
            channel -= g.channels;
            if (++kx == g.kernel_width) {
                kx = 0;
                ky++;
            }
        }
    };
    if (!GATHER) next_tap();

    auto fetch = [&](int stage) {
        u8 *a = shared + stage * STAGE, *b = a + BM * BK * 2;
#pragma unroll
        for (int i = 0; i < BM / ROWS_AT_ONCE; i++) {
            u8 *to = a + place(row + i * ROWS_AT_ONCE, chunk);
#if GATHER
            Pack<T, 8> pack;
            for (int j = 0; j < 8; j++) pack.at[j] = gathered(pixels[i], g, k + j);
            *(Pack<T, 8> *)to = pack;
#else
            bool valid = k < g.depth;
            const T *from = element_of(pixels[i], g, ky, kx, channel, valid);
            copy_16_async(to, from, valid);
#endif
        }
#pragma unroll
        for (int i = 0; i < BN / ROWS_AT_ONCE; i++) {
            u8 *to = b + place(row + i * ROWS_AT_ONCE, chunk);
            bool valid = n0 + row + i * ROWS_AT_ONCE < g.out;
            const T *from = filters + (i64)i * ROWS_AT_ONCE * g.depth + k;
#if GATHER
            Pack<T, 8> pack;
            for (int j = 0; j < 8; j++) pack.at[j] = valid && k + j < g.depth ? from[j] : rounded<T>(0.0f);
            *(Pack<T, 8> *)to = pack;
#else
            valid = valid && k < g.depth;
            copy_16_async(to, valid ? from : w, valid);
#endif
        }
        k += BK;
        channel += BK;
        if (!GATHER) next_tap();
    };

    float sums[WM / 16][WN / 8][4] = {};
    int warp_m = warp % (BM / WM) * WM, warp_n = warp / (BM / WM) * WN;
    // The rows and chunks of 8x8 tiles whose addresses this lane gives.
    int a_row = warp_m + lane % 16, a_chunk = lane / 16;
    int b_row = warp_n + lane % 8 + lane / 16 * 8, b_chunk = lane / 8 % 2;

    int steps = (g.depth + BK - 1) / BK;
    for (int stage = 0; stage < STAGES - 1; stage++) {
        if (stage < steps) fetch(stage);
        copies_end_group();
    }
    for (int step = 0; step < steps; step++) {
        copies_wait<STAGES - 2>();
        __syncthreads(); // what all threads fetched for this step is there, and the last step's is done with
        if (step + STAGES - 1 < steps) fetch((step + STAGES - 1) % STAGES);
        copies_end_group();
        const u8 *a = shared + step % STAGES * STAGE, *b = a + BM * BK * 2;
#pragma unroll
        for (int part = 0; part < BK / 16; part++) {
            u32 left[WM / 16][4], right[WN / 16][4];
#pragma unroll
            for (int i = 0; i < WM / 16; i++) load_tiles(left[i], a + place(a_row + i * 16, part * 2 + a_chunk));
#pragma unroll
            for (int j = 0; j < WN / 16; j++) load_tiles(right[j], b + place(b_row + j * 16, part * 2 + b_chunk));
#pragma unroll
            for (int i = 0; i < WM / 16; i++)
#pragma unroll
                for (int j = 0; j < WN / 8; j++)
                    multiply_add(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1], T{});
        }
    }

    // Through shared memory, 16 rows of each warp at a time, so that whole vectors of a row are stored.
    const int WIDTH = WN + 8;
    float *slab = (float *)shared + warp * 16 * WIDTH;
    copies_wait<0>();
#pragma unroll
    for (int i = 0; i < WM / 16; i++) {
        __syncthreads(); // the last readers are done
#pragma unroll
        for (int j = 0; j < WN / 8; j++) {
            float *at = slab + lane / 4 * WIDTH + j * 8 + lane % 4 * 2;
            Pack<float, 2> upper, lower;
            upper.at[0] = sums[i][j][0];
            upper.at[1] = sums[i][j][1];
            lower.at[0] = sums[i][j][2];
            lower.at[1] = sums[i][j][3];
            *(Pack<float, 2> *)at = upper;
            *(Pack<float, 2> *)(at + 8 * WIDTH) = lower;
        }
        __syncthreads();
#pragma unroll
        for (int item = lane; item < 16 * WN / 8; item += 32) {
            int r = item / (WN / 8), column = item % (WN / 8) * 8;
            float eight[8];
            for (int half = 0; half < 2; half++) {
                Pack<float, 4> four = *(const Pack<float, 4> *)(slab + r * WIDTH + column + half * 4);
                for (int e = 0; e < 4; e++) eight[half * 4 + e] = four.at[e];
            }
            store(eight, bias, residual, y, g, activation, m0 + warp_m + i * 16 + r, n0 + warp_n + column);
        }
    }
}

#else

// Without tensor cores, in f32: a block of 256 threads computes 64 pixels x 64 channels, each thread 4x4.
KERNEL(256) convolve_plain(const T *x, const T *w, const float *bias, const U *residual, U *y, Geometry g, int activation) {
    SHARED(shared);
    const int BM = 64, BN = 64, BK = 16, PITCH = BM + 4;
    float *a = (float *)shared, *b = a + BK * PITCH; // [BK][PITCH] each
    int tiles_n = (g.out + BN - 1) / BN;
    int m0 = (int)(blockIdx.x / tiles_n) * BM, n0 = (int)(blockIdx.x % tiles_n) * BN;
    int thread = threadIdx.x;
    int row = thread / 4, part = thread % 4 * 4; // fetches 4 terms of a row of each side
    Pixel p = pixel_of(x, g, m0 + row);
    bool filter_inside = n0 + row < g.out;
    const T *filter = w + (i64)(filter_inside ? n0 + row : 0) * g.depth;

    auto fetch = [&](int k, float (&left)[4], float (&right)[4]) {
#if GATHER
        for (int i = 0; i < 4; i++) {
            left[i] = to_float(gathered(p, g, k + i));
            right[i] = filter_inside && k + i < g.depth ? to_float(filter[k + i]) : 0.0f;
        }
#else
        bool valid = k < g.depth;
        int tap = k / g.channels, ky = tap / g.kernel_width;
        const T *from = element_of(p, g, ky, tap - ky * g.kernel_width, k - tap * g.channels, valid);
        Pack<T, 4> l = {}, r = {};
        if (valid) l = *(const Pack<T, 4> *)from;
        if (filter_inside && k < g.depth) r = *(const Pack<T, 4> *)(filter + k);
        for (int i = 0; i < 4; i++) {
            left[i] = to_float(l.at[i]);
            right[i] = to_float(r.at[i]);
        }
#endif
    };

    float sums[4][4] = {}, left[4], right[4];
    int m = thread / 16 * 4, n = thread % 16 * 4;
    fetch(part, left, right);
    for (int k = 0; k < g.depth; k += BK) {
        __syncthreads(); // the last step's readers are done
        for (int i = 0; i < 4; i++) {
            a[(part + i) * PITCH + row] = left[i];
            b[(part + i) * PITCH + row] = right[i];
        }
        __syncthreads();
        if (k + BK < g.depth) fetch(k + BK + part, left, right);
#pragma unroll
        for (int at = 0; at < BK; at++) {
            Pack<float, 4> l = *(const Pack<float, 4> *)(a + at * PITCH + m);
            Pack<float, 4> r = *(const Pack<float, 4> *)(b + at * PITCH + n);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sums[i][j] += l.at[i] * r.at[j];
        }
    }
    for (int i = 0; i < 4; i++) store(sums[i], bias, residual, y, g, activation, m0 + m + i, n0 + n);
}

#endif
