// Candle's element by element kernels: copies, fills, affine maps, functions of one and of two, choices.
#include "kernels.h"
#include <math.h>
#include <string.h>

namespace emulated::candle {
namespace {

// Functions of one element. Each is a type, so that it can be a parameter of a kernel's template.
#define UNARY(name, expression) \
    struct name { template <class C> static C of(C x) { return expression; } };
UNARY(Copy, x)
UNARY(Neg, -x)
UNARY(Recip, C(1) / x)
UNARY(Exp, exp(x))
UNARY(Log, log(x))
UNARY(Sin, sin(x))
UNARY(Cos, cos(x))
UNARY(Tanh, tanh(x))
UNARY(Erf, erf(x))
UNARY(Ceil, ceil(x))
UNARY(Floor, floor(x))
UNARY(Round, round(x))
UNARY(Normcdf, C(0.5) * erfc(-x * C(M_SQRT1_2)))
UNARY(Abs, fabs(x))
UNARY(Sqr, x * x)
UNARY(Sqrt, sqrt(x))
UNARY(Gelu, C(0.5) * x * (C(1) + tanh(C(M_2_SQRTPI * M_SQRT1_2) * (x + C(0.044715) * x * x * x))))
UNARY(GeluErf, x * C(0.5) * erfc(-x * C(M_SQRT1_2)))
UNARY(Relu, x > 0 ? x : x <= 0 ? C(0) : x)
UNARY(Silu, x / (C(1) + exp(-x)))
UNARY(Sigmoid, C(1) / (C(1) + exp(-x)))
UNARY(Sign, C((x > 0) - (x < 0)))
#undef UNARY

template <class T, class F>
void unary(size_t numel, size_t dims, const size_t *info, const T *in, T *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++) out[i] = (T)F::of((computed<T>)(in ? in[from.at(i)] : out[i]));
}
template <class T> void copy(size_t numel, size_t dims, const size_t *info, const T *in, T *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++) out[i] = in ? in[from.at(i)] : out[i];
}

struct Elu {
    template <class C> static C of(C x, C a) { return x > 0 ? x : a * (exp(x) - 1); }
};
struct Powf {
    template <class C> static C of(C x, C a) { return pow(x, a); }
};
template <class T, class F>
void unary_with(size_t numel, size_t dims, const size_t *info, T parameter, const T *in, T *out) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++)
        out[i] = (T)F::of((computed<T>)(in ? in[from.at(i)] : out[i]), (computed<T>)parameter);
}

template <class T>
void affine(size_t numel, size_t dims, const size_t *info, const T *in, T *out, T factor, T summand) {
    Strided from = strided(dims, info);
    for (size_t i = 0; i < numel; i++) {
        computed<T> x = in ? in[from.at(i)] : out[i];
        out[i] = (T)(x * (computed<T>)factor + (computed<T>)summand);
    }
}

template <class T> bool unordered(T a, T b) { return a != a || b != b; }
// A 16-bit maximum is NaN if one is; that of a float is the other.
struct Max {
    template <class T, class C> static C of(C a, C b) {
        if (unordered(a, b)) return sizeof(T) == 2 ? (a != a ? a : b) : (a != a ? b : a);
        return a < b ? b : a;
    }
};
struct Min {
    template <class T, class C> static C of(C a, C b) {
        if (unordered(a, b)) return sizeof(T) == 2 ? (a != a ? a : b) : (a != a ? b : a);
        return b < a ? b : a;
    }
};
#define BINARY(name, expression) \
    struct name { template <class T, class C> static auto of(C x, C y) { return expression; } };
BINARY(Add, x + y)
BINARY(Sub, x - y)
BINARY(Mul, x * y)
BINARY(Div, x / y)
BINARY(Eq, x == y)
BINARY(Ne, x != y)
BINARY(Lt, x < y)
BINARY(Le, x <= y)
BINARY(Gt, x > y)
BINARY(Ge, x >= y)
#undef BINARY

template <class T, class Out, class F>
void binary(size_t numel, size_t dims, const size_t *info, const T *a, const T *b, Out *out) {
    Strided left = strided(dims, info, 1), right = strided(dims, info, 2);
    for (size_t i = 0; i < numel; i++)
        out[i] = (Out)F::template of<T>((computed<T>)a[left.at(i)], (computed<T>)b[right.at(i)]);
}

template <class T, class Id>
void choose(size_t numel, size_t dims, const size_t *info, const Id *ids, const T *yes, const T *no, T *out) {
    Strided condition = strided(dims, info, 1), left = strided(dims, info, 2), right = strided(dims, info, 3);
    for (size_t i = 0; i < numel; i++) out[i] = ids[condition.at(i)] ? yes[left.at(i)] : no[right.at(i)];
}

