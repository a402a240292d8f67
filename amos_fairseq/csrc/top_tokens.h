// The tokens with the largest z + noise of each row, z = logits + bias: draws without replacement.
#pragma once

#include "noise.h"
#include "running_softmax.h"

namespace amos {

template <class Scalar>
struct TopTokens {
    const Scalar* logits;           // (M, V)
    const float* bias;              // (V,)
    const std::int64_t* left_out;   // (M,) a token of each row that does not count
    const std::uint8_t* excluded;   // (V,) those that never do, or null
    PhiloxKey key;
    const std::int64_t* noise_rows;  // (M, 2), or null: without noise
    int count;                       // K
    Tiles tiles;

    std::int64_t* top;  // (M, K) the largest first

    struct Offer {
        float value;
        int token;   // -1: none
        int thread;  // whose it is
    };

    struct Shared {
        float* values;  // (K, threads) the largest that each thread has met, in descending order
        int* tokens;
        Offer* offers;  // (threads,)
    };

    AMOS_HOST_INLINE std::size_t share(char* memory, Shared& shared) const {
        Layout layout{memory};
        shared.values = layout.array<float>(count * THREADS);
        shared.tokens = layout.array<int>(count * THREADS);
        shared.offers = layout.array<Offer>(THREADS);
        return layout.bytes;
    }

    AMOS_INLINE void perturbed(std::int64_t row, const Tile& tile, float (&z)[TILE]) const {
        float others[TILE];
        tile.load(bias, 0.0f, others);
        tile.load_logits(logits + row * tiles.vocabulary, others, z);
        if (excluded != nullptr) {
            tile.load(excluded, 1.0f, others);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) z[i] = others[i] != 0.0f ? -INFINITE : z[i];
        }
        if (noise_rows != nullptr) {
            RowNoise(key, noise_rows, row).fill(tile.first, tile.width(), others);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) z[i] += others[i];
        }
        const int own = static_cast<int>(left_out[row]) - tile.first;
        AMOS_TOKENS
        for (int i = 0; i < tile.width(); ++i) z[i] = i == own ? -INFINITE : z[i];
    }

    // Into a thread's list, whose last falls out; of equals the earlier token stays first.
    AMOS_INLINE void insert(float* values, int* tokens, float value, int token) const {
        int at = (count - 1) * THREADS;
        if (!(value > values[at])) return;
        for (; at > 0 && value > values[at - THREADS]; at -= THREADS) {
            values[at] = values[at - THREADS];
            tokens[at] = tokens[at - THREADS];
        }
        values[at] = value;
        tokens[at] = token;
    }

    AMOS_INLINE void operator()(const Block& block, std::int64_t row) const {
        Shared shared;
        share(block.memory, shared);
        float* values = shared.values + block.thread();
        int* tokens = shared.tokens + block.thread();
        for (int at = 0; at < count * THREADS; at += THREADS) {
            values[at] = -INFINITE;
            tokens[at] = -1;
        }
        float z[TILE];
        for (int number = block.thread(); number < tiles.size(); number += block.threads()) {
            const Tile tile = tiles[number];
            perturbed(row, tile, z);
            if (!(largest_of(z, tile.width()) > values[(count - 1) * THREADS])) continue;
            AMOS_IN_ORDER
            for (int i = 0; i < tile.width(); ++i) insert(values, tokens, z[i], tile.first + i);
        }
        const auto better = [](Offer& a, const Offer& b) {
            const bool earlier = static_cast<unsigned>(b.token) < static_cast<unsigned>(a.token);
            if (b.value > a.value || (b.value == a.value && earlier)) a = b;
        };
        for (int place = 0, next = 0; place < count; ++place) {
            const int at = next * THREADS;
            shared.offers[block.thread()] = {values[at], tokens[at], block.thread()};
            reduce(block, shared.offers, 1, better);
            const Offer best = shared.offers[0];
            if (block.thread() == 0) top[row * count + place] = best.token < 0 ? 0 : best.token;  // of NaN alone
            if (best.thread == block.thread() && next < count - 1) ++next;
            block.sync();
        }
    }
};

}  // namespace amos
