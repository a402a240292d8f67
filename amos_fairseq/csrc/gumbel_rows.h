// Gumbel noise by itself, and the Gumbel-Softmax of rows of logits.
#pragma once

#include "noise.h"
#include "running_softmax.h"

namespace amos {

struct GumbelRows {
    PhiloxKey key;
    const std::int64_t* noise_rows;  // (M, 2)
    Tiles tiles;

    float* noise;  // (M, V)

    struct Shared {};
    AMOS_HOST_INLINE std::size_t share(char*, Shared&) const { return 0; }

    AMOS_INLINE void operator()(const Block& block, std::int64_t row) const {
        const RowNoise of_row(key, noise_rows, row);
        float values[TILE];
        for (int i = block.thread(); i < tiles.size(); i += block.threads()) {
            const Tile tile = tiles[i];
            of_row.fill(tile.first, tile.width(), values);
            tile.store(values, noise + row * tiles.vocabulary);
        }
    }
};

// softmax((logits + noise) / temperature)
template <class Scalar>
struct GumbelSoftmaxRows {
    const Scalar* logits;  // (M, V)
    PhiloxKey key;
    const std::int64_t* noise_rows;  // (M, 2)
    float temperature;
    Tiles tiles;

    Scalar* probabilities;  // (M, V)

    using Shared = RunningSoftmax*;
    AMOS_HOST_INLINE std::size_t share(char* memory, RunningSoftmax*& statistics) const {
        Layout layout{memory};
        statistics = layout.array<RunningSoftmax>(THREADS);
        return layout.bytes;
    }

    // values <- logits + noise
    AMOS_INLINE void perturb(const RowNoise& of_row, std::int64_t row, const Tile& tile, float (&values)[TILE]) const {
        float noise[TILE];
        tile.load(logits + row * tiles.vocabulary, -INFINITE, values);
        of_row.fill(tile.first, tile.width(), noise);
        AMOS_TOKENS
        for (int i = 0; i < tile.width(); ++i) values[i] += noise[i];
    }

    AMOS_INLINE void operator()(const Block& block, std::int64_t row) const {
        RunningSoftmax* statistics;
        share(block.memory, statistics);
        const RowNoise of_row(key, noise_rows, row);
        const float scale = 1.0f / temperature;
        float values[TILE];
        RunningSoftmax own;
        for (int i = block.thread(); i < tiles.size(); i += block.threads()) {
            perturb(of_row, row, tiles[i], values);
            own.add(tiles[i], values, scale);
        }
        statistics[block.thread()] = own;
        reduce(block, statistics, 1, [scale](RunningSoftmax& a, const RunningSoftmax& b) { a.merge(b, scale); });
        const float largest = statistics[0].largest, share_of_one = 1.0f / statistics[0].sum;
        for (int number = block.thread(); number < tiles.size(); number += block.threads()) {
            const Tile tile = tiles[number];
            perturb(of_row, row, tile, values);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) values[i] = exp_of((values[i] - largest) * scale) * share_of_one;
            tile.store(values, probabilities + row * tiles.vocabulary);
        }
    }
};

}  // namespace amos
