// Matrix products in float, blocked for the cache; no more than tests of small networks need.
#include "gemm.h"
#include "parallel.h"
#include <algorithm>
#include <vector>

namespace emulated {
namespace {

#if defined(__x86_64__)
#define FOR_SEVERAL_PROCESSORS __attribute__((target_clones("arch=haswell", "default")))
#else
#define FOR_SEVERAL_PROCESSORS
#endif

// c, `n` columns of `m`, += a, `k` columns of `m`, times b, `n` columns of `k`.
FOR_SEVERAL_PROCESSORS
void add_product(float *__restrict c, const float *__restrict a, const float *__restrict b, size_t m, size_t n, size_t k) {
    constexpr size_t ROWS = 64, DEPTH = 256;
    for (size_t k0 = 0; k0 < k; k0 += DEPTH)
        for (size_t m0 = 0; m0 < m; m0 += ROWS) {
            size_t rows = std::min(ROWS, m - m0), depth = std::min(DEPTH, k - k0);
            for (size_t j = 0; j < n; j++) {
                float sums[ROWS] = {};
                for (size_t p = 0; p < depth; p++) {
                    float x = b[j * k + k0 + p];
                    const float *column = a + (k0 + p) * m + m0;
                    if (rows == ROWS) for (size_t i = 0; i < ROWS; i++) sums[i] += column[i] * x;
                    else for (size_t i = 0; i < rows; i++) sums[i] += column[i] * x;
                }
                for (size_t i = 0; i < rows; i++) c[j * m + m0 + i] += sums[i];
            }
        }
}

// The matrix as floats, `rows` x `columns`, by columns.
std::vector<float> floats(const Matrix &x, size_t batch, size_t rows, size_t columns) {
    std::vector<float> out(rows * columns);
    auto *at = (const char *)x.at + batch * x.stride * size_of(x.type);
    for (size_t j = 0; j < columns; j++)
        for (size_t i = 0; i < rows; i++)
            out[j * rows + i] = get(x.type, at, x.transposed ? i * x.leading + j : j * x.leading + i);
    return out;
}

} // namespace

void multiply(size_t m, size_t n, size_t k, const Matrix &a, const Matrix &b, size_t batch,
              const std::function<void(size_t, const float *)> &use) {
    bool heavy = m * n * k * batch > 1 << 20;
    if (batch > 1) {
        for_each(batch, heavy, [&](size_t i) {
            auto left = floats(a, i, m, k), right = floats(b, i, k, n);
            std::vector<float> c(m * n, 0.0f);
            add_product(c.data(), left.data(), right.data(), m, n, k);
            use(i, c.data());
        });
        return;
    }
    for (size_t i = 0; i < batch; i++) {
        auto left = floats(a, i, m, k), right = floats(b, i, k, n);
        std::vector<float> c(m * n, 0.0f);
        constexpr size_t COLUMNS = 16;
        for_each((n + COLUMNS - 1) / COLUMNS, heavy, [&](size_t part) {
            size_t first = part * COLUMNS, columns = std::min(COLUMNS, n - first);
            add_product(c.data() + first * m, left.data(), right.data() + first * k, m, columns, k);
        });
        use(i, c.data());
    }
}

size_t span(size_t rows, size_t columns, int64_t leading, size_t batch, int64_t stride) {
    if (rows == 0 || columns == 0 || batch == 0) return 0;
    return (batch - 1) * (stride < 0 ? 0 : stride) + (columns - 1) * leading + rows;
}

} // namespace emulated
