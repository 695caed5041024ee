// Root-mean-square normalisation of rows.
//
// T: the element. N: elements of a pack, a power of two of at most 16 bytes that divides the width. LANES: threads of a
// row, a power of two: of at most 32 several rows share a warp, of more a row has a block. PACKS: packs of a thread. A row
// stays in registers between its sum and its end.
//
// Bytes: reads x once, writes y.
//
// compile: -DT=bf16 -DN=8 -DLANES=16 -DPACKS=1
// compile: -DT=bf16 -DN=8 -DLANES=32 -DPACKS=2
// compile: -DT=bf16 -DN=8 -DLANES=128 -DPACKS=4
// compile: -DT=bf16 -DN=8 -DLANES=256 -DPACKS=6
// compile: -DT=bf16 -DN=1 -DLANES=32 -DPACKS=48
// compile: -DT=f16 -DN=8 -DLANES=16 -DPACKS=1
// compile: -DT=f16 -DN=8 -DLANES=128 -DPACKS=4
// compile: -DT=float -DN=4 -DLANES=32 -DPACKS=1
// compile: -DT=float -DN=4 -DLANES=128 -DPACKS=7
// compile: -DT=float -DN=1 -DLANES=1 -DPACKS=1
// compile: -DT=float -DN=1 -DLANES=256 -DPACKS=48

// The sum over the threads of a row.
__device__ __forceinline__ float row_sum(float x, float *scratch) {
    if constexpr (LANES <= 32) return lanes_sum<LANES>(x);
    else return block_sum(x, scratch);
}

// y = activation(x / sqrt(mean(x^2) + eps) * weight) of each row. Shared memory: a float a warp.
KERNEL(256) rms_norm(const T *x, const float *weight, T *y, u64 rows, u32 width, float eps, int activation) {
    SHARED(memory);
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    bool there = row < rows; // the others stay: a warp adds up as a whole
    u32 lane = threadIdx.x % LANES;
    u64 start = row * width;

    float z[PACKS][N];
    float square = 0;
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        Pack<T, N> in;
        if (there && c < width) in = *(const Pack<T, N> *)(x + start + c);
#pragma unroll
        for (int e = 0; e < N; e++) {
            z[k][e] = there && c < width ? to_float(in.at[e]) : 0.0f;
            square += z[k][e] * z[k][e];
        }
    }
    float inverse = 1.0f / sqrtf(row_sum(square, (float *)memory) / (float)width + eps);
#pragma unroll
    for (int k = 0; k < PACKS; k++) {
        u32 c = (k * LANES + lane) * N;
        if (there && c < width) {
            float by[N];
            load_floats<N>(weight + c, by);
            Pack<T, N> out;
#pragma unroll
            for (int e = 0; e < N; e++) set(out.at[e], activated(z[k][e] * inverse * by[e], activation));
            *(Pack<T, N> *)(y + start + c) = out;
        }
    }
}
