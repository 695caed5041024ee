// cuBLAS, as far as candle uses it: handles and general matrix products.
#include "gemm.h"
#include "memory.h"
#include "report.h"
#include "status.h"
#include "stream.h"
#include <algorithm>

using namespace emulated;

namespace {

enum Status : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };

struct Handle {
    void *stream = nullptr;
    int pointer_mode = 0, math_mode = 0;
};

enum Compute : int { COMPUTE_16F = 64, COMPUTE_64F = 70 };

bool known(DataType type) { return type == R_32F || type == R_64F || type == R_16F || type == R_16BF; }

Status product(Handle *handle, int transa, int transb, int m, int n, int k, float alpha, const void *a, DataType ta,
               int lda, int64_t sa, const void *b, DataType tb, int ldb, int64_t sb, float beta, void *c, DataType tc,
               int ldc, int64_t sc, int batch) {
    if (!handle) return NOT_INITIALIZED;
    if (m < 0 || n < 0 || k < 0 || batch < 0 || lda < std::max(1, transa ? k : m) || ldb < std::max(1, transb ? n : k) ||
        ldc < std::max(1, m)) {
        note("cuBLAS: no product %d x %d x %d with leading dimensions %d, %d, %d", m, n, k, lda, ldb, ldc);
        return INVALID_VALUE;
    }
    if (!known(ta) || !known(tb) || !known(tc) || ta != tb) return NOT_SUPPORTED;
    if (m == 0 || n == 0 || batch == 0) return SUCCESS;
    auto size = [](DataType type, size_t elements) { return elements * size_of(type); };
    memory::require((uint64_t)a, size(ta, span(transa ? k : m, transa ? m : k, lda, batch, sa)), "cuBLAS reads A");
    memory::require((uint64_t)b, size(tb, span(transb ? n : k, transb ? k : n, ldb, batch, sb)), "cuBLAS reads B");
    memory::require((uint64_t)c, size(tc, span(m, n, ldc, batch, sc)), "cuBLAS writes C");
    CUresult result = submit(stream_of(handle->stream), [=] {
        multiply(m, n, k, {a, ta, lda, sa, transa != 0}, {b, tb, ldb, sb, transb != 0}, batch,
                 [&](size_t i, const float *sum) {
                     auto *to = (char *)c + i * sc * size_of(tc);
                     for (int column = 0; column < n; column++)
                         for (int row = 0; row < m; row++) {
                             size_t at = (size_t)column * ldc + row;
                             float x = alpha * sum[(size_t)column * m + row];
                             put(tc, to, at, beta == 0 ? x : x + beta * get(tc, to, at));
                         }
                 });
    });
    return result == CUDA_SUCCESS ? SUCCESS : EXECUTION_FAILED;
}

// What alpha and beta are depends on how it is computed.
float scalar(const void *at, int compute) {
    if (compute == COMPUTE_16F || compute == COMPUTE_16F + 1) return *(const f16 *)at;
    if (compute == COMPUTE_64F || compute == COMPUTE_64F + 1) return (float)*(const double *)at;
    return *(const float *)at;
}

} // namespace

EXPORTED Status cublasCreate_v2(Handle **handle) { return *handle = new Handle, SUCCESS; }
EXPORTED Status cublasDestroy_v2(Handle *handle) { return delete handle, SUCCESS; }
EXPORTED Status cublasSetStream_v2(Handle *handle, void *stream) { return handle->stream = stream, SUCCESS; }
EXPORTED Status cublasGetStream_v2(Handle *handle, void **stream) { return *stream = handle->stream, SUCCESS; }
EXPORTED Status cublasSetWorkspace_v2(Handle *, void *, size_t) { return SUCCESS; }
EXPORTED Status cublasSetPointerMode_v2(Handle *handle, int mode) {
    // Alpha and beta in the card's memory are not emulated.
    return mode == 0 ? (handle->pointer_mode = mode, SUCCESS) : NOT_SUPPORTED;
}
EXPORTED Status cublasGetPointerMode_v2(Handle *handle, int *mode) { return *mode = handle->pointer_mode, SUCCESS; }
EXPORTED Status cublasSetMathMode(Handle *handle, int mode) { return handle->math_mode = mode, SUCCESS; }
EXPORTED Status cublasGetMathMode(Handle *handle, int *mode) { return *mode = handle->math_mode, SUCCESS; }
EXPORTED Status cublasGetVersion_v2(Handle *, int *version) { return *version = 130000, SUCCESS; }

EXPORTED Status cublasGemmStridedBatchedEx(Handle *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                                         const void *a, DataType ta, int lda, long long sa, const void *b, DataType tb,
                                         int ldb, long long sb, const void *beta, void *c, DataType tc, int ldc,
                                         long long sc, int batch, int compute, int) {
    return product(handle, transa, transb, m, n, k, scalar(alpha, compute), a, ta, lda, sa, b, tb, ldb, sb,
                   scalar(beta, compute), c, tc, ldc, sc, batch);
}
EXPORTED Status cublasGemmEx(Handle *handle, int transa, int transb, int m, int n, int k, const void *alpha, const void *a,
                           DataType ta, int lda, const void *b, DataType tb, int ldb, const void *beta, void *c,
                           DataType tc, int ldc, int compute, int) {
    return product(handle, transa, transb, m, n, k, scalar(alpha, compute), a, ta, lda, 0, b, tb, ldb, 0,
                   scalar(beta, compute), c, tc, ldc, 0, 1);
}
EXPORTED Status cublasSgemm_v2(Handle *handle, int transa, int transb, int m, int n, int k, const float *alpha,
                             const float *a, int lda, const float *b, int ldb, const float *beta, float *c, int ldc) {
    return product(handle, transa, transb, m, n, k, *alpha, a, R_32F, lda, 0, b, R_32F, ldb, 0, *beta, c, R_32F, ldc, 0, 1);
}
EXPORTED Status cublasSgemmStridedBatched(Handle *handle, int transa, int transb, int m, int n, int k, const float *alpha,
                                        const float *a, int lda, long long sa, const float *b, int ldb, long long sb,
                                        const float *beta, float *c, int ldc, long long sc, int batch) {
    return product(handle, transa, transb, m, n, k, *alpha, a, R_32F, lda, sa, b, R_32F, ldb, sb, *beta, c, R_32F, ldc,
                   sc, batch);
}
EXPORTED Status cublasDgemmStridedBatched(Handle *handle, int transa, int transb, int m, int n, int k, const double *alpha,
                                        const double *a, int lda, long long sa, const double *b, int ldb, long long sb,
                                        const double *beta, double *c, int ldc, long long sc, int batch) {
    return product(handle, transa, transb, m, n, k, (float)*alpha, a, R_64F, lda, sa, b, R_64F, ldb, sb, (float)*beta, c,
                   R_64F, ldc, sc, batch);
}
