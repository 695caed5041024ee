// Layer normalisation of rows, and of the sum of two.
//
// T: the element. N: elements of a pack, a power of two of at most 16 bytes that divides the width. LANES: threads of a
// row, 32 (a warp) or 256 (a block). PACKS: packs of a thread. A row stays in registers between its two sums.
//
// Bytes: reads x, and the residual where there is one, once; writes y, and the sum where there is one.
//
// compile: -DT=bf16 -DN=8 -DLANES=32 -DPACKS=3
// compile: -DT=bf16 -DN=8 -DLANES=32 -DPACKS=5
// compile: -DT=bf16 -DN=8 -DLANES=32 -DPACKS=6
// compile: -DT=bf16 -DN=8 -DLANES=256 -DPACKS=1
// compile: -DT=bf16 -DN=8 -DLANES=256 -DPACKS=6
// compile: -DT=bf16 -DN=1 -DLANES=32 -DPACKS=48
// compile: -DT=f16 -DN=8 -DLANES=32 -DPACKS=5
// compile: -DT=float -DN=4 -DLANES=32 -DPACKS=10
// compile: -DT=float -DN=4 -DLANES=256 -DPACKS=12
// compile: -DT=float -DN=1 -DLANES=256 -DPACKS=48

// The sum over the threads of a row.
__device__ __forceinline__ float row_sum(float x, float *scratch) {
    return LANES == 32 ? warp_sum(x) : block_sum(x, scratch);
}

// y = (z - mean) / sqrt(variance + eps) * weight + bias of each row of z = x, or of z = x + residual, rounded to T,
// which then goes to `sum`. Null `residual` and `sum`: of x alone. Shared memory: a float a warp.
KERNEL(256) layer_norm(const T *x, const T *residual, const float *weight, const float *bias, T *sum, T *y, u64 rows,
                       u32 width, float eps) {
    SHARED(memory);
    float *scratch = (float *)memory;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    if (row >= rows) return; // whole warps; where a row is a block's, none
    u32 lane = threadIdx.x % LANES;
    u64 start = row * width;

    float z[PACKS][N];
    float total = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        Pack<T, N> in;
        if (c < width) in = *(const Pack<T, N> *)(x + start + c);
#pragma unroll
        for (int e = 0; e < N; e++) z[k][e] = c < width ? to_float(in.at[e]) : 0.0f;
    }
    if (residual) {
#pragma unroll
        for (int k = 0; k < PACKS; k++) {
            u32 c = (k * LANES + lane) * N;
            if (c < width) {
                Pack<T, N> in = *(const Pack<T, N> *)(residual + start + c), out;
#pragma unroll
                for (int e = 0; e < N; e++) {
                    set(out.at[e], z[k][e] + to_float(in.at[e]));
                    z[k][e] = to_float(out.at[e]);
                }
                *(Pack<T, N> *)(sum + start + c) = out;
            }
        }
    }
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
#pragma unroll
        for (int e = 0; e < N; e++) total += z[k][e];
    }
    float mean = row_sum(total, scratch) / (float)width;
    float square = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        if ((k * LANES + lane) * N < width) {
#pragma unroll
            for (int e = 0; e < N; e++) square += (z[k][e] - mean) * (z[k][e] - mean);
        }
    }
    float inverse = 1.0f / sqrtf(row_sum(square, scratch) / (float)width + eps);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        if (c < width) {
            Pack<T, N> out;
#pragma unroll
            for (int e = 0; e < N; e++) set(out.at[e], (z[k][e] - mean) * inverse * weight[c + e] + bias[c + e]);
            *(Pack<T, N> *)(y + start + c) = out;
        }
    }
}
