// Operations of each element on its own, and copies that change the shape.
//
// T: the element. N: elements of a pack, a power of two of at most 16 bytes that divides every length between a row's
// parts; 16 bytes where there are none. A thread has one pack, so that a warp's accesses are whole lines and many
// warps have theirs on the way at once.
//
// compile: -DT=bf16 -DN=8
// compile: -DT=bf16 -DN=4
// compile: -DT=bf16 -DN=2
// compile: -DT=bf16 -DN=1
// compile: -DT=f16 -DN=8
// compile: -DT=f16 -DN=1
// compile: -DT=float -DN=4
// compile: -DT=float -DN=2
// compile: -DT=float -DN=1

// This thread's place in the launch.
__device__ __forceinline__ u64 place() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// y = activation(x), `length` elements. Reads x, writes y.
KERNEL(256) activate(const T *x, T *y, u64 length, int activation) {
    u64 first = place() * N;
    if (first + N <= length) {
        Pack<T, N> in = *(const Pack<T, N> *)(x + first), out;
        for (int i = 0; i < N; i++) set(out.at[i], activated(to_float(in.at[i]), activation));
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(y[i], activated(to_float(x[i]), activation));
    }
}

// y = a + b, `length` elements. Reads a and b, writes y.
KERNEL(256) add(const T *a, const T *b, T *y, u64 length) {
    u64 first = place() * N;
    if (first + N <= length) {
        Pack<T, N> one = *(const Pack<T, N> *)(a + first), other = *(const Pack<T, N> *)(b + first), out;
        for (int i = 0; i < N; i++) set(out.at[i], to_float(one.at[i]) + to_float(other.at[i]));
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(y[i], to_float(a[i]) + to_float(b[i]));
    }
}

// target += source in place, `length` elements; either may begin anywhere, N then being 1. Reads both, writes target.
KERNEL(256) add_in_place(T *target, const T *source, u64 length) {
    u64 first = place() * N;
    if (first + N <= length) {
        Pack<T, N> one = *(const Pack<T, N> *)(target + first), other = *(const Pack<T, N> *)(source + first), out;
        for (int i = 0; i < N; i++) set(out.at[i], to_float(one.at[i]) + to_float(other.at[i]));
        *(Pack<T, N> *)(target + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(target[i], to_float(target[i]) + to_float(source[i]));
    }
}

// y = x + shift, x and y: [b, positions, channels], shift: [b, channels]; `packs` in all. Reads x, writes y.
KERNEL(256) add_row_shift(const T *x, const T *shift, T *y, u64 packs, u32 positions, u32 channels) {
    u64 at = place();
    if (at >= packs) return;
    u32 columns = channels / N;
    u64 row = at / ((u64)positions * columns);
    u32 column = (u32)(at % columns);
    Pack<T, N> in = ((const Pack<T, N> *)x)[at], more = ((const Pack<T, N> *)shift)[row * columns + column], out;
    for (int i = 0; i < N; i++) set(out.at[i], to_float(in.at[i]) + to_float(more.at[i]));
    ((Pack<T, N> *)y)[at] = out;
}

// y = value * gelu(gate), x: [rows, 2 width] of values and then gates, y: [rows, width]; `packs` of y. Reads x, writes y.
KERNEL(256) geglu(const T *x, T *y, u64 packs, u32 width) {
    u64 at = place();
    if (at >= packs) return;
    u32 columns = width / N;
    u64 row = at / columns;
    u32 column = (u32)(at - row * columns);
    const Pack<T, N> *from = (const Pack<T, N> *)x + row * 2 * columns + column;
    Pack<T, N> value = from[0], gate = from[columns], out;
    for (int i = 0; i < N; i++) set(out.at[i], to_float(value.at[i]) * activated(to_float(gate.at[i]), GELU));
    ((Pack<T, N> *)y)[at] = out;
}

// y = silu(gate) * value, `length` elements. Reads gate and value, writes y.
KERNEL(256) swiglu(const T *gate, const T *value, T *y, u64 length) {
    u64 first = place() * N;
    if (first + N <= length) {
        Pack<T, N> one = *(const Pack<T, N> *)(gate + first), other = *(const Pack<T, N> *)(value + first), out;
        for (int i = 0; i < N; i++) set(out.at[i], activated(to_float(one.at[i]), SILU) * to_float(other.at[i]));
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(y[i], activated(to_float(gate[i]), SILU) * to_float(value[i]));
    }
}

// y = the rows of a: [rows, left], each followed by that of b: [rows, right]; `packs` of y. Reads a and b, writes y.
KERNEL(256) concat(const T *a, const T *b, T *y, u64 packs, u32 left, u32 right) {
    u64 at = place();
    if (at >= packs) return;
    u32 of_a = left / N, of_b = right / N;
    u64 row = at / (of_a + of_b);
    u32 column = (u32)(at - row * (of_a + of_b));
    ((Pack<T, N> *)y)[at] = column < of_a ? ((const Pack<T, N> *)a)[row * of_a + column]
                                          : ((const Pack<T, N> *)b)[row * of_b + (column - of_a)];
}

// Each pixel of x: [lines, width, channels] four times in y: [2 lines, 2 width, channels]; `packs` of x. Reads x once,
// writes y.
KERNEL(256) upsample(const T *x, T *y, u64 packs, u32 width, u32 channels) {
    u64 at = place();
    if (at >= packs) return;
    u32 columns = channels / N;
    u64 pixel = at / columns, line = pixel / width;
    u64 column = at - pixel * columns, across = pixel - line * width;
    Pack<T, N> pack = ((const Pack<T, N> *)x)[at];
    u64 wide = 2 * (u64)width * columns;
    Pack<T, N> *to = (Pack<T, N> *)y + 2 * line * wide + 2 * across * columns + column;
    to[0] = pack;
    to[columns] = pack;
    to[wide] = pack;
    to[wide + columns] = pack;
}
