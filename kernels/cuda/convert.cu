// Elements of one type as another. FROM, TO: the types.
// compile: -DFROM=float -DTO=bf16
// compile: -DFROM=float -DTO=f16
// compile: -DFROM=bf16 -DTO=float
// compile: -DFROM=f16 -DTO=float
// compile: -DFROM=bf16 -DTO=f16
// compile: -DFROM=f16 -DTO=bf16

KERNEL(256) convert(const FROM *__restrict__ x, TO *__restrict__ y, u64 length) {
    const int N = 4;
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length) {
        Pack<FROM, N> in = *(const Pack<FROM, N> *)(x + first);
        Pack<TO, N> out;
        for (int i = 0; i < N; i++) set(out.at[i], to_float(in.at[i]));
        *(Pack<TO, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) set(y[i], to_float(x[i]));
    }
}
