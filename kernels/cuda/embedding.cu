// Embeddings of numbers.
//
// compile:

// y[i] = cosines, then sines, of numbers[i] times falling frequencies; numbers: [n], y: [n, 2 half]. What the CPU
// computes: exponents in float, a frequency the float nearest to the exponential, angles in float. Writes y.
KERNEL(128) sinusoid(const float *numbers, float *y, u32 n, u32 half) {
    u32 at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n * half) return;
    u32 row = at / half, i = at % half;
    float exponent = -9.2103404f * (float)i / (float)half; // -ln 10000
    float angle = numbers[row] * (float)exp((double)exponent);
    y[(u64)row * 2 * half + i] = cosf(angle);
    y[(u64)row * 2 * half + half + i] = sinf(angle);
}
