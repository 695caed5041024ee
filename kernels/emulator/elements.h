// Types of elements for the libraries: how they lie in memory, and their values as floats.
#pragma once

#include "half.h"
#include <stddef.h>
#include <stdint.h>

namespace emulated {

struct f16 {
    uint16_t bits;
    f16() = default;
    f16(float x) : bits(half_of_float(x)) {}
    operator float() const { return float_of_half(bits); }
};

struct bf16 {
    uint16_t bits;
    bf16() = default;
    bf16(float x) {
        uint32_t b = bits_of_float(x);
        bits = x != x ? 0x7fff : (uint16_t)((b + 0x7fff + (b >> 16 & 1)) >> 16);
    }
    operator float() const { return float_of_bits((uint32_t)bits << 16); }
};

// Four bits of exponent, three of fraction; no infinity. Beyond 448 it saturates.
struct e4m3 {
    uint8_t bits;
    e4m3() = default;
    e4m3(float x) {
        uint8_t sign = bits_of_float(x) >> 24 & 0x80;
        float size = x < 0 ? -x : x;
        if (x != x) bits = sign | 0x7f;
        else if (size >= 448) bits = sign | 0x7e;
        else if (size < 0x1p-6f) bits = sign | (uint8_t)((size + 0x1p14f - 0x1p14f) * 0x1p9f);
        else {
            uint32_t b = bits_of_float(size);
            bits = sign | (uint8_t)((b + 0x7ffff + (b >> 20 & 1) - (120u << 23)) >> 20);
        }
    }
    operator float() const {
        int exponent = bits >> 3 & 15, fraction = bits & 7;
        if ((bits & 0x7f) == 0x7f) return float_of_bits(0x7fc00000);
        float size = exponent ? float_of_bits((uint32_t)(exponent + 120) << 23 | (uint32_t)fraction << 20)
                              : (float)fraction * 0x1p-9f;
        return bits & 0x80 ? -size : size;
    }
};

// The numbers of `cudaDataType`.
enum DataType : int { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14, R_8F_E4M3 = 28 };

inline size_t size_of(DataType type) {
    switch (type) {
    case R_32F: return 4;
    case R_64F: return 8;
    case R_16F: case R_16BF: return 2;
    case R_8F_E4M3: return 1;
    }
    return 0;
}
inline float get(DataType type, const void *at, size_t i) {
    switch (type) {
    case R_32F: return ((const float *)at)[i];
    case R_64F: return (float)((const double *)at)[i];
    case R_16F: return ((const f16 *)at)[i];
    case R_16BF: return ((const bf16 *)at)[i];
    case R_8F_E4M3: return ((const e4m3 *)at)[i];
    }
    return 0;
}
inline void put(DataType type, void *at, size_t i, float x) {
    switch (type) {
    case R_32F: ((float *)at)[i] = x; break;
    case R_64F: ((double *)at)[i] = x; break;
    case R_16F: ((f16 *)at)[i] = x; break;
    case R_16BF: ((bf16 *)at)[i] = x; break;
    case R_8F_E4M3: ((e4m3 *)at)[i] = x; break;
    }
}

} // namespace emulated
