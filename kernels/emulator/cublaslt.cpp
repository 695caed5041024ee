// cuBLASLt: matrix products by columns with a bias, an activation and scales of 8-bit operands. What the library's tables
// do not list for a Hopper card is refused here too: CUBLAS_STATUS_NOT_SUPPORTED, with the reason on standard error.
#include "gemm.h"
#include "memory.h"
#include "report.h"
#include "status.h"
#include "stream.h"
#include <algorithm>
#include <math.h>
#include <string.h>

using namespace emulated;

namespace {

enum Status : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };

struct Layout {
    DataType type;
    uint64_t rows, columns;
    int64_t leading;
    int order = 0, batch = 1;
    int64_t stride = 0;
};

enum Epilogue : int { RELU_BIT = 2, BIAS_BIT = 4, GELU_BIT = 32 };
enum ScaleMode : int { SCALAR = 0, OUTER_VECTOR = 3 };

struct Operation {
    int compute, scale_type;
    int pointer_mode = 0, transa = 0, transb = 0, epilogue = 1, bias_type = -1;
    const void *bias = nullptr;
    int64_t bias_stride = 0;
    const float *a_scale = nullptr, *b_scale = nullptr, *c_scale = nullptr, *d_scale = nullptr;
    int a_mode = SCALAR, b_mode = SCALAR;
    int8_t fast_accumulation = 0;
};

struct Preference {
    uint64_t workspace = 0;
};

struct Algorithm {
    uint64_t number, workspace, unused[6];
};

struct Found {
    Algorithm algorithm;
    size_t workspace;
    Status state;
    float waves;
    int reserved[4];
};

// The number that an attribute is set to, of any size.
template <class T> Status read(T &to, const void *from, size_t bytes) {
    if (bytes < sizeof(T)) return INVALID_VALUE;
    memcpy(&to, from, sizeof(T));
    return SUCCESS;
}

Status refused(const char *why) {
    note("cuBLASLt: %s", why);
    return NOT_SUPPORTED;
}

// Whether there is an algorithm for it.
Status check(const Operation &o, const Layout &a, const Layout &b, const Layout &c, const Layout &d) {
    uint64_t m = o.transa ? a.columns : a.rows, k = o.transa ? a.rows : a.columns;
    uint64_t n = o.transb ? b.rows : b.columns, k_of_b = o.transb ? b.columns : b.rows;
    if (k != k_of_b || d.rows != m || d.columns != n || c.rows != m || c.columns != n || !m || !n || !k) {
        note("cuBLASLt: matrices do not fit: op(A) %lu x %lu, op(B) %lu x %lu, C %lu x %lu, D %lu x %lu", m, k, k_of_b, n,
             c.rows, c.columns, d.rows, d.columns);
        return INVALID_VALUE;
    }
    for (auto *layout : {&a, &b, &c, &d}) {
        if (layout->order != 0) return refused("only matrices by columns are emulated");
        if (layout->leading < (int64_t)layout->rows) return INVALID_VALUE;
        if (layout->batch != d.batch) return refused("the batches differ");
    }
    if (o.compute != 68 && o.compute != 77 && o.compute != 74 && o.compute != 75) return refused("only sums in float are emulated");
    if (o.scale_type != R_32F) return refused("alpha and beta must be floats");
    if (o.pointer_mode != 0) return refused("alpha and beta must lie in host memory");
    if (c.type != d.type) return refused("C has another type than D");
    if (a.type != b.type) return refused("A has another type than B");
    bool eight = a.type == R_8F_E4M3;
    if (a.type == R_32F ? d.type != R_32F
        : a.type == R_16F ? d.type != R_16F && d.type != R_32F
        : a.type == R_16BF ? d.type != R_16BF && d.type != R_32F
        : eight ? d.type != R_16BF && d.type != R_16F && d.type != R_32F
                : true)
        return refused("no product of such types");
    if (o.epilogue & ~(1 | RELU_BIT | BIAS_BIT | GELU_BIT) || o.epilogue == 0) return refused("no such epilogue is emulated");
    if (o.epilogue & BIAS_BIT) {
        int type = o.bias_type < 0 ? (eight && d.type == R_32F ? R_16BF : d.type) : o.bias_type;
        int wanted = eight && d.type == R_32F ? R_16BF : d.type;
        if (type != wanted) return refused("the bias has another type than the table says for D");
    }
    if (eight) {
        if (o.transa != 1 || o.transb != 0) return refused("8-bit operands: A must be transposed and B not");
        // B's columns are free: PyTorch's _scaled_mm multiplies any number of rows so.
        if (m % 16 || k % 16) return refused("8-bit operands: the sides of A must be multiples of 16");
        if (a.leading % 16 || b.leading % 16 || c.leading * size_of(c.type) % 16 || d.leading * size_of(d.type) % 16)
            return refused("8-bit operands: columns must begin at multiples of 16 bytes");
        if (o.a_mode != o.b_mode || (o.a_mode != SCALAR && o.a_mode != OUTER_VECTOR)) return refused("no such modes of scales");
    } else if (o.a_scale || o.b_scale || o.d_scale) {
        return refused("scales are for 8-bit matrices");
    }
    if (o.c_scale || o.d_scale) return refused("scales of C and D are for 8-bit results");
    return SUCCESS;
}

