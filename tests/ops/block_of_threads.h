// A CUDA block on the CPU: threads with barriers and tiles as short as on the GPU. Included by csrc/portable.h.
constexpr int TILE = 8;
constexpr int THREADS = 16;
constexpr int VECTOR = 8;  // a tile is always of full width, as on the GPU

struct Block {
    char* memory;
    int number;
    pthread_barrier_t* barrier;

    int thread() const { return number; }
    static constexpr int threads() { return THREADS; }
    void sync() const { pthread_barrier_wait(barrier); }
    static constexpr int lanes() { return 1; }
    float lane_sum(float value) const { return value; }
};
