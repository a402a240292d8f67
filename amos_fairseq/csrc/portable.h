// One source, two machines. A "block" computes one row of logits. Under CUDA its threads each take short tiles of
// tokens, held in registers; on the CPU a block is one thread whose long tiles live in the first cache, and the loops
// over a tile's tokens become vector instructions. Barriers and loops over threads then vanish.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define AMOS_INLINE __device__ __forceinline__
#define AMOS_HOST_INLINE __host__ __device__ __forceinline__  // called by the host too
#define AMOS_TOKENS _Pragma("unroll")       // a loop over a tile's tokens
#define AMOS_REDUCE(...) _Pragma("unroll")  // the same, reducing into variables: AMOS_REDUCE(+ : sum)
#define AMOS_IN_ORDER _Pragma("unroll")     // the same, where each step needs the one before
#else
#define AMOS_INLINE inline
#define AMOS_HOST_INLINE inline
#define AMOS_PRAGMA(text) _Pragma(#text)
#define AMOS_TOKENS AMOS_PRAGMA(omp simd)
#define AMOS_REDUCE(...) AMOS_PRAGMA(omp simd reduction(__VA_ARGS__))
#define AMOS_IN_ORDER
#endif

namespace amos {

enum { TOO_MUCH_SHARED_MEMORY = -1, UNKNOWN_SCALAR = -2 };  // errors, beside CUDA's own

constexpr float INFINITE = INFINITY;
constexpr float NOT_A_NUMBER = NAN;

#ifdef __CUDACC__
constexpr int TILE = 8;  // tokens: 16 bytes of half precision
constexpr int THREADS = 256;  // a power of 2

struct Block {
    char* memory;  // shared by its threads

    __device__ int thread() const { return threadIdx.x; }
    static AMOS_INLINE constexpr int threads() { return THREADS; }
    __device__ void sync() const { __syncthreads(); }

    // Groups of lanes that add up without a barrier.
    static AMOS_INLINE constexpr int lanes() { return 32; }
    __device__ float lane_sum(float value) const {
        for (int distance = lanes() / 2; distance > 0; distance /= 2)
            value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
        return value;
    }
};
#elif defined(AMOS_BLOCK)
#include AMOS_BLOCK  // a test's
#else
constexpr int TILE = 128;
constexpr int THREADS = 1;
constexpr int VECTOR = 16;  // floats: a multiple of every vector register's

struct Block {
    char* memory;

    static constexpr int thread() { return 0; }
    static constexpr int threads() { return THREADS; }
    void sync() const {}
    static constexpr int lanes() { return 1; }
    float lane_sum(float value) const { return value; }
};
#endif

// Arrays laid out one after the other in a block's memory.
struct Layout {
    char* memory;
    std::size_t bytes = 0;

    template <class T>
    AMOS_HOST_INLINE T* array(std::int64_t size) {
        T* start = reinterpret_cast<T*>(memory + bytes);
        bytes += (static_cast<std::size_t>(size) * sizeof(T) + 15) / 16 * 16;
        return start;
    }
};

// values[slot][0] = values[slot][0] + values[slot][1] + ... for arrays of one value for each thread, always in the same
// order, by halves; `add(a, b)` adds b to a.
template <class T, class Add>
AMOS_INLINE void reduce(const Block& block, T* values, int slots, Add add) {
    block.sync();
    for (int stride = block.threads() / 2; stride > 0; stride /= 2) {
        for (int i = block.thread(); i < slots * stride; i += block.threads()) {
            T* slot = values + i / stride * block.threads();
            add(slot[i % stride], slot[i % stride + stride]);
        }
        block.sync();
    }
}

// Numbers the things that items 0..items-1 hold, in order: emit(item, number of its first thing) returns how many the
// item holds, as does count(item). Each thread takes a run of successive items; items without things may be left out.
// Returns how many things there are. totals: one int for each thread.
template <class Count, class Emit>
AMOS_INLINE int enumerate(const Block& block, int* totals, int items, Count count, Emit emit) {
    if (block.threads() == 1) {  // nothing to count: one thread meets them in order
        int number = 0;
        for (int item = 0; item < items; ++item) number += emit(item, number);
        return number;
    }
    const int run = (items + block.threads() - 1) / block.threads();
    const int first = block.thread() * run < items ? block.thread() * run : items;
    const int last = first + run < items ? first + run : items;
    int total = 0;
    for (int item = first; item < last; ++item) total += count(item);
    block.sync();  // an earlier call's totals may still be read
    totals[block.thread()] = total;
    block.sync();
    for (int stride = 1; stride < block.threads(); stride *= 2) {  // running sums
        const int before = block.thread() >= stride ? totals[block.thread() - stride] : 0;
        block.sync();
        totals[block.thread()] += before;
        block.sync();
    }
    const int end = totals[block.thread()];
    for (int item = first, number = end - total; item < last && number < end; ++item) number += emit(item, number);
    return totals[block.threads() - 1];
}

}  // namespace amos
