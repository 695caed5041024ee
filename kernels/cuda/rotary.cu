// Rotary position embedding: pairs of a head's numbers turned by angles that all heads share.
//
// T: the element. N: elements of a pack, a power of two of at most 16 bytes; it divides a head, or half of one, and is
// even where pairs lie side by side. A thread has one pack, or the two of its pairs.
//
// compile: -DT=bf16 -DN=8
// compile: -DT=bf16 -DN=4
// compile: -DT=bf16 -DN=2
// compile: -DT=f16 -DN=8
// compile: -DT=float -DN=4
// compile: -DT=float -DN=2
// compile: -DT=float -DN=1

// Row blockIdx.x is a token's; x begins at its batch row's and its token's steps, y is dense. cos, sin: [tokens, half].
// `columns`: threads of a row. Both read x and write y; angles come from the cache.

#if N > 1
// Pairs of numbers 2i and 2i + 1.
KERNEL(256) rotate_adjacent(const T *x, const float *cos, const float *sin, T *y, u64 batch_step, u64 token_step, u32 tokens,
                            u32 columns, u32 half) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u32 batch = blockIdx.x / tokens, token = blockIdx.x - batch * tokens;
    const T *from = x + batch * batch_step + token * token_step;
    u32 pair = column * (N / 2) % half;
    Pack<T, N> in = ((const Pack<T, N> *)from)[column], out;
    float c[N / 2], s[N / 2];
    load_floats<N / 2>(cos + (u64)token * half + pair, c);
    load_floats<N / 2>(sin + (u64)token * half + pair, s);
    for (int i = 0; i < N / 2; i++) {
        float a = to_float(in.at[2 * i]), b = to_float(in.at[2 * i + 1]);
        set(out.at[2 * i], a * c[i] - b * s[i]);
        set(out.at[2 * i + 1], b * c[i] + a * s[i]);
    }
    ((Pack<T, N> *)y)[(u64)blockIdx.x * columns + column] = out;
}
#endif

// Pairs of numbers i and i + half.
KERNEL(256) rotate_halves(const T *x, const float *cos, const float *sin, T *y, u64 batch_step, u64 token_step, u32 tokens,
                          u32 columns, u32 half) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u32 batch = blockIdx.x / tokens, token = blockIdx.x - batch * tokens;
    const T *from = x + batch * batch_step + token * token_step;
    u32 head = column / (half / N), pair = (column - head * (half / N)) * N;
    u64 first = (u64)head * 2 * half + pair;
    Pack<T, N> one = *(const Pack<T, N> *)(from + first), other = *(const Pack<T, N> *)(from + first + half), low, high;
    float c[N], s[N];
    load_floats<N>(cos + (u64)token * half + pair, c);
    load_floats<N>(sin + (u64)token * half + pair, s);
    for (int i = 0; i < N; i++) {
        float a = to_float(one.at[i]), b = to_float(other.at[i]);
        set(low.at[i], a * c[i] - b * s[i]);
        set(high.at[i], b * c[i] + a * s[i]);
    }
    T *to = y + (u64)blockIdx.x * columns * 2 * N + first;
    *(Pack<T, N> *)to = low;
    *(Pack<T, N> *)(to + half) = high;
}
