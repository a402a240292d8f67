// Gumbel noise as a function of (seed, sample id, position, token); `ops/noise.py` has the definition and its source.
#pragma once

#include "elementary.h"
#include "portable.h"

namespace amos {

// Philox4x32-10: four random words from a key and a counter. The key of each round is made once, by the host.
struct PhiloxKey {
    static constexpr int ROUNDS = 10;
    std::uint32_t low[ROUNDS], high[ROUNDS];

    PhiloxKey(std::uint64_t key) {
        for (std::uint32_t round = 0; round < ROUNDS; ++round) {
            low[round] = static_cast<std::uint32_t>(key) + round * 0x9E3779B9u;
            high[round] = static_cast<std::uint32_t>(key >> 32) + round * 0xBB67AE85u;
        }
    }
};

struct Philox {
    std::uint32_t a, b, c, d;  // counter, then random words

    AMOS_HOST_INLINE static std::uint32_t high(std::uint32_t x, std::uint32_t y) {
        return static_cast<std::uint32_t>(static_cast<std::uint64_t>(x) * y >> 32);
    }

    // Recursive rather than a loop, for the compilers to see no loop within the one over tokens.
    template <int ROUND = 0>
    AMOS_HOST_INLINE void mix(const PhiloxKey& key) {
        if constexpr (ROUND < PhiloxKey::ROUNDS) {
            constexpr std::uint32_t FIRST = 0xD2511F53u, SECOND = 0xCD9E8D57u;
            const Philox old = *this;
            a = high(SECOND, old.c) ^ old.b ^ key.low[ROUND];
            b = SECOND * old.c;
            c = high(FIRST, old.a) ^ old.d ^ key.high[ROUND];
            d = FIRST * old.a;
            mix<ROUND + 1>(key);
        }
    }
};

// -log(w), w = -log1p(-v), v = (word + 1/2) / 2^32: to 2 units in the last place, or 2e-7. Of v and 1 - v the one below
// 1/2 is u, known to fp32's last bit, and 1 - v = (1 + f) 2^exponent with an f that is found from u without a further
// rounding: so w is good to a part in 10^7. The largest values, which decide a draw, come from v near 0.
AMOS_HOST_INLINE float gumbel(std::uint32_t word) {
    const bool upper = word >> 31;  // v > 1/2
    const std::int32_t below_half = static_cast<std::int32_t>(upper ? ~word : word);
    const float u = (static_cast<float>(below_half) + 0.5f) * 0x1p-32f;
    const float complement = 1.0f - u;
    const Split x = split(upper ? u : complement);
    const float lower = x.exponent == 0 ? -u : 1.0f - 2.0f * u;  // the exponent is 0 or -1
    const float f = upper ? x.mantissa - 1.0f : lower;
    return -log_of(-log_of_split(f, x.exponent));
}

// The noise of one row's tokens.
struct RowNoise {
    const PhiloxKey& key;
    std::uint32_t position, sample_low, sample_high;

    AMOS_INLINE RowNoise(const PhiloxKey& key, const std::int64_t* rows, std::int64_t row) : key(key) {
        const std::uint64_t sample = static_cast<std::uint64_t>(rows[2 * row]);
        position = static_cast<std::uint32_t>(rows[2 * row + 1]);
        sample_low = static_cast<std::uint32_t>(sample);
        sample_high = static_cast<std::uint32_t>(sample >> 32);
    }

    // The words of tokens 4 * number ... 4 * number + 3.
    AMOS_INLINE Philox words(int number) const {
        Philox random{static_cast<std::uint32_t>(number), position, sample_low, sample_high};
        random.mix(key);
        return random;
    }

    // values[i] = noise of token first + i, for i below width; both are multiples of 4.
    AMOS_INLINE void fill(int first, int width, float (&values)[TILE]) const {
        std::uint32_t words_of[TILE];
        AMOS_TOKENS
        for (int i = 0; i < width / 4; ++i) {
            const Philox random = words(first / 4 + i);
            words_of[4 * i] = random.a;
            words_of[4 * i + 1] = random.b;
            words_of[4 * i + 2] = random.c;
            words_of[4 * i + 3] = random.d;
        }
        AMOS_TOKENS
        for (int i = 0; i < width; ++i) values[i] = gumbel(words_of[i]);
    }

    AMOS_INLINE float at(int token) const {
        const Philox random = words(token / 4);
        const int word = token % 4;
        return gumbel(word == 0 ? random.a : word == 1 ? random.b : word == 2 ? random.c : random.d);
    }
};

}  // namespace amos
