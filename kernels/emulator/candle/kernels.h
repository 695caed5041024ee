// Candle's own CUDA kernels, by name. They come as PTX, which is not run here: each has an implementation that does the
// whole grid's work at once, with the parameters of candle-kernels 0.11 in their order.
#pragma once

#include "../device_types.h"
#include "../elements.h"
#include <stdint.h>
#include <string>
#include <unordered_map>

namespace emulated::candle {

using Table = std::unordered_map<std::string, Entry>;

void add_elementwise(Table &table);
void add_casts(Table &table);
void add_reductions(Table &table);
void add_indexing(Table &table);
void add_images(Table &table);

// The grid that the kernel that runs was launched with.
Index grid_of_launch();

template <auto kernel> Entry whole() { return entry<kernel>(1024); }

// Elements of a tensor in order, by its strides. `info`: dimensions, then strides; null if elements lie in order.
struct Strided {
    size_t count;
    const size_t *dims, *strides;
    size_t at(size_t i) const {
        if (!strides) return i;
        size_t at = 0;
        for (size_t d = count; d-- > 0;) {
            at += i % dims[d] * strides[d];
            i /= dims[d];
        }
        return at;
    }
};
inline Strided strided(size_t count, const size_t *info, size_t which = 1) {
    if (!info) return {0, nullptr, nullptr};
    const size_t *strides = info + which * count;
    size_t dense = 1;
    bool contiguous = true;
    for (size_t d = count; d-- > 0;) {
        if (info[d] > 1 && strides[d] != dense) contiguous = false;
        dense *= info[d];
    }
    return {count, info, contiguous ? nullptr : strides};
}

// The type that a type is computed in.
template <class T> struct Computed { using Type = T; };
template <> struct Computed<f16> { using Type = float; };
template <> struct Computed<bf16> { using Type = float; };
template <> struct Computed<e4m3> { using Type = float; };
template <class T> using computed = typename Computed<T>::Type;

} // namespace emulated::candle
