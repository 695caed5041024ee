// softmax(q k^T * scale) v on tensor cores, for heads of up to 160 channels: a block takes ROWS queries of one head
// and goes over the keys 64 at a time, with a running maximum and sum for each query (FlashAttention-2, Dao 2023). Sums
// are float; weights are rounded to T before they meet v.
//
// T: bf16 or f16. HEAD: channels of a head, a multiple of 8. WARPS, TILES: a warp takes TILES times 16 queries.
//
// compile: T=bf16 HEAD=8 WARPS=4 TILES=1
// compile: T=bf16 HEAD=40 WARPS=4 TILES=2
// compile: T=bf16 HEAD=64 WARPS=4 TILES=1
// compile: T=bf16 HEAD=64 WARPS=4 TILES=2
// compile: T=f16 HEAD=64 WARPS=4 TILES=2
// compile: T=bf16 HEAD=80 WARPS=4 TILES=1
// compile: T=bf16 HEAD=80 WARPS=8 TILES=1
// compile: T=bf16 HEAD=96 WARPS=8 TILES=1
// compile: T=bf16 HEAD=128 WARPS=4 TILES=1
// compile: T=bf16 HEAD=128 WARPS=8 TILES=1
// compile: T=f16 HEAD=128 WARPS=8 TILES=1
// compile: T=bf16 HEAD=160 WARPS=4 TILES=1
// compile: T=bf16 HEAD=160 WARPS=8 TILES=1

constexpr int KEYS = 64;
constexpr int THREADS = WARPS * 32;
constexpr int ROWS = WARPS * TILES * 16;
// In 16 bytes: a row in shared memory holds the channels up to a multiple of 16, and lies an odd number of them after
// the one before, so that eight rows at the same channel are in different banks.
constexpr int UNITS = (HEAD + 15) / 16 * 2;
constexpr int PITCH = (UNITS + 1) * 8;
constexpr int STEPS = UNITS / 2;
constexpr int OUTPUTS = HEAD / 8;
constexpr float NOTHING = -__builtin_huge_valf();
// The queries wait where the second tile of keys and values will be, and the results lie where both were.
static_assert(ROWS <= 2 * KEYS && HEAD % 8 == 0, "no such variant");

struct KeyLengths { int at[64]; };

// COUNT rows from `from` on, `token` elements apart; zeros from row `present` on.
template <int COUNT>
__device__ __forceinline__ void load_rows(T *to, const T *from, int token, int present) {
#pragma unroll
    for (int i = 0; i < (COUNT * UNITS + THREADS - 1) / THREADS; i++) {
        int at = i * THREADS + (int)threadIdx.x;
        int row = at / UNITS, unit = at % UNITS;
        if (COUNT * UNITS % THREADS != 0 && row >= COUNT) break;
        bool valid = row < present && unit < OUTPUTS;
        copy_16_async(to + row * PITCH + unit * 8, valid ? from + (row * token + unit * 8) : from, valid);
    }
}

// What a warp knows of its queries; lane l has rows l / 4 and l / 4 + 8 of each 16, as `multiply_add` has them.
struct State {
    u32 q[TILES][STEPS][4];
    float out[TILES][OUTPUTS][4];
    float max[TILES][2]; // times scale
    float sum[TILES][2]; // of this lane's keys
};

// Takes GROUPS times 16 keys. MASKED: only those before `end`, and at most at `last` + 8 for the lane's second row and
// so on: keys count from the tile's first.
template <int GROUPS, bool MASKED>
__device__ __forceinline__ void take(State &state, const T *k, const T *v, float scale, int end, int last) {
    int lane = threadIdx.x % 32;
    float score[TILES][2 * GROUPS][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int i = 0; i < 2 * GROUPS; i++)
#pragma unroll
            for (int e = 0; e < 4; e++) score[t][i][e] = 0;
    const T *k_lane = k + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < STEPS; step++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            u32 b[4];
            load_tiles(b, k_lane + g * 16 * PITCH + step * 16);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(score[t][2 * g], state.q[t][step], b[0], b[1], T{});
                multiply_add(score[t][2 * g + 1], state.q[t][step], b[2], b[3], T{});
            }
        }
    if (MASKED) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int key = i * 8 + lane % 4 * 2 + e % 2;
                    if (key >= end || key > last + t * 16 + e / 2 * 8) score[t][i][e] = NOTHING;
                }
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float max = NOTHING;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++)
                max = fmaxf(max, fmaxf(score[t][i][2 * half], score[t][i][2 * half + 1]));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 1));
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, 2));
            max = fmaxf(state.max[t][half], max * scale);
            float factor = exp2_fast(state.max[t][half] - max);
            state.max[t][half] = max;
            float sum = 0;
#pragma unroll
            for (int i = 0; i < 2 * GROUPS; i++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    float weight = exp2_fast(fmaf(score[t][i][2 * half + e], scale, -max));
                    score[t][i][2 * half + e] = weight;
                    sum += weight;
                }
            state.sum[t][half] = state.sum[t][half] * factor + sum;