float activated(float x, int epilogue) {
    if (epilogue & RELU_BIT) return x > 0 ? x : 0;
    // The library's GELU is the approximation by tanh.
    if (epilogue & GELU_BIT) return 0.5f * x * (1 + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
    return x;
}

size_t bytes(const Layout &x) { return span(x.rows, x.columns, x.leading, x.batch, x.stride) * size_of(x.type); }

} // namespace

EXPORTED Status cublasLtCreate(void **handle) { return *handle = new char, SUCCESS; }
EXPORTED Status cublasLtDestroy(void *handle) { return delete (char *)handle, SUCCESS; }
EXPORTED size_t cublasLtGetVersion() { return 130000; }
EXPORTED const char *cublasLtGetStatusString(Status status) {
    return status == SUCCESS ? "CUBLAS_STATUS_SUCCESS" : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
           : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE" : "CUBLAS_STATUS_EXECUTION_FAILED";
}

EXPORTED Status cublasLtMatrixLayoutCreate(Layout **layout, DataType type, uint64_t rows, uint64_t columns, int64_t leading) {
    if (size_of(type) == 0) return refused("no matrices of such a type");
    return *layout = new Layout{type, rows, columns, leading}, SUCCESS;
}
EXPORTED Status cublasLtMatrixLayoutDestroy(Layout *layout) { return delete layout, SUCCESS; }
EXPORTED Status cublasLtMatrixLayoutSetAttribute(Layout *layout, int attribute, const void *from, size_t size) {
    switch (attribute) {
    case 0: return read(layout->type, from, size);
    case 1: return read(layout->order, from, size);
    case 2: return read(layout->rows, from, size);
    case 3: return read(layout->columns, from, size);
    case 4: return read(layout->leading, from, size);
    case 5: return read(layout->batch, from, size);
    case 6: return read(layout->stride, from, size);
    default: return refused("no such attribute of layouts is emulated");
    }
}

EXPORTED Status cublasLtMatmulDescCreate(Operation **operation, int compute, int scale_type) {
    return *operation = new Operation{compute, scale_type}, SUCCESS;
}
EXPORTED Status cublasLtMatmulDescDestroy(Operation *operation) { return delete operation, SUCCESS; }
EXPORTED Status cublasLtMatmulDescSetAttribute(Operation *o, int attribute, const void *from, size_t size) {
    switch (attribute) {
    case 0: return read(o->compute, from, size);
    case 1: return read(o->scale_type, from, size);
    case 2: return read(o->pointer_mode, from, size);
    case 3: return read(o->transa, from, size);
    case 4: return read(o->transb, from, size);
    case 7: return read(o->epilogue, from, size);
    case 8: return read(o->bias, from, size);
    case 10: return read(o->bias_stride, from, size);
    case 15: return SUCCESS; // on how many multiprocessors
    case 17: return read(o->a_scale, from, size);
    case 18: return read(o->b_scale, from, size);
    case 19: return read(o->c_scale, from, size);
    case 20: return read(o->d_scale, from, size);
    case 25: return read(o->fast_accumulation, from, size);
    case 26: return read(o->bias_type, from, size);
    case 31: return read(o->a_mode, from, size);
    case 32: return read(o->b_mode, from, size);
    default: return refused("no such attribute of products is emulated");
    }
}

EXPORTED Status cublasLtMatmulPreferenceCreate(Preference **preference) { return *preference = new Preference, SUCCESS; }
EXPORTED Status cublasLtMatmulPreferenceDestroy(Preference *preference) { return delete preference, SUCCESS; }
EXPORTED Status cublasLtMatmulPreferenceSetAttribute(Preference *preference, int attribute, const void *from, size_t size) {
    return attribute == 1 ? read(preference->workspace, from, size) : SUCCESS;
}

