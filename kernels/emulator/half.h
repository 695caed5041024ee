// Sixteen-bit floats: IEEE half precision to and from float, in whole numbers, for kernels and for the libraries.
#pragma once

#include <stdint.h>
#include <string.h>

namespace emulated {

inline float float_of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

inline float float_of_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, size = half & 0x7fff;
    if (size >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (size & 0x3ff) << 13);
    if (size >= 0x400) return float_of_bits(sign | ((size << 13) + (112u << 23)));
    float subnormal = (float)size * 0x1p-24f;
    return sign ? -subnormal : subnormal;
}

// To nearest, ties to even; beyond the largest half it is infinite.
inline uint16_t half_of_float(float x) {
    uint32_t bits = bits_of_float(x), size = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x477ff000) return sign | 0x7c00;
    if (size >= 0x38800000) return sign | (uint16_t)((size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13);
    // Subnormal: steps of 2^-24. Adding 1/2 leaves exactly these in a float's fraction, rounded by the processor.
    float steps = float_of_bits(size) + 0.5f;
    return sign | (uint16_t)(bits_of_float(steps) - 0x3f000000);
}

} // namespace emulated
