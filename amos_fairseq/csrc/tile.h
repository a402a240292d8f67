// Tiles: successive tokens of a row, read into fp32 and written back in the row's own type.
#pragma once

#include "portable.h"

namespace amos {

AMOS_INLINE float to_float(float x) { return x; }
AMOS_INLINE float to_float(std::uint8_t x) { return x; }

template <class Scalar>
AMOS_INLINE Scalar from_float(float x);
template <>
AMOS_INLINE float from_float<float>(float x) { return x; }

#ifdef __CUDACC__
AMOS_INLINE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
AMOS_INLINE float to_float(__half x) { return __half2float(x); }
template <>
AMOS_INLINE __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
AMOS_INLINE __half from_float<__half>(float x) { return __float2half_rn(x); }

template <class T>
struct alignas(sizeof(T) * TILE < 16 ? sizeof(T) * TILE : 16) Packed {  // moved 16 bytes at a time
    T values[TILE];
};
#endif

struct Tile {
    int first;    // token
    int count;    // tokens, TILE but for a row's last
    bool packed;  // the row may be read 16 bytes at a time

    // Values beyond `count` are padding, which the loops include: it costs less than to leave it out.
#ifdef __CUDACC__
    static AMOS_INLINE constexpr int width() { return TILE; }
#else
    int width() const { return (count + VECTOR - 1) / VECTOR * VECTOR; }
#endif

    template <class Source>
    AMOS_INLINE void load(const Source* row, float padding, float (&values)[TILE]) const {
#ifdef __CUDACC__
        if (packed) {
            const Packed<Source> pack = *reinterpret_cast<const Packed<Source>*>(row + first);
            AMOS_TOKENS
            for (int i = 0; i < TILE; ++i) values[i] = to_float(pack.values[i]);
            return;
        }
        AMOS_TOKENS
        for (int i = 0; i < TILE; ++i) values[i] = i < count ? to_float(row[first + i]) : padding;
#else
        AMOS_TOKENS
        for (int i = 0; i < count; ++i) values[i] = to_float(row[first + i]);
        for (int i = count; i < width(); ++i) values[i] = padding;
#endif
    }

    template <class Target>
    AMOS_INLINE void store(const float (&values)[TILE], Target* row) const {
#ifdef __CUDACC__
        if (packed) {
            Packed<Target> pack;
            AMOS_TOKENS
            for (int i = 0; i < TILE; ++i) pack.values[i] = from_float<Target>(values[i]);
            *reinterpret_cast<Packed<Target>*>(row + first) = pack;
            return;
        }
        AMOS_TOKENS
        for (int i = 0; i < TILE; ++i)
            if (i < count) row[first + i] = from_float<Target>(values[i]);
#else
        AMOS_TOKENS
        for (int i = 0; i < count; ++i) row[first + i] = from_float<Target>(values[i]);
#endif
    }

    // z = logits + bias; padding becomes -inf, which no maximum, sum or count notices.
    template <class Scalar>
    AMOS_INLINE void load_logits(const Scalar* logits, const float (&bias)[TILE], float (&z)[TILE]) const {
        load(logits, -INFINITE, z);
        AMOS_TOKENS
        for (int i = 0; i < width(); ++i) z[i] += bias[i];
    }
};

// A row's tiles: thread t takes number t, t + threads, ...
struct Tiles {
    int vocabulary;
    bool packed;

    AMOS_HOST_INLINE int size() const { return (vocabulary + TILE - 1) / TILE; }
    AMOS_INLINE Tile operator[](int number) const {
        const int first = number * TILE, left = vocabulary - first;
        return {first, left < TILE ? left : TILE, packed};
    }
};

}  // namespace amos