// Two algorithms at most: one needs no workspace, the other some.
EXPORTED Status cublasLtMatmulAlgoGetHeuristic(void *handle, Operation *operation, Layout *a, Layout *b, Layout *c, Layout *d,
                                             Preference *preference, int wanted, Found *found, int *count) {
    *count = 0;
    if (!handle) return NOT_INITIALIZED;
    if (wanted < 1) return INVALID_VALUE;
    if (Status status = check(*operation, *a, *b, *c, *d)) return status;
    auto add = [&](uint64_t number, uint64_t workspace) {
        if (*count < wanted && workspace <= preference->workspace)
            found[(*count)++] = {{number, workspace, {}}, workspace, SUCCESS, 1.0f, {}};
    };
    add(1, 8192);
    add(2, 0);
    return SUCCESS;
}

EXPORTED Status cublasLtMatmul(void *handle, Operation *operation, const float *alpha_at, const void *a, Layout *a_layout,
                             const void *b, Layout *b_layout, const float *beta_at, const void *c, Layout *c_layout,
                             void *d, Layout *d_layout, const Algorithm *algorithm, void *workspace, size_t workspace_bytes,
                             void *stream) {
    if (!handle) return NOT_INITIALIZED;
    Operation o = *operation;
    Layout la = *a_layout, lb = *b_layout, lc = *c_layout, ld = *d_layout;
    if (Status status = check(o, la, lb, lc, ld)) return status;
    float alpha = *alpha_at, beta = *beta_at;
    if (algorithm && (algorithm->number < 1 || algorithm->number > 2 || algorithm->workspace > workspace_bytes)) {
        note("cuBLASLt: no such algorithm, or its workspace is too small");
        return INVALID_VALUE;
    }
    if (beta != 0 && !c) return INVALID_VALUE;
    bool eight = la.type == R_8F_E4M3;
    for (auto *at : {a, b, (const void *)d})
        if ((uintptr_t)at % (eight ? 16 : size_of(la.type))) return refused("a matrix is not aligned");
    if (workspace_bytes) {
        if ((uintptr_t)workspace % 16) return refused("the workspace is not aligned");
        memory::require((uint64_t)workspace, workspace_bytes, "cuBLASLt's workspace");
    }
    memory::require((uint64_t)a, bytes(la), "cuBLASLt reads A");
    memory::require((uint64_t)b, bytes(lb), "cuBLASLt reads B");
    memory::require((uint64_t)d, bytes(ld), "cuBLASLt writes D");
    if (beta != 0) memory::require((uint64_t)c, bytes(lc), "cuBLASLt reads C");
    size_t m = ld.rows, n = ld.columns, k = o.transa ? la.rows : la.columns, batch = (size_t)ld.batch;
    auto bias_type = (DataType)(o.bias_type >= 0 ? o.bias_type : eight && ld.type == R_32F ? R_16BF : ld.type);
    if (o.epilogue & BIAS_BIT)
        memory::require((uint64_t)o.bias, (m + (batch - 1) * o.bias_stride) * size_of(bias_type), "cuBLASLt reads the bias");
    if (o.a_scale) memory::require((uint64_t)o.a_scale, 4 * (o.a_mode == OUTER_VECTOR ? m : 1), "cuBLASLt reads A's scales");
    if (o.b_scale) memory::require((uint64_t)o.b_scale, 4 * (o.b_mode == OUTER_VECTOR ? n : 1), "cuBLASLt reads B's scales");
    if (eight && o.a_mode == OUTER_VECTOR && (!o.a_scale || !o.b_scale)) return INVALID_VALUE;
    size_t scratch = algorithm ? algorithm->workspace : 0;

    CUresult result = submit(stream_of(stream), [=] {
        if (scratch) memset(workspace, 0xff, scratch); // whoever else keeps something there loses it, as on a card
        multiply(m, n, k, {a, la.type, la.leading, la.stride, o.transa != 0}, {b, lb.type, lb.leading, lb.stride, o.transb != 0},
                 batch, [&](size_t i, const float *sum) {
                     auto *from = (const char *)c + i * lc.stride * size_of(lc.type);
                     auto *to = (char *)d + i * ld.stride * size_of(ld.type);
                     for (size_t column = 0; column < n; column++)
                         for (size_t row = 0; row < m; row++) {
                             float x = alpha * sum[column * m + row];
                             if (o.a_scale) x *= o.a_scale[o.a_mode == OUTER_VECTOR ? row : 0];
                             if (o.b_scale) x *= o.b_scale[o.b_mode == OUTER_VECTOR ? column : 0];
                             if (beta != 0) x += beta * get(lc.type, from, column * lc.leading + row);
                             if (o.epilogue & BIAS_BIT) x += get(bias_type, o.bias, i * o.bias_stride + row);
                             put(ld.type, to, column * ld.leading + row, activated(x, o.epilogue));
                         }
                 });
    });
    return result == CUDA_SUCCESS ? SUCCESS : EXECUTION_FAILED;
}
