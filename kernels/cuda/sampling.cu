// Arithmetic of denoising: what lies between one call of the network and the next.
//
// T: the element of network inputs and outputs. Latents are float. Nothing here reads numbers that a host has to send
// first: addresses and factors of the rows come as an argument of the launch.
//
// compile: -DT=bf16
// compile: -DT=f16
// compile: -DT=float

// y = uncond + (cond - uncond) * scale, `length` elements of T. Reads cond and uncond, writes y.
KERNEL(256) guide(const T *cond, const T *uncond, T *y, u64 length, float scale) {
    const int N = 16 / sizeof(T);
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length) {
        Pack<T, N> c = *(const Pack<T, N> *)(cond + first), u = *(const Pack<T, N> *)(uncond + first), out;
        for (int i = 0; i < N; i++) {
            float without = to_float(u.at[i]);
            set(out.at[i], without + (to_float(c.at[i]) - without) * scale);
        }
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) {
            float without = to_float(uncond[i]);
            set(y[i], without + (to_float(cond[i]) - without) * scale);
        }
    }
}

// The tensors of a linear combination, and what each is multiplied with.
#define MOST_TERMS 4
struct Terms {
    const T *at[MOST_TERMS];
    float factor[MOST_TERMS];
};

// y = the sum of factor * tensor over `count` terms in their order, `length` elements of T. Reads each, writes y.
KERNEL(256) linear_combination(Terms terms, int count, T *y, u64 length) {
    const int N = 16 / sizeof(T);
    u64 first = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (first + N <= length) {
        Pack<T, N> in[MOST_TERMS], out;
#pragma unroll
        for (int t = 0; t < MOST_TERMS; t++) {
            if (t < count) in[t] = *(const Pack<T, N> *)(terms.at[t] + first);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            float sum = 0;
#pragma unroll
            for (int t = 0; t < MOST_TERMS; t++) {
                if (t < count) sum += terms.factor[t] * to_float(in[t].at[i]);
            }
            set(out.at[i], sum);
        }
        *(Pack<T, N> *)(y + first) = out;
    } else {
        for (u64 i = first; i < length; i++) {
            float sum = 0;
#pragma unroll
            for (int t = 0; t < MOST_TERMS; t++) {
                if (t < count) sum += terms.factor[t] * to_float(terms.at[t][i]);
            }
            set(y[i], sum);
        }
    }
}

// Latents of a step batch, each where its sampler has it, with two factors each.
#define MOST_ROWS 64
struct Latents {
    const float *at[MOST_ROWS];
    float factor[MOST_ROWS];
    float of_output[MOST_ROWS];
};

// y[row] = latent * factor, [channels, pixels] of float to [pixels, channels] of T, `rows` of them. Reads the latents,
// writes y.
KERNEL(256) scale_latents(Latents latents, T *y, u32 rows, u32 pixels, u32 channels) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = (u32)(at / pixels), pixel = (u32)(at % pixels);
    if (row >= rows) return;
    const float *from = latents.at[row] + pixel;
    T *to = y + at * channels;
    float factor = latents.factor[row];
    for (u32 c = 0; c < channels; c++) set(to[c], from[(u64)c * pixels] * factor);
}

// y[row] = latent * factor + output * of_output, the latent and y [channels, pixels] of float, the output
// [pixels, channels] of T, `rows` of them. A factor of 0 leaves its side out. Reads latents and output, writes y.
KERNEL(256) denoised_latents(Latents latents, const T *output, float *y, u32 rows, u32 pixels, u32 channels) {
    u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u32 row = (u32)(at / pixels), pixel = (u32)(at % pixels);
    if (row >= rows) return;
    const float *latent = latents.at[row] + pixel;
    const T *from = output + at * channels;
    float *to = y + (u64)row * channels * pixels + pixel;
    float factor = latents.factor[row], of_output = latents.of_output[row];
    for (u32 c = 0; c < channels; c++) {
        float kept = factor == 0.0f ? 0.0f : latent[(u64)c * pixels] * factor;
        to[(u64)c * pixels] = of_output == 0.0f ? kept : kept + to_float(from[c]) * of_output;
    }
}
