// Candle's kernels from one type of elements to another. It has none to or from i16 and i32, and those of f8 have names
// that it does not ask for: as in it, these are not there.
#include "kernels.h"
#include <limits>
#include <type_traits>

namespace emulated::candle {
namespace {

template <class From, class To>
void cast(size_t numel, size_t dims, const size_t *info, const From *in, To *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++) {
        computed<From> x = in[from.at(i)];
        if constexpr (std::is_floating_point_v<computed<From>> && std::is_integral_v<To>) {
            // As the card's conversions: what is too large or too small is the largest or the least.
            constexpr auto least = std::numeric_limits<To>::min(), largest = std::numeric_limits<To>::max();
            out[i] = x != x ? To(0) : x <= (double)least ? least : x >= (double)largest ? largest : (To)x;
        } else {
            out[i] = (To)(computed<To>)x;
        }
    }
}

template <class From> void add_from(Table &t, const std::string &from) {
    t["cast_" + from + "_f32"] = whole<cast<From, float>>();
    t["cast_" + from + "_f64"] = whole<cast<From, double>>();
    t["cast_" + from + "_f16"] = whole<cast<From, f16>>();
    t["cast_" + from + "_bf16"] = whole<cast<From, bf16>>();
    t["cast_" + from + "_u8"] = whole<cast<From, uint8_t>>();
    t["cast_" + from + "_u32"] = whole<cast<From, uint32_t>>();
    t["cast_" + from + "_i64"] = whole<cast<From, int64_t>>();
}

} // namespace

void add_casts(Table &t) {
    add_from<float>(t, "f32");
    add_from<double>(t, "f64");
    add_from<f16>(t, "f16");
    add_from<bf16>(t, "bf16");
    add_from<uint8_t>(t, "u8");
    add_from<uint32_t>(t, "u32");
    add_from<int64_t>(t, "i64");
    // Candle has no kernels for these, and asking for one fails on a card as well.
    for (auto missing : {"cast_i64_f16", "cast_i64_bf16", "cast_f16_i64", "cast_bf16_i64"}) t.erase(missing);
}

} // namespace emulated::candle
