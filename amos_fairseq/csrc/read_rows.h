// Everything that a row of logits tells, so that the logits need not be kept. A row is a selected position with its
// heads; z_g = logits_g + bias, zbar = sum_g weights_g z_g, phi = (zbar + noise) / temperature.
#pragma once

#include "noise.h"
#include "running_softmax.h"

namespace amos {

constexpr int CAPACITY = 1024;                 // candidates of a row
constexpr float LEAST = -13.815510557964274f;  // -log(1e6): candidates are at least a millionth as probable as the best

template <class Scalar>
struct ReadRows {
    Scalar* logits;               // (M, G, V)
    const float* bias;            // (V,)
    const std::int64_t* targets;  // (M,)
    const float* weights;         // (M, G), or null: one head of weight 1
    const std::uint8_t* excluded;  // (V,), or null
    PhiloxKey key;
    const std::int64_t* noise_rows;  // (M, 2), or null: nothing is sampled
    float temperature;
    bool write_gradient;
    int heads;
    Tiles tiles;

    float* losses;            // (M, G)
    std::int64_t* predicted;  // (M, G)
    std::int64_t* ranks;      // (M, G)
    std::int64_t* sampled;    // (M,)
    std::int64_t* likeliest;  // (M,)
    std::int32_t* candidates;  // (M, CAPACITY), or null: none are listed
    float* tail;               // (M,)

    // What the threads of a block share.
    struct Shared {
        RunningSoftmax* statistics;  // (max(G, 2), threads): of the heads, later of phi and zbar
        float* target_logits;        // (G,)
        float* scales;               // (G,) 1 / sum_t exp(z_g,t - largest_g)
        float* largest;              // (G,)
        float* tile_largest;         // (tiles,) of zbar + noise
        int* listed_tiles;           // (CAPACITY,) those with a candidate
        int* totals;                 // (threads,)
    };

    AMOS_HOST_INLINE std::size_t share(char* memory, Shared& shared) const {
        Layout layout{memory};
        shared.statistics = layout.array<RunningSoftmax>((heads > 2 ? heads : 2) * THREADS);
        shared.target_logits = layout.array<float>(heads);
        shared.scales = layout.array<float>(heads);
        shared.largest = layout.array<float>(heads);
        const bool lists = candidates != nullptr;
        shared.tile_largest = layout.array<float>(lists ? tiles.size() : 0);
        shared.listed_tiles = layout.array<int>(lists ? CAPACITY : 0);
        shared.totals = layout.array<int>(lists ? THREADS : 0);
        return layout.bytes;
    }

    // One row, as the threads of its block see it.
    struct Row {
        const ReadRows& in;
        const Block& block;
        std::int64_t row;
        Shared shared;
        RunningSoftmax drawn, mixed;  // this thread's, of zbar + noise and of zbar

        AMOS_INLINE Scalar* head(int g) const {
            return in.logits + (row * in.heads + g) * static_cast<std::int64_t>(in.tiles.vocabulary);
        }
        AMOS_INLINE float weight(int g) const { return in.weights == nullptr ? 1.0f : in.weights[row * in.heads + g]; }
        AMOS_INLINE bool has_target() const {
            return in.targets[row] >= 0 && in.targets[row] < in.tiles.vocabulary;
        }
        AMOS_INLINE float logit(int g, std::int64_t token) const {
            return to_float(head(g)[token]) + in.bias[token];
        }

        AMOS_INLINE void load_target_logits() const {
            for (int g = block.thread(); g < in.heads; g += block.threads())
                shared.target_logits[g] = has_target() ? logit(g, in.targets[row]) : NOT_A_NUMBER;
            block.sync();
        }

        // zbar <- zbar + weight z; a head without weight takes no part even where z = -inf.
        AMOS_INLINE void mix(int g, const Tile& tile, const float (&z)[TILE], float (&mixture)[TILE]) const {
            const float w = weight(g);
            if (w == 0.0f) return;
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) mixture[i] += w * z[i];
        }

