// Rounding to 8-bit e4m3 with scales found on the way: codes = x / scale with scale = largest / 448, so that the largest
// of a row, or of all, becomes the largest code. And back. T: the element. Rows that are rounded are whole packs of 16.
// compile: -DT=bf16
// compile: -DT=f16
// compile: -DT=float

// Elements of a 16-byte read.
const int N = 16 / sizeof(T);

// What to multiply by, and what the codes are worth. Of nothing but zeros, or nearly, both are 1.
__device__ __forceinline__ float inverse_of(float largest) { return largest < 1e-30f ? 1.0f : 448.0f / largest; }
__device__ __forceinline__ float scale_of(float largest) { return largest < 1e-30f ? 1.0f : largest / 448.0f; }

__device__ __forceinline__ float largest_of(const Pack<T, N> &pack) {
    float largest = 0;
    for (int i = 0; i < N; i++) largest = fmaxf(largest, fabsf(to_float(pack.at[i])));
    return largest;
}
__device__ __forceinline__ Pack<e4m3, N> coded(const Pack<T, N> &pack, float inverse) {
    Pack<e4m3, N> codes;
    for (int i = 0; i < N; i++) set(codes.at[i], to_float(pack.at[i]) * inverse);
    return codes;
}

// A scale for each row: a warp takes one, and reads it again from the cache to round it.
KERNEL(256) quantize_rows(const T *__restrict__ x, e4m3 *__restrict__ codes, float *scales, int rows, int width) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const Pack<T, N> *from = (const Pack<T, N> *)(x + (u64)row * width);
    Pack<e4m3, N> *to = (Pack<e4m3, N> *)(codes + (u64)row * width);
    int packs = width / N;
    float largest = 0;
#pragma unroll 4
    for (int i = lane; i < packs; i += 32) largest = fmaxf(largest, largest_of(from[i]));
    largest = warp_max(largest);
    float inverse = inverse_of(largest);
#pragma unroll 4
    for (int i = lane; i < packs; i += 32) to[i] = coded(from[i], inverse);
    if (lane == 0) scales[row] = scale_of(largest);
}

// The largest size in each block's part of x, `packs` packs in all.
KERNEL(256) largest_parts(const T *x, float *parts, u64 packs) {
    const Pack<T, N> *from = (const Pack<T, N> *)x;
    SHARED(shared);
    float *scratch = (float *)shared, largest = 0;
#pragma unroll 4
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < packs; i += (u64)gridDim.x * 256)
        largest = fmaxf(largest, largest_of(from[i]));
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < 8; i++) largest = fmaxf(largest, scratch[i]);
        parts[blockIdx.x] = largest;
    }
}

// One scale for all, from the parts of `largest_parts`; every block finds it for itself.
KERNEL(256) quantize_all(const T *__restrict__ x, e4m3 *__restrict__ codes, float *scale, const float *parts, int count, u64 packs) {
    SHARED(shared);
    float *scratch = (float *)shared, largest = 0;
    for (int i = threadIdx.x; i < count; i += 256) largest = fmaxf(largest, parts[i]);
    largest = warp_max(largest);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = largest;
    __syncthreads();
    for (int i = 0; i < 8; i++) largest = fmaxf(largest, scratch[i]);
    float inverse = inverse_of(largest);
    const Pack<T, N> *from = (const Pack<T, N> *)x;
    Pack<e4m3, N> *to = (Pack<e4m3, N> *)codes;
#pragma unroll 4
    for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < packs; i += (u64)gridDim.x * 256) to[i] = coded(from[i], inverse);
    if (blockIdx.x == 0 && threadIdx.x == 0) *scale = scale_of(largest);
}

// y = codes * scale, `length` codes in rows of `width` with a scale each; one scale for all where `width` is 0. Reads the
// codes, writes y.
KERNEL(256) widen(const e4m3 *__restrict__ codes, const float *__restrict__ scales, T *__restrict__ y, u64 length, u32 width) {
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length && width % N == 0) {
        Pack<e4m3, N> in = *(const Pack<e4m3, N> *)(codes + first);
        float scale = scales[width ? first / width : 0];
        Pack<T, N> out;
        for (int i = 0; i < N; i++) set(out.at[i], to_float(in.at[i]) * scale);
        *(Pack<T, N> *)(y + first) = out;
    } else {
        u64 end = first + N < length ? first + N : length;
        for (u64 i = first; i < end; i++) set(y[i], to_float(codes[i]) * scales[width ? i / width : 0]);
    }
}
