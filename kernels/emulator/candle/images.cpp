// Candle's kernels on images [b, c, h, w] and sequences [b, c, l]: convolutions by rearrangement and directly, pooling,
// upsampling. Their sizes come in `info`: dimensions, then strides.
#include "kernels.h"
#include <math.h>

namespace emulated::candle {
namespace {

template <class T>
void im2col(size_t numel, size_t h_out, size_t w_out, size_t h_k, size_t w_k, size_t stride, size_t padding,
            size_t dilation, const size_t *info, const T *in, T *out) {
    const size_t *dims = info, *strides = info + 4;
    for (size_t i = 0; i < numel; i++) { // [b, h_out, w_out, c, h_k, w_k]
        size_t rest = i, kx = rest % w_k, ky = (rest /= w_k) % h_k, c = (rest /= h_k) % dims[1];
        size_t x = (rest /= dims[1]) % w_out, y = (rest /= w_out) % h_out, b = rest / h_out;
        size_t in_y = y * stride + ky * dilation - padding, in_x = x * stride + kx * dilation - padding;
        bool inside = in_y < dims[2] && in_x < dims[3]; // what is negative is huge
        out[i] = inside ? in[b * strides[0] + c * strides[1] + in_y * strides[2] + in_x * strides[3]] : T(0);
    }
}

template <class T>
void im2col1d(size_t numel, size_t l_out, size_t l_k, size_t stride, size_t padding, size_t dilation,
              const size_t *info, const T *in, T *out) {
    const size_t *dims = info, *strides = info + 3;
    for (size_t i = 0; i < numel; i++) // [b, l_out, c], with l_k elements each
        for (size_t k = 0; k < l_k; k++) {
            size_t c = i % dims[1], l = i / dims[1] % l_out, b = i / dims[1] / l_out;
            size_t from = l * stride + k * dilation - padding;
            out[i * l_k + k] = from < dims[2] ? in[b * strides[0] + c * strides[1] + from * strides[2]] : T(0);
        }
}

template <class T>
void conv2d(size_t, size_t w_out, size_t h_out, size_t stride, size_t padding, size_t dilation, const size_t *info,
            const T *in, const T *kernel, T *out) {
    const size_t *dims = info, *strides = info + 4, *k_dims = info + 8, *k_strides = info + 12;
    size_t c_out = k_dims[0], numel = dims[0] * c_out * h_out * w_out;
    for (size_t i = 0; i < numel; i++) {
        size_t x = i % w_out, y = i / w_out % h_out, c = i / w_out / h_out % c_out, b = i / w_out / h_out / c_out;
        computed<T> sum = 0;
        for (size_t ky = 0; ky < k_dims[2]; ky++)
            for (size_t kx = 0; kx < k_dims[3]; kx++) {
                size_t in_y = y * stride + ky * dilation - padding, in_x = x * stride + kx * dilation - padding;
                if (in_y >= dims[2] || in_x >= dims[3]) continue;
                for (size_t c_in = 0; c_in < dims[1]; c_in++)
                    sum += (computed<T>)in[b * strides[0] + c_in * strides[1] + in_y * strides[2] + in_x * strides[3]] *
                           (computed<T>)kernel[c * k_strides[0] + c_in * k_strides[1] + ky * k_strides[2] + kx * k_strides[3]];
            }
        out[i] = (T)sum;
    }
}

// "w" is candle's dims[2] here and "h" its dims[3].
template <class T, bool largest>
void pool(size_t, size_t w_k, size_t h_k, size_t w_stride, size_t h_stride, const size_t *info, const T *in, T *out) {
    const size_t *dims = info, *strides = info + 4;
    size_t w_out = (dims[2] - w_k) / w_stride + 1, h_out = (dims[3] - h_k) / h_stride + 1;
    for (size_t i = 0; i < dims[0] * dims[1] * w_out * h_out; i++) {
        size_t y = i % h_out, x = i / h_out % w_out, c = i / h_out / w_out % dims[1], b = i / h_out / w_out / dims[1];
        computed<T> sum = 0, most = -INFINITY;
        for (size_t kx = 0; kx < w_k; kx++)
            for (size_t ky = 0; ky < h_k; ky++) {
                computed<T> v = in[b * strides[0] + c * strides[1] + (x * w_stride + kx) * strides[2] + (y * h_stride + ky) * strides[3]];
                sum += v;
                if (v > most) most = v;
            }
        out[i] = (T)(largest ? most : sum / (computed<T>)(w_k * h_k));
    }
}

template <class T>
void upsample_nearest2d(size_t w_out, size_t h_out, double w_scale, double h_scale, const size_t *info, const T *in, T *out) {
    const size_t *dims = info, *strides = info + 4;
    for (size_t i = 0; i < dims[0] * dims[1] * w_out * h_out; i++) {
        size_t y = i % h_out, x = i / h_out % w_out, c = i / h_out / w_out % dims[1], b = i / h_out / w_out / dims[1];
        size_t in_x = (size_t)((double)x * w_scale), in_y = (size_t)((double)y * h_scale);
        if (in_x >= dims[2]) in_x = dims[2] - 1;
        if (in_y >= dims[3]) in_y = dims[3] - 1;
        out[i] = in[b * strides[0] + c * strides[1] + in_x * strides[2] + in_y * strides[3]];
    }
}

template <class T>
void upsample_bilinear2d(size_t w_out, size_t h_out, bool corners, bool has_h, double h_factor, bool has_w,
                         double w_factor, const size_t *info, const T *in, T *out) {
    const size_t *dims = info, *strides = info + 4;
    auto place = [&](size_t i, size_t size, size_t size_out, bool has, double factor) {
        double scale = corners ? (size_out > 1 ? (double)(size - 1) / (double)(size_out - 1) : 0)
                               : has ? 1 / factor : (double)size / (double)size_out;
        return fmax(0, corners ? scale * (double)i : scale * ((double)i + 0.5) - 0.5);
    };
    for (size_t i = 0; i < dims[0] * dims[1] * w_out * h_out; i++) {
        size_t x = i % w_out, y = i / w_out % h_out, c = i / w_out / h_out % dims[1], b = i / w_out / h_out / dims[1];
        double fy = place(y, dims[2], h_out, has_h, h_factor), fx = place(x, dims[3], w_out, has_w, w_factor);
        size_t y0 = (size_t)fmin(fy, (double)dims[2] - 1), x0 = (size_t)fmin(fx, (double)dims[3] - 1);
        size_t y1 = y0 + 1 < dims[2] ? y0 + 1 : dims[2] - 1, x1 = x0 + 1 < dims[3] ? x0 + 1 : dims[3] - 1;
        double wy = fmin(fmax(fy - (double)y0, 0), 1), wx = fmin(fmax(fx - (double)x0, 0), 1);
        auto at = [&](size_t yy, size_t xx) {
            return (double)(computed<T>)in[b * strides[0] + c * strides[1] + yy * strides[2] + xx * strides[3]];
        };
        double value = (at(y0, x0) * (1 - wx) + at(y0, x1) * wx) * (1 - wy) + (at(y1, x0) * (1 - wx) + at(y1, x1) * wx) * wy;
        out[i] = (T)(computed<T>)value;
    }
}

template <class T> void add(Table &t, const std::string &type) {
    t["im2col_" + type] = whole<im2col<T>>();
    t["im2col1d_" + type] = whole<im2col1d<T>>();
    t["conv2d_" + type] = whole<conv2d<T>>();
    t["avg_pool2d_" + type] = whole<pool<T, false>>();
    t["max_pool2d_" + type] = whole<pool<T, true>>();
    t["upsample_nearest2d_" + type] = whole<upsample_nearest2d<T>>();
    t["upsample_bilinear2d_" + type] = whole<upsample_bilinear2d<T>>();
}

} // namespace

void add_images(Table &t) {
    add<float>(t, "f32");
    add<double>(t, "f64");
    add<f16>(t, "f16");
    add<bf16>(t, "bf16");
}

} // namespace emulated::candle