        // -inf at the tokens that may not be drawn.
        AMOS_INLINE void exclude(const Tile& tile, float (&mixture)[TILE]) const {
            float out[TILE];
            if (in.excluded != nullptr) {
                tile.load(in.excluded, 1.0f, out);
            } else {
                AMOS_TOKENS
                for (int i = 0; i < tile.width(); ++i) out[i] = i < tile.count ? 0.0f : 1.0f;
            }
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) mixture[i] = out[i] != 0.0f ? -INFINITE : mixture[i];
        }

        AMOS_INLINE void add_noise(const Tile& tile, float (&mixture)[TILE]) const {
            float noise[TILE];
            RowNoise(in.key, in.noise_rows, row).fill(tile.first, tile.width(), noise);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) mixture[i] += noise[i];
        }

        // First pass: maximum, sum of exponentials and rank for each head, and the draw.
        AMOS_INLINE void read_tile(int number) {
            const Tile tile = in.tiles[number];
            float bias[TILE], z[TILE], mixture[TILE];
            tile.load(in.bias, 0.0f, bias);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) mixture[i] = 0.0f;
            for (int g = 0; g < in.heads; ++g) {
                tile.load_logits(head(g), bias, z);
                RunningSoftmax& own = shared.statistics[g * block.threads() + block.thread()];
                RunningSoftmax statistics = own;
                statistics.add(tile, z);
                statistics.count_above(shared.target_logits[g], tile, z);
                own = statistics;
                if (in.noise_rows != nullptr) mix(g, tile, z, mixture);
            }
            if (in.noise_rows == nullptr) return;
            exclude(tile, mixture);
            mixed.notice(tile, mixture, largest_of(mixture, tile.width()));
            add_noise(tile, mixture);
            drawn.add(tile, mixture, 1.0f / in.temperature);
            if (in.candidates != nullptr) shared.tile_largest[number] = largest_of(mixture, tile.width());
        }

        AMOS_INLINE void report_heads() const {
            const auto merge = [](RunningSoftmax& a, const RunningSoftmax& b) { a.merge(b); };
            reduce(block, shared.statistics, in.heads, merge);
            for (int g = block.thread(); g < in.heads; g += block.threads()) {
                const RunningSoftmax& all = shared.statistics[g * block.threads()];
                const std::int64_t at = row * in.heads + g;
                // In this order: the log-sum-exp of large logits would lose what follows the point.
                in.losses[at] = (all.largest - shared.target_logits[g]) + logf(all.sum);
                in.predicted[at] = all.likeliest < 0 ? 0 : all.likeliest;
                in.ranks[at] = has_target() ? 1 + all.above : 0;
                shared.largest[g] = all.largest;
                shared.scales[g] = has_target() ? 1.0f / all.sum : NOT_A_NUMBER;
            }
            block.sync();
        }

        AMOS_INLINE void report_draw() {
            RunningSoftmax* of_phi = shared.statistics;
            RunningSoftmax* of_mixture = shared.statistics + block.threads();
            of_phi[block.thread()] = drawn;
            of_mixture[block.thread()] = mixed;
            const float scale = 1.0f / in.temperature;
            const auto merge = [scale](RunningSoftmax& a, const RunningSoftmax& b) { a.merge(b, scale); };
            reduce(block, shared.statistics, 2, merge);
            drawn = of_phi[0];
            if (block.thread() == 0) {
                in.sampled[row] = drawn.likeliest < 0 ? 0 : drawn.likeliest;  // of NaN alone: -1
                in.likeliest[row] = of_mixture[0].likeliest < 0 ? 0 : of_mixture[0].likeliest;
            }
            block.sync();
        }

        // phi - max phi, of the likeliest token exactly 0.
        AMOS_INLINE float relative(float perturbed) const { return (perturbed - drawn.largest) / in.temperature; }

        // zbar + noise of a tile that was read before, by the same operations: to the same bits.
        AMOS_INLINE void perturbed_mixture(const Tile& tile, float (&mixture)[TILE]) const {
            float bias[TILE], z[TILE];
            tile.load(in.bias, 0.0f, bias);
            AMOS_TOKENS
            for (int i = 0; i < tile.width(); ++i) mixture[i] = 0.0f;
            for (int g = 0; g < in.heads; ++g) {
                tile.load_logits(head(g), bias, z);
                mix(g, tile, z, mixture);
            }
            exclude(tile, mixture);
            add_noise(tile, mixture);
        }

        AMOS_INLINE int count_candidates(int number) const {
            const Tile tile = in.tiles[number];
            float mixture[TILE];
            perturbed_mixture(tile, mixture);
            int count = 0;
            AMOS_REDUCE(+ : count)
            for (int i = 0; i < tile.width(); ++i) count += relative(mixture[i]) > LEAST ? 1 : 0;
            return count;
        }

        // Lists a tile's candidates from place `at` on, adds their exp(phi - max phi) to `mass`, returns their number.
        AMOS_INLINE int list_candidates(int number, int at, float& mass) const {
            const Tile tile = in.tiles[number];
            float mixture[TILE];
            perturbed_mixture(tile, mixture);
            int count = 0;
            AMOS_IN_ORDER
            for (int i = 0; i < tile.width(); ++i) {
                const float phi = relative(mixture[i]);
                if (phi > LEAST) {
                    if (at + count < CAPACITY) {
                        in.candidates[row * CAPACITY + at + count] = tile.first + i;
                        mass += exp_of(phi);
                    }
                    ++count;
                }
            }
            return count;
        }

        // Only tiles whose largest zbar + noise is a candidate are read again; each of them holds one at least.
        AMOS_INLINE void report_candidates() const {
            const auto holds_any = [&](int number) { return relative(shared.tile_largest[number]) > LEAST ? 1 : 0; };
            const auto list_tile = [&](int number, int at) {
                const int listed = holds_any(number);
                if (listed && at < CAPACITY) shared.listed_tiles[at] = number;
                return listed;
            };
            const int listed_tiles = enumerate(block, shared.totals, in.tiles.size(), holds_any, list_tile);
            block.sync();
            float mass = 0.0f;
            const int listed = enumerate(
                block, shared.totals, listed_tiles < CAPACITY ? listed_tiles : CAPACITY,
                [&](int i) { return count_candidates(shared.listed_tiles[i]); },
                [&](int i, int at) { return list_candidates(shared.listed_tiles[i], at, mass); });
            for (int at = listed + block.thread(); at < CAPACITY; at += block.threads())
                in.candidates[row * CAPACITY + at] = -1;
            shared.statistics[block.thread()].sum = mass;
            reduce(block, shared.statistics, 1, [](RunningSoftmax& a, const RunningSoftmax& b) { a.sum += b.sum; });
            if (block.thread() == 0) in.tail[row] = 1.0f - shared.statistics[0].sum / drawn.sum;
        }

        // Last pass: logits <- exp(z_g - largest_g) / sum - onehot(target)
        AMOS_INLINE void write_gradient(int number) const {
            const Tile tile = in.tiles[number];
            const int target = has_target() ? static_cast<int>(in.targets[row]) - tile.first : -1;
            float bias[TILE], z[TILE];
            tile.load(in.bias, 0.0f, bias);
            for (int g = 0; g < in.heads; ++g) {
                tile.load_logits(head(g), bias, z);
                const float largest = shared.largest[g], scale = shared.scales[g];
                AMOS_TOKENS
                for (int i = 0; i < tile.width(); ++i)
                    z[i] = exp_of(z[i] - largest) * scale - (i == target ? 1.0f : 0.0f);
                tile.store(z, head(g));
            }
        }
    };

    AMOS_INLINE void operator()(const Block& block, std::int64_t number) const {
        Row row{*this, block, number, {}, {}, {}};
        share(block.memory, row.shared);
        row.load_target_logits();
        for (int g = 0; g < heads; ++g) row.shared.statistics[g * block.threads() + block.thread()] = {};
        for (int i = block.thread(); i < tiles.size(); i += block.threads()) row.read_tile(i);
        row.report_heads();
        if (noise_rows != nullptr) row.report_draw();
        if (candidates != nullptr) row.report_candidates();
        if (!write_gradient) return;
        block.sync();
        for (int i = block.thread(); i < tiles.size(); i += block.threads()) row.write_gradient(i);
    }
};

}  // namespace amos
