// Operations of each element on its own. T: the element (`-DT=bf16`).

// y = activation(x), `length` elements.
KERNEL(256) activate(const T *x, T *y, u64 length, int activation) {
    const int N = 16 / sizeof(T);
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length) {
        Pack<T, N> in = *(const Pack<T, N> *)(x + first), out;
        for (int i = 0; i < N; i++) set(out.at[i], activated(to_float(in.at[i]), activation));
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(y[i], activated(to_float(x[i]), activation));
    }
}
