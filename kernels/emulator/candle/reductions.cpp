// Candle's reductions over the last dimensions, its softmax and its norms.
#include "kernels.h"
#include <limits>
#include <math.h>
#include <vector>

namespace emulated::candle {
namespace {

// Sums of 16-bit floats are kept in float here; candle keeps f16's in f16.
template <class T>
void sum(size_t numel, size_t each, size_t dims, const size_t *info, const T *in, T *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; each && i < numel / each; i++) {
        computed<T> sum = 0;
        for (size_t j = 0; j < each; j++) sum += (computed<T>)in[from.at(i * each + j)];
        out[i] = (T)sum;
    }
}
// Its first parameter counts results, not elements.
template <class T>
void sum_small(size_t results, size_t each, size_t dims, const size_t *info, const T *in, T *out) {
    if (each == 0) for (size_t i = 0; i < results; i++) out[i] = T(0);
    else sum<T>(results * each, each, dims, info, in, out);
}

template <class T, bool largest>
void extreme(size_t numel, size_t each, size_t dims, const size_t *info, const T *in, T *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; each && i < numel / each; i++) {
        computed<T> best = in[from.at(i * each)];
        for (size_t j = 1; j < each; j++) {
            computed<T> x = in[from.at(i * each + j)];
            if (best != best || (largest ? x > best : x < best)) best = x;
        }
        out[i] = (T)best;
    }
}
template <class T, bool largest>
void index_of_extreme(size_t numel, size_t each, size_t dims, const size_t *info, const T *in, uint32_t *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; each && i < numel / each; i++) {
        size_t best = 0;
        for (size_t j = 1; j < each; j++) {
            computed<T> x = in[from.at(i * each + j)], y = in[from.at(i * each + best)];
            if (largest ? x > y : x < y) best = j;
        }
        out[i] = (uint32_t)best;
    }
}

// These three have a block for each row, so they need to know the grid.
template <class T> void softmax_row(const T *in, T *out, int columns) {
    computed<T> largest = -INFINITY, sum = 0;
    for (int i = 0; i < columns; i++) largest = fmax(largest, (computed<T>)in[i]);
    std::vector<computed<T>> e(columns);
    for (int i = 0; i < columns; i++) sum += e[i] = exp((computed<T>)in[i] - largest);
    for (int i = 0; i < columns; i++) out[i] = (T)(e[i] / sum);
}
template <class T> void softmax(const T *in, T *out, int columns) {
    for (size_t row = 0; row < grid_of_launch().x; row++) softmax_row(in + row * columns, out + row * columns, columns);
}
template <class T>
void layernorm(const T *in, T *out, const T *scale, const T *shift, int columns, int, float eps) {
    for (size_t row = 0; row < grid_of_launch().x; row++, in += columns, out += columns) {
        double mean = 0, square = 0;
        for (int i = 0; i < columns; i++) mean += (float)in[i];
        mean /= columns;
        for (int i = 0; i < columns; i++) square += ((float)in[i] - mean) * ((float)in[i] - mean);
        float factor = 1 / sqrtf((float)(square / columns) + eps);
        for (int i = 0; i < columns; i++) {
            float x = ((float)in[i] - (float)mean) * factor;
            out[i] = (T)(x * (scale ? (float)scale[i] : 1.0f) + (shift ? (float)shift[i] : 0.0f));
        }
    }
}
template <class T> void rmsnorm(const T *in, T *out, const T *scale, int columns, int, float eps) {
    for (size_t row = 0; row < grid_of_launch().x; row++, in += columns, out += columns) {
        float square = 0;
        for (int i = 0; i < columns; i++) square += (float)in[i] * (float)in[i];
        float factor = 1 / sqrtf(square / columns + eps);
        for (int i = 0; i < columns; i++) out[i] = (T)(factor * (float)in[i] * (scale ? (float)scale[i] : 1.0f));
    }
}

template <class T> void add_reduction(Table &t, const std::string &type) {
    t["fast_sum_" + type] = whole<sum<T>>();
    t["fast_sum_small_" + type] = whole<sum_small<T>>();
    t["fast_max_" + type] = whole<extreme<T, true>>();
    t["fast_min_" + type] = whole<extreme<T, false>>();
    t["fast_argmax_" + type] = whole<index_of_extreme<T, true>>();
    t["fast_argmin_" + type] = whole<index_of_extreme<T, false>>();
}
template <class T> void add_norms(Table &t, const std::string &type) {
    add_reduction<T>(t, type);
    t["softmax_" + type] = whole<softmax<T>>();
    if constexpr (sizeof(T) <= 4) {
        t["layernorm_" + type] = whole<layernorm<T>>();
        t["rmsnorm_" + type] = whole<rmsnorm<T>>();
    }
}

} // namespace

void add_reductions(Table &t) {
    add_norms<float>(t, "f32");
    add_norms<double>(t, "f64");
    add_norms<f16>(t, "f16");
    add_norms<bf16>(t, "bf16");
    add_reduction<uint8_t>(t, "u8");
    add_reduction<uint32_t>(t, "u32");
    add_reduction<int64_t>(t, "i64");
}

} // namespace emulated::candle
