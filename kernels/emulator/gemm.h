// Matrix products for the emulated cuBLAS and cuBLASLt.
#pragma once

#include "elements.h"
#include <functional>

namespace emulated {

// A matrix by columns, `leading` elements from one column to the next, and the next of a batch `stride` elements on.
struct Matrix {
    const void *at;
    DataType type;
    int64_t leading, stride;
    bool transposed;
};

// For each of a batch the product of a, m x k, and b, k x n, as floats by columns: `use(batch, product)`.
void multiply(size_t m, size_t n, size_t k, const Matrix &a, const Matrix &b, size_t batch,
              const std::function<void(size_t, const float *)> &use);

// Elements from the first to the last of a matrix and its batch.
size_t span(size_t rows, size_t columns, int64_t leading, size_t batch, int64_t stride);

} // namespace emulated
