// Maximum, its place and the sum of exponentials of numbers that come tile by tile.
#pragma once

#include <cfloat>

#include "elementary.h"
#include "tile.h"

namespace amos {

AMOS_INLINE float largest_of(const float (&z)[TILE], int width) {
    float largest = -INFINITE;
    AMOS_REDUCE(max : largest)
    for (int i = 0; i < width; ++i) largest = z[i] > largest ? z[i] : largest;
    return largest;
}

// The first place that holds `value`, or `width`.
AMOS_INLINE int place_of(float value, const float (&z)[TILE], int width) {
    int place = width;
    AMOS_REDUCE(min : place)
    for (int i = 0; i < width; ++i) {
        const int here = z[i] == value ? i : width;
        place = here < place ? here : place;
    }
    return place;
}

struct alignas(16) RunningSoftmax {
    float largest = -FLT_MAX;  // not -inf: -inf - largest is no number then
    float sum = 0.0f;          // of exp(scale * (z - largest))
    int likeliest = -1;        // the lowest token with the largest z; -1: all are -inf
    int above = 0;             // tokens whose z exceeds a bound

    // sum <- sum exp(scale (largest - new largest)) + sum_i exp(scale (z_i - new largest))
    AMOS_INLINE void add(const Tile& tile, const float (&z)[TILE], float scale = 1.0f) {
        notice(tile, z, largest_of(z, tile.width()), scale);
        float added = 0.0f;
        AMOS_REDUCE(+ : added)
        for (int i = 0; i < tile.width(); ++i) added += exp_of(scale * (z[i] - largest));
        sum += added;
    }

    // The same without the sum.
    AMOS_INLINE void notice(const Tile& tile, const float (&z)[TILE], float tile_largest, float scale = 1.0f) {
        if (tile_largest > largest) {
            sum *= exp_of(scale * (largest - tile_largest));
            largest = tile_largest;
            likeliest = tile.first + place_of(tile_largest, z, tile.width());
        }
    }

    AMOS_INLINE void count_above(float bound, const Tile& tile, const float (&z)[TILE]) {
        int count = 0;
        AMOS_REDUCE(+ : count)
        for (int i = 0; i < tile.width(); ++i) count += z[i] > bound ? 1 : 0;
        above += count;
    }

    AMOS_INLINE void merge(const RunningSoftmax& other, float scale = 1.0f) {
        const float both = largest > other.largest ? largest : other.largest;
        sum = sum * exp_of(scale * (largest - both)) + other.sum * exp_of(scale * (other.largest - both));
        const bool earlier = static_cast<unsigned>(other.likeliest) < static_cast<unsigned>(likeliest);
        if (other.largest > largest || (other.largest == largest && earlier)) likeliest = other.likeliest;
        largest = both;
        above += other.above;
    }

    AMOS_INLINE float logsumexp() const { return (likeliest < 0 ? -INFINITE : largest) + logf(sum); }
};

}  // namespace amos
