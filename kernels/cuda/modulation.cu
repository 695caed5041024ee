// Adaptive layer normalisation: each batch row has a shift and a scale of its own.
//
// T: the element. M: that of shift and scale. N, LANES, PACKS: as in rms_norm.cu.
//
// Bytes: reads x once, writes y; shifts and scales come from the cache.
//
// compile: -DT=bf16 -DM=bf16 -DN=8 -DLANES=128 -DPACKS=3
// compile: -DT=bf16 -DM=float -DN=8 -DLANES=128 -DPACKS=3
// compile: -DT=bf16 -DM=bf16 -DN=8 -DLANES=16 -DPACKS=1
// compile: -DT=bf16 -DM=bf16 -DN=8 -DLANES=256 -DPACKS=6
// compile: -DT=bf16 -DM=bf16 -DN=1 -DLANES=32 -DPACKS=48
// compile: -DT=f16 -DM=f16 -DN=8 -DLANES=128 -DPACKS=3
// compile: -DT=f16 -DM=float -DN=8 -DLANES=128 -DPACKS=3
// compile: -DT=float -DM=float -DN=4 -DLANES=128 -DPACKS=6
// compile: -DT=float -DM=float -DN=1 -DLANES=256 -DPACKS=48

// The sum over the threads of a row.
__device__ __forceinline__ float row_sum(float x, float *scratch) {
    if constexpr (LANES <= 32) return lanes_sum<LANES>(x);
    else return block_sum(x, scratch);
}

// y = (x - mean) / sqrt(variance + eps) * (1 + scale) + shift of each row; `tokens` rows have one shift and one scale,
// `shift_step` and `scale_step` elements apart. Shared memory: a float a warp.
KERNEL(256) modulated_layer_norm(const T *x, const M *shift, const M *scale, T *y, u32 rows, u32 tokens, u32 width,
                                 u64 shift_step, u64 scale_step, float eps) {
    SHARED(memory);
    float *scratch = (float *)memory;
    u32 row = blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    bool there = row < rows; // the others stay: a warp adds up as a whole
    u32 lane = threadIdx.x % LANES;
    u64 start = (u64)row * width;

    float z[PACKS][N];
    float total = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        Pack<T, N> in;
        if (there && c < width) in = *(const Pack<T, N> *)(x + start + c);
#pragma unroll
        for (int e = 0; e < N; e++) {
            z[k][e] = there && c < width ? to_float(in.at[e]) : 0.0f;
            total += z[k][e];
        }
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
    u32 batch = row / tokens;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        if (there && c < width) {
            float more[N], by[N];
            load_floats<N>(shift + batch * shift_step + c, more);
            load_floats<N>(scale + batch * scale_step + c, by);
            Pack<T, N> out;
#pragma unroll
            for (int e = 0; e < N; e++) set(out.at[e], (z[k][e] - mean) * inverse * (1.0f + by[e]) + more[e]);
            *(Pack<T, N> *)(y + start + c) = out;
        }
    }
}
