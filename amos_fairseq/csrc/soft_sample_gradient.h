// The gradient of a soft draw through the rows of the token table that hold its probability.
#pragma once

#include "noise.h"
#include "tile.h"

namespace amos {

// With x_t = table[t] for the candidates t of a row,
//     p = softmax((x . hidden + bias + noise) / temperature),   s = x . gradient
//     result = sum_t p_t (s_t - sum_u p_u s_u) x_t / temperature
template <class Scalar>
struct SoftSampleGradient {
    const float* gradient;           // (M, E)
    const float* hidden;             // (M, E)
    const Scalar* table;             // (V, E)
    const float* bias;               // (V,)
    const std::int32_t* candidates;  // (M, C), those outside 0..V-1 are skipped
    PhiloxKey key;
    const std::int64_t* noise_rows;  // (M, 2)
    float temperature;
    int vocabulary;
    int width;     // E
    int capacity;  // C

    float* result;  // (M, E)

    struct Shared {
        float* phi;     // (C,) then p, then the coefficients of x
        float* scores;  // (C,) s
        float* values;  // (threads,)
        int* lengths;   // (threads,)
    };

    AMOS_HOST_INLINE std::size_t share(char* memory, Shared& shared) const {
        Layout layout{memory};
        shared.phi = layout.array<float>(capacity);
        shared.scores = layout.array<float>(capacity);
        shared.values = layout.array<float>(THREADS);
        shared.lengths = layout.array<int>(THREADS);
        return layout.bytes;
    }

    struct Row {
        const SoftSampleGradient& in;
        const Block& block;
        std::int64_t row;
        Shared shared;
        int length;  // of the row's list

        AMOS_INLINE std::int32_t candidate(int c) const { return in.candidates[row * in.capacity + c]; }
        AMOS_INLINE bool listed(int c) const { return candidate(c) >= 0 && candidate(c) < in.vocabulary; }

        AMOS_INLINE void measure_list() {
            int own = 0;
            for (int c = block.thread(); c < in.capacity; c += block.threads())
                if (listed(c)) own = c + 1;
            shared.lengths[block.thread()] = own;
            reduce(block, shared.lengths, 1, [](int& a, int b) { a = b > a ? b : a; });
            length = shared.lengths[0];
        }

        // phi and s of every candidate, a group of lanes for each.
        AMOS_INLINE void score() const {
            const float* gradient = in.gradient + row * in.width;
            const float* hidden = in.hidden + row * in.width;
            const RowNoise noise(in.key, in.noise_rows, row);
            const int groups = block.threads() / block.lanes(), lane = block.thread() % block.lanes();
            for (int c = block.thread() / block.lanes(); c < length; c += groups) {
                const bool counts = listed(c);
                const std::int32_t token = counts ? candidate(c) : 0;
                const Scalar* x = in.table + static_cast<std::int64_t>(token) * in.width;
                float of_gradient = 0.0f, of_hidden = 0.0f;
                AMOS_REDUCE(+ : of_gradient, of_hidden)
                for (int e = lane; e < in.width; e += block.lanes()) {
                    of_gradient += to_float(x[e]) * gradient[e];
                    of_hidden += to_float(x[e]) * hidden[e];
                }
                of_gradient = block.lane_sum(of_gradient);
                of_hidden = block.lane_sum(of_hidden);
                if (lane == 0) {
                    shared.scores[c] = of_gradient;
                    const float perturbed = of_hidden + in.bias[token] + noise.at(token);
                    shared.phi[c] = counts ? perturbed / in.temperature : -INFINITE;
                }
            }
            block.sync();
        }

        template <class Term>
        AMOS_INLINE float sum(Term term) const {
            float own = 0.0f;
            for (int c = block.thread(); c < length; c += block.threads()) own += term(c);
            block.sync();  // an earlier sum may still be read
            shared.values[block.thread()] = own;
            reduce(block, shared.values, 1, [](float& a, float b) { a += b; });
            return shared.values[0];
        }

        AMOS_INLINE int likeliest() const {
            const auto likelier = [&](int a, int b) { return shared.phi[a] > shared.phi[b]; };
            int own = block.thread() < length ? block.thread() : 0;
            for (int c = own; c < length; c += block.threads())
                if (likelier(c, own)) own = c;
            block.sync();
            shared.lengths[block.thread()] = own;
            reduce(block, shared.lengths, 1, [&](int& a, int b) {
                if (likelier(b, a) || (!likelier(a, b) && b < a)) a = b;
            });
            return shared.lengths[0];
        }

        // phi becomes p_t (s_t - sum_u p_u s_u) / temperature. The scores count from the likeliest candidate's: the
        // result is the same, but two large numbers that nearly cancel are not subtracted.
        AMOS_INLINE void weigh() const {
            const int first = likeliest();
            const float largest = shared.phi[first], origin = shared.scores[first];
            const auto weight = [&](int c) { return exp_of(shared.phi[c] - largest); };
            const float whole = sum(weight);
            const float mean = sum([&](int c) { return weight(c) * (shared.scores[c] - origin); }) / whole;
            block.sync();
            for (int c = block.thread(); c < length; c += block.threads())
                shared.phi[c] = weight(c) / whole * (shared.scores[c] - origin - mean) / in.temperature;
            block.sync();
        }

        AMOS_INLINE void write() const {
            float* result = in.result + row * in.width;
            for (int first = 0; first < in.width; first += block.threads() * COLUMNS) {
                float columns[COLUMNS];
                AMOS_TOKENS
                for (int i = 0; i < COLUMNS; ++i) columns[i] = 0.0f;
                for (int c = 0; c < length; ++c) {
                    if (!listed(c)) continue;
                    const Scalar* x = in.table + static_cast<std::int64_t>(candidate(c)) * in.width;
                    const float coefficient = shared.phi[c];
                    AMOS_TOKENS
                    for (int i = 0; i < COLUMNS; ++i) {
                        const int e = first + i * block.threads() + block.thread();
                        if (e < in.width) columns[i] += coefficient * to_float(x[e]);
                    }
                }
                AMOS_TOKENS
                for (int i = 0; i < COLUMNS; ++i) {
                    const int e = first + i * block.threads() + block.thread();
                    if (e < in.width) result[e] = columns[i];
                }
            }
        }
        static constexpr int COLUMNS = THREADS > 1 ? 4 : 64;  // of the result, summed at a time by a thread
    };

    AMOS_INLINE void operator()(const Block& block, std::int64_t number) const {
        Row row{*this, block, number, {}, 0};
        share(block.memory, row.shared);
        row.measure_list();
        row.score();
        if (row.length > 0) row.weigh();
        row.write();
    }
};

}  // namespace amos
