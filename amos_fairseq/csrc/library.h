// The C interface of both libraries: raw pointers, sizes and a place to run. `ops/compiled.py` declares the same.
//
// place: a CUDA device's number, or on the CPU a number of threads; stream: a cudaStream_t, or null on the CPU; scalar:
// 0 float, 1 bfloat16, 2 float16, on the CPU 0 alone. Each function returns 0, or a number for amos_error.
// Included by cpu.cpp and cuda.cu, which define `launch(program, rows, place, stream)` and `with_scalar(scalar, call)`.
#pragma once

#include "gumbel_rows.h"
#include "read_rows.h"
#include "soft_sample_gradient.h"
#include "softmax_rows.h"
#include "top_tokens.h"

namespace amos {

inline bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0; }

}  // namespace amos

#define AMOS_EXPORT extern "C" __attribute__((visibility("default")))

AMOS_EXPORT int amos_gumbel_noise(std::uint64_t seed, const std::int64_t* noise_rows, float* noise, std::int64_t rows,
                                  int vocabulary, int place, void* stream) {
    const amos::Tiles tiles{vocabulary, vocabulary % amos::TILE == 0 && amos::aligned(noise)};
    return amos::launch(amos::GumbelRows{seed, noise_rows, tiles, noise}, rows, place, stream);
}

AMOS_EXPORT int amos_read_rows(void* logits, const float* bias, const std::int64_t* targets, const float* weights,
                               const std::uint8_t* excluded, std::uint64_t seed, const std::int64_t* noise_rows,
                               float temperature, int write_gradient, float* losses, std::int64_t* predicted,
                               std::int64_t* ranks, std::int64_t* sampled, std::int64_t* likeliest,
                               std::int32_t* candidates, float* tail, std::int64_t rows, int heads, int vocabulary,
                               int scalar, int place, void* stream) {
    const bool packed = vocabulary % amos::TILE == 0 && amos::aligned(logits) && amos::aligned(bias) &&
                        amos::aligned(excluded);
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(
            amos::ReadRows<Scalar>{static_cast<Scalar*>(logits), bias, targets, weights, excluded, seed, noise_rows,
                                   temperature, write_gradient != 0, heads, {vocabulary, packed}, losses, predicted,
                                   ranks, sampled, likeliest, candidates, tail},
            rows, place, stream);
    });
}

AMOS_EXPORT int amos_logsumexp_rows(const void* logits, const float* bias, float* logsumexp, float* largest,
                                    std::int64_t* likeliest, std::int64_t rows, int vocabulary, int scalar, int place,
                                    void* stream) {
    const bool packed = vocabulary % amos::TILE == 0 && amos::aligned(logits) && amos::aligned(bias);
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(amos::LogsumexpRows<Scalar>{static_cast<const Scalar*>(logits), bias, {vocabulary, packed},
                                                        logsumexp, largest, likeliest},
                            rows, place, stream);
    });
}

AMOS_EXPORT int amos_softmax_rows(void* logits, const float* bias, const float* logsumexp, std::int64_t rows,
                                  int vocabulary, int scalar, int place, void* stream) {
    const bool packed = vocabulary % amos::TILE == 0 && amos::aligned(logits) && amos::aligned(bias);
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(
            amos::SoftmaxRows<Scalar>{static_cast<Scalar*>(logits), bias, logsumexp, {vocabulary, packed}}, rows, place,
            stream);
    });
}

AMOS_EXPORT int amos_gumbel_softmax(const void* logits, std::uint64_t seed, const std::int64_t* noise_rows,
                                    float temperature, void* probabilities, std::int64_t rows, int vocabulary,
                                    int scalar, int place, void* stream) {
    const bool packed = vocabulary % amos::TILE == 0 && amos::aligned(logits) && amos::aligned(probabilities);
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(
            amos::GumbelSoftmaxRows<Scalar>{static_cast<const Scalar*>(logits), seed, noise_rows, temperature,
                                            {vocabulary, packed}, static_cast<Scalar*>(probabilities)},
            rows, place, stream);
    });
}

AMOS_EXPORT int amos_soft_sample_gradient(const float* gradient, const float* hidden, const void* table,
                                          const float* bias, const std::int32_t* candidates, std::uint64_t seed,
                                          const std::int64_t* noise_rows, float temperature, float* result,
                                          std::int64_t rows, int vocabulary, int width, int capacity, int scalar,
                                          int place, void* stream) {
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(
            amos::SoftSampleGradient<Scalar>{gradient, hidden, static_cast<const Scalar*>(table), bias, candidates,
                                             seed, noise_rows, temperature, vocabulary, width, capacity, result},
            rows, place, stream);
    });
}

AMOS_EXPORT int amos_top_tokens(const void* logits, const float* bias, const std::int64_t* left_out,
                                const std::uint8_t* excluded, std::uint64_t seed, const std::int64_t* noise_rows,
                                std::int64_t* top, std::int64_t rows, int vocabulary, int count, int scalar, int place,
                                void* stream) {
    const bool packed = vocabulary % amos::TILE == 0 && amos::aligned(logits) && amos::aligned(bias) &&
                        amos::aligned(excluded);
    return amos::with_scalar(scalar, [&](auto zero) {
        using Scalar = decltype(zero);
        return amos::launch(amos::TopTokens<Scalar>{static_cast<const Scalar*>(logits), bias, left_out, excluded, seed,
                                                    noise_rows, count, {vocabulary, packed}, top},
                            rows, place, stream);
    });
}

// For tests, on the host: Philox's four words, and noise from random words.
AMOS_EXPORT void amos_philox(std::uint64_t key, const std::uint32_t* counter, std::uint32_t* words) {
    amos::Philox random{counter[0], counter[1], counter[2], counter[3]};
    random.mix(key);
    words[0] = random.a, words[1] = random.b, words[2] = random.c, words[3] = random.d;
}

AMOS_EXPORT void amos_gumbel(const std::uint32_t* words, float* noise, std::int64_t size) {
    for (std::int64_t i = 0; i < size; ++i) noise[i] = amos::gumbel(words[i]);
}
