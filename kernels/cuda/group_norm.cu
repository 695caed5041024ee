// Group normalisation of channels-last positions, with what comes before and after it fused.
//
// T: the element. N: elements of a pack, a power of two of at most 16 bytes that divides the channels. ACTIVATION: the
// one that follows. Two kernels: `moments` makes partial statistics of chunks of positions, `normalise` merges them and
// goes over the data once more. A chunk is a piece of one sample and its size follows from that sample's shape alone,
// and nothing is added in an order that timing decides: a sample gives the same bits in every batch.
//
// Bytes: `moments` reads x, `normalise` reads x and writes y; partial statistics are 8 bytes a group and chunk.
//
// compile: -DT=bf16 -DN=8 -DACTIVATION=SILU
// compile: -DT=bf16 -DN=8 -DACTIVATION=IDENTITY
// compile: -DT=bf16 -DN=4 -DACTIVATION=GELU
// compile: -DT=bf16 -DN=2 -DACTIVATION=QUICK_GELU
// compile: -DT=bf16 -DN=1 -DACTIVATION=SILU
// compile: -DT=f16 -DN=8 -DACTIVATION=SILU
// compile: -DT=f16 -DN=8 -DACTIVATION=IDENTITY
// compile: -DT=f16 -DN=1 -DACTIVATION=SILU
// compile: -DT=float -DN=4 -DACTIVATION=SILU
// compile: -DT=float -DN=4 -DACTIVATION=IDENTITY
// compile: -DT=float -DN=1 -DACTIVATION=SILU

// The mean of some numbers and the sum of their squared differences from it.
struct Moments { float mean, square; };

// Packs that a thread has on their way at once.
#define IN_FLIGHT 4

// What the threads of a block share out: each has one column of packs and every `lanes`-th position, or, of more
// columns than threads, several columns and all positions.
struct Share {
    u32 columns, lanes, lane, first_column;
    __device__ __forceinline__ Share(u32 channels) {
        columns = channels / N;
        lanes = blockDim.x >= columns ? blockDim.x / columns : 1;
        lane = lanes > 1 ? threadIdx.x / columns : 0;
        first_column = lanes > 1 ? threadIdx.x % columns : threadIdx.x;
        if (lane >= lanes) first_column = columns; // a thread too many
    }
};

// Partial moments of x + shift, of one chunk of positions and all groups a block. x: [b, positions, channels];
// shift: [b, channels] or null; partial: [b, groups, chunks]; `chunk`: positions of all chunks but a sample's last.
// Shared memory: two floats a channel and lane.
//
// Sums are of differences from the chunk's first position, channel by channel, so that a large offset costs nothing;
// means of channels and chunks are then merged by their differences.
KERNEL(512) moments(const T *x, const T *shift, Moments *partial, u32 positions, u32 channels, u32 groups, u32 chunk,
                    u32 chunks) {
    SHARED(memory);
    Share share(channels);
    float *sums = (float *)memory, *squares = sums + share.lanes * channels;
    u32 row = blockIdx.x / chunks, part = blockIdx.x % chunks;
    u32 first = part * chunk, count = min(chunk, positions - first);
    const T *from = x + ((u64)row * positions + first) * channels;

    for (u32 column = share.first_column; column < share.columns; column += blockDim.x) {
        const T *at = from + column * N;
        Pack<T, N> pivot = *(const Pack<T, N> *)at;
        float sum[N], square[N];
        for (int e = 0; e < N; e++) sum[e] = square[e] = 0;
        for (u32 i = share.lane; i < count; i += IN_FLIGHT * share.lanes) {
            Pack<T, N> in[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                u32 position = i + k * share.lanes;
                // Beyond the end it is the pivot itself, which adds nothing.
                in[k] = *(const Pack<T, N> *)(at + (u64)(position < count ? position : 0) * channels);
            }
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
#pragma unroll
                for (int e = 0; e < N; e++) {
                    float d = to_float(in[k].at[e]) - to_float(pivot.at[e]);
                    sum[e] += d;
                    square[e] += d * d;
                }
            }
        }
#pragma unroll
        for (int e = 0; e < N; e++) {
            sums[share.lane * channels + column * N + e] = sum[e];
            squares[share.lane * channels + column * N + e] = square[e];
        }
    }
    __syncthreads();

    // Of each channel the mean and the sum of squares, where its first lane's sums were.
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
        float sum = 0, square = 0;
        for (u32 lane = 0; lane < share.lanes; lane++) {
            sum += sums[lane * channels + c];
            square += squares[lane * channels + c];
        }
        float mean = sum / (float)count;
        float offset = shift ? to_float(shift[(u64)row * channels + c]) : 0.0f;
        sums[c] = (to_float(from[c]) + offset) + mean;
        squares[c] = fmaxf(square - sum * mean, 0.0f);
    }
    __syncthreads();

    // Of each group, a warp each.
    u32 width = channels / groups;
    for (u32 group = threadIdx.x / 32; group < groups; group += blockDim.x / 32) {
        const float *means = sums + group * width, *of_channels = squares + group * width;
        float pivot = means[0], sum = 0, square = 0;
        for (u32 c = threadIdx.x % 32; c < width; c += 32) sum += means[c] - pivot;
        float mean = pivot + warp_sum(sum) / (float)width;
        for (u32 c = threadIdx.x % 32; c < width; c += 32) {
            float d = means[c] - mean;
            square += of_channels[c] + (float)count * d * d;
        }
        square = warp_sum(square);
        if (threadIdx.x % 32 == 0) {
            Moments result = {mean, square};
            partial[((u64)row * groups + group) * chunks + part] = result;
        }
    }
}

