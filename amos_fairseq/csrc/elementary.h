// Natural logarithm and exponential in fp32, without branches, so that loops over them vectorise. The logarithm makes
// the noise: both compilers are told to contract nothing, hence it gives the same bits on every machine.
#pragma once

#include "portable.h"

namespace amos {

template <class To, class From>
AMOS_HOST_INLINE To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
#ifdef __CUDA_ARCH__
    return reinterpret_cast<To&>(value);
#else
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
#endif
}

// x = mantissa * 2^exponent, mantissa in [2/3, 4/3), for positive normal x.
struct Split {
    float mantissa;
    int exponent;
};

AMOS_HOST_INLINE Split split(float x) {
    constexpr std::int32_t TWO_THIRDS = 0x3F2AAAAB;
    const std::int32_t bits = bits_as<std::int32_t>(x);
    const std::int32_t exponent = (bits - TWO_THIRDS) >> 23;
    return {bits_as<float>(bits - exponent * (1 << 23)), exponent};
}

// log((1 + f) * 2^exponent) for f in [-1/3, 1/3]: f + f^2 q(f) + exponent log 2, q fitted for the least relative error
// of the result, 4e-9 before rounding.
AMOS_HOST_INLINE float log_of_split(float f, int exponent) {
    constexpr float LOG2_HIGH = 0.693145751953125f, LOG2_LOW = 1.428606765330187e-6f;  // HIGH: 16 bits, exact products
    float q = -0.12948966026306152f;
    q = q * f + 0.1400475651025772f;
    q = q * f - 0.12167153507471085f;
    q = q * f + 0.14001160860061646f;
    q = q * f - 0.16682305932044983f;
    q = q * f + 0.20010747015476227f;
    q = q * f - 0.24999716877937317f;
    q = q * f + 0.3333320915699005f;
    q = q * f - 0.5f;
    const float k = static_cast<float>(exponent);
    return k * LOG2_HIGH + (f + (f * f * q + k * LOG2_LOW));
}

// log(x) for positive normal x.
AMOS_HOST_INLINE float log_of(float x) {
    const Split parts = split(x);
    return log_of_split(parts.mantissa - 1.0f, parts.exponent);
}

// exp(x) for x <= 88, 0 below -87.3.
AMOS_INLINE float exp_of(float x) {
#ifdef __CUDACC__
    return __expf(x);
#else
    constexpr float LOG2_HIGH = 0.693145751953125f, LOG2_LOW = 1.428606765330187e-6f, LOG2_E = 1.4426950408889634f;
    constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to an integer
    const float shifted = x * LOG2_E + TO_INTEGER;
    const float n = shifted - TO_INTEGER;
    const float r = (x - n * LOG2_HIGH) - n * LOG2_LOW;
    float q = 0.0013814467238262296f;
    q = q * r + 0.008368780836462975f;
    q = q * r + 0.04166839271783829f;
    q = q * r + 0.1666651964187622f;
    q = q * r + 0.4999999403953552f;
    const float two_to_n = bits_as<float>((bits_as<std::uint32_t>(shifted) << 23) + 0x3F800000u);
    const float result = (1.0f + (r + r * r * q)) * two_to_n;
    return x < -87.3f ? 0.0f : result;
#endif
}

}  // namespace amos
