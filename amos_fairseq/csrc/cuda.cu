// The CUDA library: a block of threads for each row.
#include <cuda_runtime.h>

#include "portable.h"

namespace amos {
namespace {

constexpr int BLOCKS = 4;  // at least, on a multiprocessor: 64 registers for a thread

template <class Program>
__global__ void __launch_bounds__(THREADS, BLOCKS) run_row(const __grid_constant__ Program program) {
    extern __shared__ __align__(16) char memory[];
    program(Block{memory}, blockIdx.x);
}

template <class Program>
int launch(const Program& program, std::int64_t rows, int place, void* stream);

template <class Call>
int with_scalar(int scalar, Call call) {
    switch (scalar) {
        case 0: return call(float());
        case 1: return call(__nv_bfloat16());
        case 2: return call(__half());
        default: return UNKNOWN_SCALAR;
    }
}

}  // namespace
}  // namespace amos

#include "library.h"

namespace amos {
namespace {

template <class Program>
int launch(const Program& program, std::int64_t rows, int place, void* stream) {
    if (rows == 0) return cudaSuccess;
    if (const int error = cudaSetDevice(place)) return error;
    typename Program::Shared shared;
    const std::size_t bytes = program.share(nullptr, shared);
    if (bytes > 48 * 1024) {  // beyond that, a kernel has to ask
        int most = 0;
        const auto limit = cudaDevAttrMaxSharedMemoryPerBlockOptin;
        if (const int error = cudaDeviceGetAttribute(&most, limit, place)) return error;
        if (bytes > static_cast<std::size_t>(most)) return TOO_MUCH_SHARED_MEMORY;
        const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
        if (const int error = cudaFuncSetAttribute(run_row<Program>, attribute, static_cast<int>(bytes))) return error;
    }
    run_row<<<static_cast<unsigned>(rows), THREADS, bytes, static_cast<cudaStream_t>(stream)>>>(program);
    return cudaGetLastError();
}

}  // namespace
}  // namespace amos

AMOS_EXPORT const char* amos_error(int error) {
    switch (error) {
        case amos::TOO_MUCH_SHARED_MEMORY: return "the vocabulary or the heads are too many for a block's memory";
        case amos::UNKNOWN_SCALAR: return "the CUDA kernels take float32, bfloat16 and float16 alone";
        default: return cudaGetErrorString(static_cast<cudaError_t>(error));
    }
}