// y = ACTIVATION((x + shift - mean) / sqrt(variance + eps) * weight + bias), of what `moments` made of the same chunks.
// Shared memory: two floats a group.
KERNEL(512) normalise(const T *x, const T *shift, const Moments *partial, const float *weight, const float *bias, T *y,
                      u32 positions, u32 channels, u32 groups, u32 chunk, u32 chunks, float eps) {
    SHARED(memory);
    float *means = (float *)memory, *inverses = means + groups;
    // Backwards: what `moments` read last is still in the cache.
    u32 block = gridDim.x - 1 - blockIdx.x;
    u32 row = block / chunks, part = block % chunks;
    u32 first = part * chunk, count = min(chunk, positions - first);
    u32 width = channels / groups;

    for (u32 group = threadIdx.x / 32; group < groups; group += blockDim.x / 32) {
        const Moments *parts = partial + ((u64)row * groups + group) * chunks;
        float pivot = parts[0].mean, sum = 0, square = 0;
        for (u32 i = threadIdx.x % 32; i < chunks; i += 32) {
            float n = (float)min(chunk, positions - i * chunk);
            sum += (parts[i].mean - pivot) * n;
        }
        float mean = pivot + warp_sum(sum) / (float)positions;
        for (u32 i = threadIdx.x % 32; i < chunks; i += 32) {
            float n = (float)min(chunk, positions - i * chunk), d = parts[i].mean - mean;
            square += parts[i].square + n * width * d * d;
        }
        float variance = warp_sum(square) / ((float)positions * (float)width);
        if (threadIdx.x % 32 == 0) {
            means[group] = mean;
            inverses[group] = 1.0f / sqrtf(variance + eps);
        }
    }
    __syncthreads();

    Share share(channels);
    u64 offset = ((u64)row * positions + first) * channels;
    for (u32 column = share.first_column; column < share.columns; column += blockDim.x) {
        const T *from = x + offset + column * N;
        T *to = y + offset + column * N;
        float centre[N], factor[N], add[N];
#pragma unroll
        for (int e = 0; e < N; e++) {
            u32 c = column * N + e, group = c / width;
            float shifted = shift ? to_float(shift[(u64)row * channels + c]) : 0.0f;
            centre[e] = means[group] - shifted;
            factor[e] = inverses[group] * weight[c];
            add[e] = bias[c];
        }
        for (u32 i = share.lane; i < count; i += IN_FLIGHT * share.lanes) {
            Pack<T, N> in[IN_FLIGHT];
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                u32 position = i + k * share.lanes;
                in[k] = *(const Pack<T, N> *)(from + (u64)(position < count ? position : i) * channels);
            }
#pragma unroll
            for (int k = 0; k < IN_FLIGHT; k++) {
                u32 position = i + k * share.lanes;
                if (position < count) {
                    Pack<T, N> out;
#pragma unroll
                    for (int e = 0; e < N; e++) {
                        float normal = (to_float(in[k].at[e]) - centre[e]) * factor[e] + add[e];
                        set(out.at[e], activated(normal, ACTIVATION));
                    }
                    *(Pack<T, N> *)(to + (u64)position * channels) = out;
                }
            }
        }
    }
}
