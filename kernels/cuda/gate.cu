// Sums of which one side is gated, each batch row by a gate of its own.
//
// T: the element. M: that of gates. N: elements of a pack, a power of two of at most 16 bytes that divides a row. A thread
// has one pack.
//
// compile: -DT=bf16 -DM=bf16 -DN=8
// compile: -DT=bf16 -DM=float -DN=8
// compile: -DT=bf16 -DM=bf16 -DN=1
// compile: -DT=f16 -DM=f16 -DN=8
// compile: -DT=f16 -DM=float -DN=8
// compile: -DT=float -DM=float -DN=4
// compile: -DT=float -DM=float -DN=1

// y = a + gate * b, rows of `columns` packs, one a blockIdx.x; `tokens` rows have one gate, `step` elements apart. Reads a
// and b, writes y.
KERNEL(256) add_gated(const T *a, const T *b, const M *gate, T *y, u32 tokens, u32 columns, u64 step) {
    u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    u64 at = (u64)blockIdx.x * columns + column;
    Pack<T, N> one = ((const Pack<T, N> *)a)[at], other = ((const Pack<T, N> *)b)[at], out;
    float by[N];
    load_floats<N>(gate + blockIdx.x / tokens * step + (u64)column * N, by);
    for (int i = 0; i < N; i++) set(out.at[i], to_float(one.at[i]) + by[i] * to_float(other.at[i]));
    ((Pack<T, N> *)y)[at] = out;
}