#pragma unroll
            for (int c = 0; c < OUTPUTS; c++) {
                state.out[t][c][2 * half] *= factor;
                state.out[t][c][2 * half + 1] *= factor;
            }
        }
    const T *v_lane = v + lane % 16 * PITCH + lane / 16 * 8;
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        // A tile of results is a tile of factors once it is rounded: the elements of a lane are the same.
        u32 weights[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[t][i] = pair<T>(score[t][2 * g + i / 2][i % 2 * 2], score[t][2 * g + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int c = 0; c < STEPS; c++) {
            u32 b[4];
            load_tiles_transposed(b, v_lane + g * 16 * PITCH + c * 16);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(state.out[t][2 * c], weights[t], b[0], b[1], T{});
                if (2 * c + 1 < OUTPUTS) multiply_add(state.out[t][2 * c + 1], weights[t], b[2], b[3], T{});
            }
        }
    }
}

// Tensors by their first element of the first batch row, and how many elements apart batch rows and tokens are.
// Of batch row i the keys before `lengths.at[i]` count, or all if `has_lengths` is not set.
KERNEL(THREADS)
attend(const T *q, const T *k, const T *v, T *out, i64 q_batch, i64 k_batch, i64 v_batch, int q_token, int k_token,
       int v_token, int queries, int keys, float scale, int causal, int has_lengths, KeyLengths lengths) {
    SHARED(memory);
    T *shared = (T *)memory;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first = blockIdx.x * ROWS, head = blockIdx.y, row = blockIdx.z, heads = gridDim.y;
    q += row * q_batch + first * (i64)q_token + head * HEAD;
    k += row * k_batch + head * HEAD;
    v += row * v_batch + head * HEAD;
    int present = queries - first < ROWS ? queries - first : ROWS;
    int end = has_lengths ? lengths.at[row] : keys;
    if (causal && end > first + present) end = first + present;
    // Tiles that every query sees wholly.
    int whole = (causal && end > first + 1 ? first + 1 : end) / KEYS;

    load_rows<ROWS>(shared + 2 * KEYS * PITCH, q, q_token, present);
    copies_end_group();
    load_rows<KEYS>(shared, k, k_token, end);
    load_rows<KEYS>(shared + KEYS * PITCH, v, v_token, end);
    copies_end_group();
    copies_wait<1>();
    __syncthreads();
    State state;
    int row_of_warp = warp * TILES * 16;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const T *q_lane = shared + (2 * KEYS + row_of_warp + t * 16 + lane % 16) * PITCH + lane / 16 * 8;
#pragma unroll
        for (int step = 0; step < STEPS; step++) load_tiles(state.q[t][step], q_lane + step * 16);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            state.max[t][half] = NOTHING;
            state.sum[t][half] = 0;
        }
#pragma unroll
        for (int c = 0; c < OUTPUTS; c++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.out[t][c][e] = 0;
    }

    int tiles = (end + KEYS - 1) / KEYS;
    for (int tile = 0; tile < tiles; tile++) {
        // This tile has arrived, and nobody needs the one before, nor the queries.
        copies_wait<0>();
        __syncthreads();
        int done = tile * KEYS, left = end - done;
        if (tile + 1 < tiles) {
            T *next = shared + (tile + 1) % 2 * (2 * KEYS * PITCH);
            i64 from = done + KEYS;
            load_rows<KEYS>(next, k + from * k_token, k_token, left - KEYS);
            load_rows<KEYS>(next + KEYS * PITCH, v + from * v_token, v_token, left - KEYS);
            copies_end_group();
        }
        const T *k_tile = shared + tile % 2 * (2 * KEYS * PITCH), *v_tile = k_tile + KEYS * PITCH;
        int last = causal ? first + row_of_warp + lane / 4 - done : KEYS;
        if (tile < whole) take<4, false>(state, k_tile, v_tile, scale, left, last);
        else if (left <= 16) take<1, true>(state, k_tile, v_tile, scale, left, last);
        else if (left <= 32) take<2, true>(state, k_tile, v_tile, scale, left, last);
        else take<4, true>(state, k_tile, v_tile, scale, left, last);
    }

    __syncthreads();
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = state.sum[t][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            float factor = 1.0f / sum;
            u32 *to = (u32 *)(shared + (row_of_warp + t * 16 + half * 8 + lane / 4) * PITCH) + lane % 4;
#pragma unroll
            for (int c = 0; c < OUTPUTS; c++)
                to[c * 4] = pair<T>(state.out[t][c][2 * half] * factor, state.out[t][c][2 * half + 1] * factor);
        }
    __syncthreads();
    i64 token = (i64)heads * HEAD;
    out += ((i64)row * queries + first) * token + head * HEAD;
    for (int i = threadIdx.x; i < present * OUTPUTS; i += THREADS) {
        int at = i / OUTPUTS, unit = i % OUTPUTS;
        *(Pack<T, 8> *)(out + at * token + unit * 8) = *(const Pack<T, 8> *)(shared + at * PITCH + unit * 8);
    }
}
