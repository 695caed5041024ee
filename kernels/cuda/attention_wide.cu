// softmax(q k^T * scale) v on tensor cores for one wide head, as the VAE has (512 channels): the results of 64
// queries fill the registers of a whole block, so its warps share the queries, and each has its own channels of the
// output. Scores are made by warps of 16 queries and half of a tile's keys, and go through shared memory, rounded to T.
//
// T: bf16 or f16. HEAD: channels, a multiple of 16 for each warp. ROWS: queries of a block, eight for each warp.
// KEYS: of a tile, a multiple of 32. ROWS and KEYS are what the card has shared memory for.
//
// compile: T=bf16 HEAD=512 ROWS=64 KEYS=64
// compile: T=f16 HEAD=512 ROWS=64 KEYS=64
// compile: T=bf16 HEAD=512 ROWS=64 KEYS=32
// compile: T=bf16 HEAD=512 ROWS=32 KEYS=32
// compile: T=bf16 HEAD=256 ROWS=64 KEYS=64

constexpr int WARPS = ROWS / 8;
constexpr int THREADS = WARPS * 32;
constexpr int STEPS = HEAD / 16;
constexpr int GROUPS = KEYS / 32;      // of 16 keys, of a warp
constexpr int TILES = ROWS / 16;       // of queries
constexpr int CHANNELS = HEAD / WARPS; // of a warp's output
constexpr int WEIGHTS_PITCH = KEYS + 8;
constexpr float NOTHING = -__builtin_huge_valf();
static_assert(HEAD % 128 == 0 && CHANNELS % 16 == 0 && KEYS % 32 == 0 && ROWS % 32 == 0, "no such variant");

struct KeyLengths { int at[64]; };

// Where 8 channels of a row lie: eight rows at the same channels are in different banks.
__device__ __forceinline__ int place(int row, int unit) { return row * HEAD + (unit ^ (row % 8)) * 8; }

// COUNT rows from `from` on, `token` elements apart; zeros from row `present` on.
template <int COUNT>
__device__ __forceinline__ void load_rows(T *to, const T *from, int token, int present) {
#pragma unroll 4
    for (int i = threadIdx.x; i < COUNT * (HEAD / 8); i += THREADS) {
        int row = i / (HEAD / 8), unit = i % (HEAD / 8);
        bool valid = row < present;
        copy_16_async(to + place(row, unit), valid ? from + ((i64)row * token + unit * 8) : from, valid);
    }
}

