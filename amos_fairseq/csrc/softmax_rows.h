// Log-sum-exp and softmax of rows of logits, z = logits + bias.
#pragma once

#include "running_softmax.h"

namespace amos {

template <class Scalar>
struct LogsumexpRows {
    const Scalar* logits;  // (R, V)
    const float* bias;     // (V,)
    Tiles tiles;

    float* logsumexp;         // (R,)
    float* largest;           // (R,)
    std::int64_t* likeliest;  // (R,)

    using Shared = RunningSoftmax*;
    AMOS_HOST_INLINE std::size_t share(char* memory, RunningSoftmax*& statistics) const {
        Layout layout{memory};
        statistics = layout.array<RunningSoftmax>(THREADS);
        return layout.bytes;
    }

    AMOS_INLINE void operator()(const Block& block, std::int64_t row) const {
        RunningSoftmax* statistics;
        share(block.memory, statistics);
        RunningSoftmax own;
        float offset[TILE], z[TILE];
        for (int i = block.thread(); i < tiles.size(); i += block.threads()) {
            const Tile tile = tiles[i];
            tile.load(bias, 0.0f, offset);
            tile.load_logits(logits + row * tiles.vocabulary, offset, z);
            own.add(tile, z);
        }
        statistics[block.thread()] = own;
        reduce(block, statistics, 1, [](RunningSoftmax& a, const RunningSoftmax& b) { a.merge(b); });
        if (block.thread() == 0) {
            const RunningSoftmax& all = statistics[0];
            const bool none = all.likeliest < 0;
            largest[row] = none ? -INFINITE : all.largest;
            likeliest[row] = none ? 0 : all.likeliest;
            logsumexp[row] = largest[row] + logf(all.sum);
        }
    }
};

// logits <- exp(z - logsumexp)
template <class Scalar>
struct SoftmaxRows {
    Scalar* logits;          // (R, V)
    const float* bias;       // (V,)
    const float* logsumexp;  // (R,)
    Tiles tiles;

    struct Shared {};
    AMOS_HOST_INLINE std::size_t share(char*, Shared&) const { return 0; }

    AMOS_INLINE void operator()(const Block& block, std::int64_t row) const {
        Scalar* own = logits + row * tiles.vocabulary;
        const float subtracted = logsumexp[row];
        float offset[TILE], z[TILE];
        for (int number = block.thread(); number < tiles.size(); number += block.threads()) {
            const Tile tile = tiles[number];
            tile.load(bias, 0.0f, offset);
            tile.load_logits(own, offset, z);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) z[i] = exp_of(z[i] - subtracted);
            tile.store(z, own);
        }
    }
};

}  // namespace amos
