// Low-rank changes of some rows of a batch: y[rows] += scale (x[rows] downᵀ) upᵀ, for several ranges of rows at once,
// each with its own factors, in two launches. T: the element; R: the rank that all are filled up to with zeros.
// compile: -DT=bf16 -DR=16
// compile: -DT=bf16 -DR=32
// compile: -DT=bf16 -DR=64
// compile: -DT=bf16 -DR=128
// compile: -DT=f16 -DR=16
// compile: -DT=f16 -DR=32
// compile: -DT=f16 -DR=64
// compile: -DT=f16 -DR=128

// A range of rows and its factors; `LowRankGroup` in matmul/low_rank.rs is the same.
struct LowRankGroup {
    u64 down;  // [rank, depth]
    u64 up;    // [width, rank]
    int first; // of x and y
    int rows;
    int inner; // first row of the product between
    int rank;
    float scale;
    int unused;
};
struct LowRankGroups { LowRankGroup at[16]; };

// The lane's row of four 8x8 tiles that make up rows 0..16 and columns 0..16 from `tile`: as `a` of `multiply_add`, and
// as b0, b1 of columns 0..8 and of 8..16 of a matrix that lies column by column.
__device__ __forceinline__ const T *row_of_a(const T *tile, int stride) {
    int lane = threadIdx.x % 32;
    return tile + (lane % 16) * stride + lane / 16 * 8;
}
__device__ __forceinline__ const T *row_of_b(const T *tile, int stride) {
    int lane = threadIdx.x % 32;
    return tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8;
}

// inner[rows, R] = x[first + .., depth] downᵀ; `depth` in whole packs. A block: 32 rows, all of R; two warps share the
// rows and four the depth.
KERNEL(256) low_rank_down(const T *x, T *inner, int depth, LowRankGroups groups) {
    const int ROWS = 32, DEPTH = 128, STRIDE = DEPTH + 8, STAGES = R > 64 ? 2 : 3, STAGE = (ROWS + R) * STRIDE;
    SHARED(shared);
    T *stages = (T *)shared;
    LowRankGroup group = groups.at[blockIdx.y];
    int row0 = blockIdx.x * ROWS;
    if (row0 >= group.rows) return;
    const T *rows = x + (u64)(group.first + row0) * depth, *down = (const T *)group.down;
    int left = group.rows - row0;

    auto load = [&](int chunk) {
        T *to = stages + chunk % STAGES * STAGE;
        for (int i = threadIdx.x; i < (ROWS + R) * (DEPTH / 8); i += 256) {
            int row = i / (DEPTH / 8), column = i % (DEPTH / 8) * 8, k = chunk * DEPTH + column;
            bool of_x = row < ROWS;
            int r = of_x ? row : row - ROWS;
            bool valid = k < depth && r < (of_x ? left : group.rank);
            const T *from = of_x ? rows : down;
            copy_16_async(to + row * STRIDE + column, valid ? from + (u64)r * depth + k : from, valid);
        }
    };

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp % 2, quarter = warp / 2;
    float sums[R / 8][4] = {};
    int chunks = (depth + DEPTH - 1) / DEPTH;
    for (int chunk = 0; chunk < STAGES - 1; chunk++) {
        if (chunk < chunks) load(chunk);
        copies_end_group();
    }
    for (int chunk = 0; chunk < chunks; chunk++) {
        copies_wait<STAGES - 2>();
        __syncthreads(); // this chunk is there for all, and all are done with the one that is overwritten now
        if (chunk + STAGES - 1 < chunks) load(chunk + STAGES - 1);
        copies_end_group();
        const T *a = stages + chunk % STAGES * STAGE + half * 16 * STRIDE, *b = stages + chunk % STAGES * STAGE + ROWS * STRIDE;
#pragma unroll
        for (int step = 0; step < 2; step++) {
            int k = (quarter * 2 + step) * 16;
            u32 left_tiles[4];
            load_tiles(left_tiles, row_of_a(a + k, STRIDE));
#pragma unroll
            for (int n = 0; n < R / 16; n++) {
                u32 right[4];
                load_tiles(right, row_of_b(b + n * 16 * STRIDE + k, STRIDE));
                multiply_add(sums[2 * n], left_tiles, right[0], right[1], T());
                multiply_add(sums[2 * n + 1], left_tiles, right[2], right[3], T());
            }
        }
    }

    // The four parts of the depth, always in the same order.
    copies_wait<0>();
    __syncthreads();
    float *parts = (float *)shared;
    int row = half * 16 + lane / 4, column = lane % 4 * 2;
    if (quarter > 0) {
        float *to = parts + (quarter - 1) * ROWS * R;
#pragma unroll
        for (int n = 0; n < R / 8; n++)
            for (int i = 0; i < 4; i++) to[(row + i / 2 * 8) * R + n * 8 + column + i % 2] = sums[n][i];
    }
    __syncthreads();
    if (quarter > 0) return;
#pragma unroll
    for (int n = 0; n < R / 8; n++)
        for (int i = 0; i < 4; i++)
            for (int part = 0; part < 3; part++)
                sums[n][i] += parts[(part * ROWS + row + i / 2 * 8) * R + n * 8 + column + i % 2];
    T *to = inner + (u64)(group.inner + row0) * R;
#pragma unroll
    for (int n = 0; n < R / 8; n++)
        for (int i = 0; i < 2; i++) {
            int r = row + i * 8;
            if (r < left) *(u32 *)(to + (u64)r * R + n * 8 + column) = pair<T>(sums[n][2 * i], sums[n][2 * i + 1]);
        }
}