template <class T> void fill(T *to, T value, size_t numel) {
    for (size_t i = 0; i < numel; i++) to[i] = value;
}
template <class T> void const_set(size_t numel, size_t dims, const size_t *info, T value, T *out) {
    Strided to = strided(dims, info);
    for (size_t i = 0; i < numel; i++) out[to.at(i)] = value;
}
template <class T>
void copy2d(const T *from, T *to, uint32_t rows, uint32_t columns, uint32_t from_stride, uint32_t to_stride) {
    for (size_t r = 0; r < rows; r++) memcpy(to + r * to_stride, from + r * from_stride, columns * sizeof(T));
}

template <class T> void add_any(Table &t, const std::string &type) {
    t["ucopy_" + type] = whole<copy<T>>();
    t["fill_" + type] = whole<fill<T>>();
    t["const_set_" + type] = whole<const_set<T>>();
    t["copy2d_" + type] = whole<copy2d<T>>();
    t["where_u8_" + type] = whole<choose<T, uint8_t>>();
    t["where_u32_" + type] = whole<choose<T, uint32_t>>();
    t["where_i64_" + type] = whole<choose<T, int64_t>>();
}

template <class T> void add_numbers(Table &t, const std::string &type) {
    add_any<T>(t, type);
    t["affine_" + type] = whole<affine<T>>();
    t["badd_" + type] = whole<binary<T, T, Add>>();
    t["bsub_" + type] = whole<binary<T, T, Sub>>();
    t["bmul_" + type] = whole<binary<T, T, Mul>>();
    t["bdiv_" + type] = whole<binary<T, T, Div>>();
    t["bmaximum_" + type] = whole<binary<T, T, Max>>();
    t["bminimum_" + type] = whole<binary<T, T, Min>>();
    t["eq_" + type] = whole<binary<T, uint8_t, Eq>>();
    t["ne_" + type] = whole<binary<T, uint8_t, Ne>>();
    t["lt_" + type] = whole<binary<T, uint8_t, Lt>>();
    t["le_" + type] = whole<binary<T, uint8_t, Le>>();
    t["gt_" + type] = whole<binary<T, uint8_t, Gt>>();
    t["ge_" + type] = whole<binary<T, uint8_t, Ge>>();
}

template <class T> void add_floats(Table &t, const std::string &type) {
    add_numbers<T>(t, type);
    t["uneg_" + type] = whole<unary<T, Neg>>();
    t["urecip_" + type] = whole<unary<T, Recip>>();
    t["uexp_" + type] = whole<unary<T, Exp>>();
    t["ulog_" + type] = whole<unary<T, Log>>();
    t["usin_" + type] = whole<unary<T, Sin>>();
    t["ucos_" + type] = whole<unary<T, Cos>>();
    t["utanh_" + type] = whole<unary<T, Tanh>>();
    t["uerf_" + type] = whole<unary<T, Erf>>();
    t["uceil_" + type] = whole<unary<T, Ceil>>();
    t["ufloor_" + type] = whole<unary<T, Floor>>();
    t["uround_" + type] = whole<unary<T, Round>>();
    t["unormcdf_" + type] = whole<unary<T, Normcdf>>();
    t["uabs_" + type] = whole<unary<T, Abs>>();
    t["usqr_" + type] = whole<unary<T, Sqr>>();
    t["usqrt_" + type] = whole<unary<T, Sqrt>>();
    t["ugelu_" + type] = whole<unary<T, Gelu>>();
    t["ugelu_erf_" + type] = whole<unary<T, GeluErf>>();
    t["urelu_" + type] = whole<unary<T, Relu>>();
    t["usilu_" + type] = whole<unary<T, Silu>>();
    t["usigmoid_" + type] = whole<unary<T, Sigmoid>>();
    t["usign_" + type] = whole<unary<T, Sign>>();
    t["uelu_" + type] = whole<unary_with<T, Elu>>();
    t["upowf_" + type] = whole<unary_with<T, Powf>>();
}

} // namespace

void add_elementwise(Table &t) {
    add_floats<float>(t, "f32");
    add_floats<double>(t, "f64");
    add_floats<f16>(t, "f16");
    add_floats<bf16>(t, "bf16");
    add_numbers<uint8_t>(t, "u8");
    add_numbers<uint32_t>(t, "u32");
    add_numbers<int64_t>(t, "i64");
}

} // namespace emulated::candle