// As `attend` of attention.cu.
KERNEL(THREADS)
attend(const T *q, const T *k, const T *v, T *out, i64 q_batch, i64 k_batch, i64 v_batch, int q_token, int k_token,
       int v_token, int queries, int keys, float scale, int causal, int has_lengths, KeyLengths lengths) {
    SHARED(memory);
    T *q_tile = (T *)memory, *k_tile = q_tile + ROWS * HEAD, *v_tile = k_tile + KEYS * HEAD;
    T *weights = v_tile + KEYS * HEAD;
    float *maxima = (float *)(weights + ROWS * WEIGHTS_PITCH), *factors = maxima + 2 * ROWS;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first = blockIdx.x * ROWS, head = blockIdx.y, row = blockIdx.z, heads = gridDim.y;
    q += row * q_batch + first * (i64)q_token + head * HEAD;
    k += row * k_batch + head * HEAD;
    v += row * v_batch + head * HEAD;
    int present = queries - first < ROWS ? queries - first : ROWS;
    int end = has_lengths ? lengths.at[row] : keys;
    if (causal && end > first + present) end = first + present;
    int whole = (causal && end > first + 1 ? first + 1 : end) / KEYS;

    // Of the scores: 16 queries and half of the keys.
    int my_row = warp / 2 * 16, side = warp % 2, my_key = side * (KEYS / 2);
    float max[2] = {NOTHING, NOTHING}, sum[2] = {0, 0};
    float result[TILES][CHANNELS / 8][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int c = 0; c < CHANNELS / 8; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) result[t][c][e] = 0;

    load_rows<ROWS>(q_tile, q, q_token, present);
    load_rows<KEYS>(k_tile, k, k_token, end);
    copies_end_group();
    int tiles = (end + KEYS - 1) / KEYS;
    for (int tile = 0; tile < tiles; tile++) {
        int done = tile * KEYS, left = end - done;
        copies_wait<0>();
        __syncthreads(); // the keys are there, and nobody needs the last tile's values
        load_rows<KEYS>(v_tile, v + (i64)done * v_token, v_token, left);
        copies_end_group();

        float score[2 * GROUPS][4];
#pragma unroll
        for (int i = 0; i < 2 * GROUPS; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) score[i][e] = 0;
#pragma unroll 4
        for (int step = 0; step < STEPS; step++) {
            u32 a[4];
            load_tiles(a, q_tile + place(my_row + lane % 16, step * 2 + lane / 16));
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                u32 b[4];
                load_tiles(b, k_tile + place(my_key + g * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
                multiply_add(score[2 * g], a, b[0], b[1], T{});
                multiply_add(score[2 * g + 1], a, b[2], b[3], T{});
            }
        }
        if (tile >= whole) {
            int last = causal ? first + my_row + lane / 4 - done : KEYS;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int key = my_key + i * 8 + lane % 4 * 2 + e % 2;
                    if (key >= left || key > last + e / 2 * 8) score[i][e] = NOTHING;
                }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = NOTHING;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++) most = fmaxf(most, fmaxf(score[i][2 * half], score[i][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            if (lane % 4 == 0) maxima[side * ROWS + my_row + half * 8 + lane / 4] = most * scale;
        }
        __syncthreads(); // both sides' maxima are there, and nobody needs the keys
        if (tile + 1 < tiles) load_rows<KEYS>(k_tile, k + (i64)(done + KEYS) * k_token, k_token, left - KEYS);
        copies_end_group();

#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = my_row + half * 8 + lane / 4;
            float most = fmaxf(max[half], fmaxf(maxima[at], maxima[ROWS + at]));
            float factor = exp2_fast(max[half] - most);
            max[half] = most;
            if (side == 0 && lane % 4 == 0) factors[at] = factor;
            float of_tile = 0;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++) {
                float low = exp2_fast(fmaf(score[i][2 * half], scale, -most));
                float high = exp2_fast(fmaf(score[i][2 * half + 1], scale, -most));
                of_tile += low + high;
                *(u32 *)(weights + at * WEIGHTS_PITCH + my_key + i * 8 + lane % 4 * 2) = pair<T>(low, high);
            }
            sum[half] = sum[half] * factor + of_tile;
        }
        copies_wait<1>();
        __syncthreads(); // the values are there, and the weights

#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float factor = factors[t * 16 + half * 8 + lane / 4];
#pragma unroll
                for (int c = 0; c < CHANNELS / 8; c++) {
                    result[t][c][2 * half] *= factor;
                    result[t][c][2 * half + 1] *= factor;
                }
            }
#pragma unroll 1
        for (int g = 0; g < KEYS / 16; g++) {
            u32 a[TILES][4];
#pragma unroll
            for (int t = 0; t < TILES; t++)
                load_tiles(a[t], weights + (t * 16 + lane % 16) * WEIGHTS_PITCH + g * 16 + lane / 16 * 8);
#pragma unroll
            for (int c = 0; c < CHANNELS / 16; c++) {
                u32 b[4];
                int unit = warp * (CHANNELS / 8) + 2 * c + lane / 16;
                load_tiles_transposed(b, v_tile + place(g * 16 + lane % 16, unit));
#pragma unroll
                for (int t = 0; t < TILES; t++) {
                    multiply_add(result[t][2 * c], a[t], b[0], b[1], T{});
                    multiply_add(result[t][2 * c + 1], a[t], b[2], b[3], T{});
                }
            }
        }
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = sum[half];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        if (lane % 4 == 0) maxima[side * ROWS + my_row + half * 8 + lane / 4] = all;
    }
    __syncthreads();
    i64 token = (i64)heads * HEAD;
    out += ((i64)row * queries + first) * token + head * HEAD + warp * CHANNELS + lane % 4 * 2;
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int at = t * 16 + half * 8 + lane / 4;
            if (at >= present) continue;
            float factor = 1.0f / (maxima[at] + maxima[ROWS + at]);
#pragma unroll
            for (int c = 0; c < CHANNELS / 8; c++)
                *(u32 *)(out + at * token + c * 8) =
                    pair<T>(result[t][c][2 * half] * factor, result[t][c][2 * half + 1] * factor);
        }
}
