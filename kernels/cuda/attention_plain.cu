// softmax(q k^T * scale) v without tensor cores: for float, and for heads that the others do not take. A block of 256
// threads takes 64 queries of one head and goes over the keys 64 at a time, with a running maximum and sum; all
// products are float. Thread (y, x) of 16 by 16 has queries 4 y to 4 y + 3, and each sixteenth key or channel from x on.
//
// T: float, bf16 or f16. HEAD: channels of a head, at most 512.
//
// compile: T=float HEAD=64
// compile: T=float HEAD=512
// compile: T=bf16 HEAD=20

constexpr int TILE = 64;
constexpr int SLICE = 32; // channels of q and k at a time
constexpr int PITCH = SLICE + 1, WEIGHTS_PITCH = TILE + 1;
constexpr int OUTPUTS = (HEAD + TILE - 1) / TILE; // times 64 channels
constexpr float NOTHING = -__builtin_huge_valf();

struct KeyLengths { int at[64]; };

// Channels `first` and on of 64 rows, `token` elements apart; zeros from row `present` and from channel HEAD on.
template <int CHANNELS, int PITCHED>
__device__ __forceinline__ void load_rows(float *to, const T *from, int token, int present, int first) {
    for (int i = threadIdx.x; i < TILE * CHANNELS; i += 256) {
        int row = i / CHANNELS, channel = i % CHANNELS;
        bool valid = row < present && first + channel < HEAD;
        to[row * PITCHED + channel] = valid ? to_float(from[(i64)row * token + first + channel]) : 0.0f;
    }
}

__device__ __forceinline__ float over_keys(float x, bool max) {
    for (int lanes = 8; lanes > 0; lanes /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, lanes);
        x = max ? fmaxf(x, other) : x + other;
    }
    return x;
}

// As `attend` of attention.cu.
KERNEL(256)
attend(const T *q, const T *k, const T *v, T *out, i64 q_batch, i64 k_batch, i64 v_batch, int q_token, int k_token,
       int v_token, int queries, int keys, float scale, int causal, int has_lengths, KeyLengths lengths) {
    SHARED(memory);
    float *q_slice = (float *)memory, *k_slice = q_slice + TILE * PITCH, *v_slice = q_slice;
    float *weights = q_slice + 2 * TILE * PITCH;
    int y = threadIdx.x / 16, x = threadIdx.x % 16;
    int first = blockIdx.x * TILE, head = blockIdx.y, row = blockIdx.z, heads = gridDim.y;
    q += row * q_batch + first * (i64)q_token + head * HEAD;
    k += row * k_batch + head * HEAD;
    v += row * v_batch + head * HEAD;
    int present = queries - first < TILE ? queries - first : TILE;
    int end = has_lengths ? lengths.at[row] : keys;
    if (causal && end > first + present) end = first + present;

    float max[4], sum[4], result[OUTPUTS][4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        max[i] = NOTHING;
        sum[i] = 0;
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
            for (int j = 0; j < 4; j++) result[o][i][j] = 0;
    }
    for (int done = 0; done < end; done += TILE) {
        int left = end - done;
        float score[4][4] = {};
        for (int channel = 0; channel < HEAD; channel += SLICE) {
            __syncthreads(); // the last slice's readers are done
            load_rows<SLICE, PITCH>(q_slice, q, q_token, present, channel);
            load_rows<SLICE, PITCH>(k_slice, k + (i64)done * k_token, k_token, left, channel);
            __syncthreads();
#pragma unroll 8
            for (int c = 0; c < SLICE; c++) {
                float a[4], b[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[i] = q_slice[(y * 4 + i) * PITCH + c];
                    b[i] = k_slice[(x + i * 16) * PITCH + c];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) score[i][j] = fmaf(a[i], b[j], score[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float most = NOTHING;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int key = x + j * 16;
                bool seen = key < left && (!causal || done + key <= first + y * 4 + i);
                score[i][j] = seen ? score[i][j] * scale : NOTHING;
                most = fmaxf(most, score[i][j]);
            }
            most = fmaxf(max[i], over_keys(most, true));
            float factor = exp2f(max[i] - most), of_tile = 0;
            max[i] = most;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float weight = exp2f(score[i][j] - most);
                weights[(y * 4 + i) * WEIGHTS_PITCH + x + j * 16] = weight;
                of_tile += weight;
            }
            sum[i] = sum[i] * factor + of_tile;
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
                for (int j = 0; j < 4; j++) result[o][i][j] *= factor;
        }
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) {
            __syncthreads(); // the slice before has been read
            load_rows<TILE, TILE>(v_slice, v + (i64)done * v_token, v_token, left, o * TILE);
            __syncthreads();
#pragma unroll 4
            for (int key = 0; key < TILE; key++) {
                float a[4], b[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[i] = weights[(y * 4 + i) * WEIGHTS_PITCH + key];
                    b[i] = v_slice[key * TILE + x + i * 16];
                }
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) result[o][i][j] = fmaf(a[i], b[j], result[o][i][j]);
            }
        }
    }
    i64 token = (i64)heads * HEAD;
    out += ((i64)row * queries + first) * token + head * HEAD;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float factor = 1.0f / over_keys(sum[i], false);
        if (y * 4 + i >= present) continue;
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int channel = o * TILE + x + j * 16;
                if (channel < HEAD) set(out[(y * 4 + i) * token + channel], result[o][i][j] * factor);
            }
    }
}
