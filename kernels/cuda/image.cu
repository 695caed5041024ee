// Pictures as bytes.
//
// T: the element of what the decoder gives.
//
// compile: -DT=bf16
// compile: -DT=f16
// compile: -DT=float

// A decoder's value in -1..1 as a byte, cut off as ComfyUI's SaveImage does it: trunc(255 clamp((x + 1) / 2, 0, 1)).
// What is not a number is 0.
__device__ __forceinline__ u8 byte_of(float x) {
    float unit = (x + 1.0f) * 0.5f;
    return unit > 0.0f ? (u8)(255.0f * fminf(unit, 1.0f)) : (u8)0;
}

// `length` values of x to bytes. Reads x, writes a byte a value.
KERNEL(256) to_bytes(const T *x, u8 *y, u64 length) {
    const int N = 16 / sizeof(T);
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length) {
        Pack<T, N> in = *(const Pack<T, N> *)(x + first);
        Pack<u8, N> out;
        for (int i = 0; i < N; i++) out.at[i] = byte_of(to_float(in.at[i]));
        *(Pack<u8, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) y[i] = byte_of(to_float(x[i]));
    }
}
