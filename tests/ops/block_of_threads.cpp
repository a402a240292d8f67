// The library whose blocks have several threads, for tests of what the threads of a GPU's block share.
#include <pthread.h>

#include <thread>
#include <vector>

#define AMOS_BLOCK "block_of_threads.h"
#include "portable.h"

namespace amos {
namespace {

template <class Program>
int launch(const Program& program, std::int64_t rows, int, void*) {
    typename Program::Shared shared;
    std::vector<double> memory(program.share(nullptr, shared) / sizeof(double) + 2);
    char* aligned = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(memory.data()) + 15) / 16 * 16);
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, nullptr, THREADS);
    std::vector<std::thread> threads;
    for (int number = 0; number < THREADS; ++number)
        threads.emplace_back([&, number] {
            const Block block{aligned, number, &barrier};
            for (std::int64_t row = 0; row < rows; ++row) {
                program(block, row);
                block.sync();
            }
        });
    for (std::thread& thread : threads) thread.join();
    pthread_barrier_destroy(&barrier);
    return 0;
}

template <class Call>
int with_scalar(int, Call call) {
    return call(float());
}

}  // namespace
}  // namespace amos

#include "library.h"

AMOS_EXPORT const char* amos_error(int) { return ""; }