// y[first + .., width] += scale inner[rows, R] upᵀ; `width` in whole packs. A block: 64 rows, 128 columns; two warps
// share the rows and four the columns.
KERNEL(256) low_rank_up(const T *inner, T *y, int width, LowRankGroups groups) {
    const int ROWS = 64, COLUMNS = 128, STRIDE = R + 8, OUT = COLUMNS + 4;
    SHARED(shared);
    T *left_rows = (T *)shared, *right_rows = left_rows + ROWS * STRIDE;
    LowRankGroup group = groups.at[blockIdx.z];
    int row0 = blockIdx.y * ROWS, column0 = blockIdx.x * COLUMNS;
    if (row0 >= group.rows) return;
    int left = group.rows - row0;
    const T *from = inner + (u64)(group.inner + row0) * R, *up = (const T *)group.up;
    T *to = y + (u64)(group.first + row0) * width + column0;

    for (int i = threadIdx.x; i < ROWS * (R / 8); i += 256) {
        int row = i / (R / 8), k = i % (R / 8) * 8;
        bool valid = row < left;
        copy_16_async(left_rows + row * STRIDE + k, valid ? from + (u64)row * R + k : from, valid);
    }
    if (group.rank % 8 == 0) {
        for (int i = threadIdx.x; i < COLUMNS * (R / 8); i += 256) {
            int n = i / (R / 8), k = i % (R / 8) * 8;
            bool valid = column0 + n < width && k < group.rank;
            copy_16_async(right_rows + n * STRIDE + k, valid ? up + (u64)(column0 + n) * group.rank + k : up, valid);
        }
    } else { // its rows begin anywhere
        for (int i = threadIdx.x; i < COLUMNS * R; i += 256) {
            int n = i / R, k = i % R;
            bool valid = column0 + n < width && k < group.rank;
            right_rows[n * STRIDE + k] = valid ? up[(u64)(column0 + n) * group.rank + k] : rounded<T>(0.0f);
        }
    }
    copies_end_group();

    // What is added to is on its way meanwhile.
    const int PACKS = ROWS * COLUMNS / 8 / 256;
    Pack<T, 8> held[PACKS];
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        int pack = threadIdx.x + i * 256, row = pack / (COLUMNS / 8), column = pack % (COLUMNS / 8) * 8;
        if (row < left && column0 + column < width) held[i] = *(const Pack<T, 8> *)(to + (u64)row * width + column);
    }
    copies_wait<0>();
    __syncthreads();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp % 2, quarter = warp / 2;
    float sums[2][4][4] = {};
#pragma unroll
    for (int k = 0; k < R; k += 16) {
        u32 a[2][4], b[2][4];
        for (int i = 0; i < 2; i++) {
            load_tiles(a[i], row_of_a(left_rows + (half * 32 + i * 16) * STRIDE + k, STRIDE));
            load_tiles(b[i], row_of_b(right_rows + (quarter * 32 + i * 16) * STRIDE + k, STRIDE));
        }
        for (int i = 0; i < 2; i++)
            for (int n = 0; n < 4; n++) multiply_add(sums[i][n], a[i], b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], T());
    }
    __syncthreads(); // the factors are read; their place takes the product, so that y is written in whole packs
    float *products = (float *)shared;
    for (int i = 0; i < 2; i++)
        for (int n = 0; n < 4; n++)
            for (int j = 0; j < 4; j++) {
                int row = half * 32 + i * 16 + lane / 4 + j / 2 * 8, column = quarter * 32 + n * 8 + lane % 4 * 2 + j % 2;
                products[row * OUT + column] = sums[i][n][j];
            }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
        int pack = threadIdx.x + i * 256, row = pack / (COLUMNS / 8), column = pack % (COLUMNS / 8) * 8;
        if (row >= left || column0 + column >= width) continue;
        Pack<T, 8> sum;
        for (int j = 0; j < 8; j++)
            set(sum.at[j], to_float(held[i].at[j]) + group.scale * products[row * OUT + column + j]);
        *(Pack<T, 8> *)(to + (u64)row * width + column) = sum;
    }
}
