// The CPU library: rows are dealt out to threads, each of which runs the kernels with a block of its own.
#include "portable.h"

#include <algorithm>
#include <thread>
#include <vector>

// Compiled once for each level of the processor's vectors, chosen when the library is loaded: the machine that builds
// need not be the one that computes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define AMOS_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f"), flatten))
#else
#define AMOS_EACH_PROCESSOR
#endif

namespace amos {
namespace {

template <class Program>
AMOS_EACH_PROCESSOR void run_rows(const Program& program, std::int64_t first, std::int64_t last, char* memory) {
    const Block block{memory};
    for (std::int64_t row = first; row < last; ++row) program(block, row);
}

template <class Program>
int launch(const Program& program, std::int64_t rows, int place, void*) {
    typename Program::Shared shared;
    const std::size_t bytes = program.share(nullptr, shared);
    const std::int64_t threads = std::max<std::int64_t>(1, std::min<std::int64_t>(place, rows));
    const auto work = [&](std::int64_t thread) {
        std::vector<char> memory(bytes + 16);
        const auto misaligned = reinterpret_cast<std::uintptr_t>(memory.data()) % 16;
        run_rows(program, rows * thread / threads, rows * (thread + 1) / threads, memory.data() + 16 - misaligned);
    };
    std::vector<std::thread> others;
    for (std::int64_t thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
    work(0);
    for (std::thread& other : others) other.join();
    return 0;
}

template <class Call>
int with_scalar(int scalar, Call call) {
    return scalar == 0 ? call(float()) : UNKNOWN_SCALAR;
}

}  // namespace
}  // namespace amos

#include "library.h"

AMOS_EXPORT const char* amos_error(int error) {
    return error == amos::UNKNOWN_SCALAR ? "the CPU kernels take float32 alone" : "unknown error";
}
