// Candle's kernels that take indices: selection, gathering, scattering, sorting. The largest index of its type is none.
#include "../report.h"
#include "kernels.h"
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

namespace emulated::candle {
namespace {

template <class I> bool none(I index) { return index == std::numeric_limits<I>::max(); }
template <class I> size_t checked(I index, size_t size) {
    if ((size_t)index >= size) fail("an index of %lld, but there are %zu: a card asserts here", (long long)index, size);
    return (size_t)index;
}

template <class T, class I>
void select(size_t numel, size_t dims, const size_t *info, const I *ids, const T *in, T *out, size_t, size_t from_size,
            size_t ids_size, size_t right) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++) {
        I id = ids[i / right % ids_size];
        if (none(id)) { out[i] = T(0); continue; }
        size_t left = i / (ids_size * right);
        size_t at = left * from_size * right + checked(id, from_size) * right + i % right;
        out[i] = in[from.at(at)];
    }
}
template <class T, class I>
void gather(size_t numel, const I *ids, const T *in, T *out, size_t, size_t from_size, size_t ids_size, size_t right) {
    for (size_t i = 0; i < numel; i++) {
        if (none(ids[i])) { out[i] = T(0); continue; }
        out[i] = in[(i / (right * ids_size) * from_size + checked(ids[i], from_size)) * right + i % right];
    }
}
template <class T, class I>
void index_add(const I *ids, size_t ids_size, const T *in, T *out, size_t left, size_t, size_t to_size, size_t right) {
    for (size_t i = 0; i < left * right; i++)
        for (size_t j = 0; j < ids_size; j++) {
            if (none(ids[j])) continue;
            T &to = out[(i / right * to_size + checked(ids[j], to_size)) * right + i % right];
            to = (T)((computed<T>)to + (computed<T>)in[(i / right * ids_size + j) * right + i % right]);
        }
}
template <class T, class I, bool add>
void scatter(const I *ids, const T *in, T *out, size_t left, size_t from_size, size_t to_size, size_t right) {
    for (size_t i = 0; i < left * right; i++)
        for (size_t j = 0; j < from_size; j++) {
            size_t at = (i / right * from_size + j) * right + i % right;
            if (none(ids[at])) continue;
            T &to = out[(i / right * to_size + checked(ids[at], to_size)) * right + i % right];
            to = add ? (T)((computed<T>)to + (computed<T>)in[at]) : in[at];
        }
}

template <class T, bool ascending> void sort(const T *in, uint32_t *out, int columns, int) {
    for (size_t row = 0; row < grid_of_launch().x; row++, in += columns, out += columns) {
        std::iota(out, out + columns, 0u);
        std::stable_sort(out, out + columns, [&](uint32_t a, uint32_t b) {
            return ascending ? (computed<T>)in[a] < (computed<T>)in[b] : (computed<T>)in[b] < (computed<T>)in[a];
        });
    }
}

template <class T, class I> void add_with(Table &t, const std::string &names) {
    t["is_" + names] = whole<select<T, I>>();
    t["gather_" + names] = whole<gather<T, I>>();
    t["ia_" + names] = whole<index_add<T, I>>();
    t["s_" + names] = whole<scatter<T, I, false>>();
    t["sa_" + names] = whole<scatter<T, I, true>>();
}
template <class T> void add(Table &t, const std::string &type) {
    add_with<T, uint8_t>(t, "u8_" + type);
    add_with<T, uint32_t>(t, "u32_" + type);
    add_with<T, int64_t>(t, "i64_" + type);
    t["asort_asc_" + type] = whole<sort<T, true>>();
    t["asort_desc_" + type] = whole<sort<T, false>>();
}

} // namespace

void add_indexing(Table &t) {
    add<float>(t, "f32");
    add<double>(t, "f64");
    add<f16>(t, "f16");
    add<bf16>(t, "bf16");
    add<uint8_t>(t, "u8");
    add<uint32_t>(t, "u32");
    add<int64_t>(t, "i64");
}

} // namespace emulated::candle
