// What kernels and the emulator tell each other: who a thread is, and how a kernel is called.
#pragma once

namespace emulated {

struct Index {
    unsigned x, y, z;
};

// A thread: where it is, and its block's shared memory. The emulator keeps more behind it.
struct Thread {
    Index thread, block, block_size, grid_size;
    unsigned char *shared;
    unsigned lane;
};

// How to call a kernel. `sizes`: its parameters' sizes in bytes, in order. `threads`: the most that a block may have.
struct Entry {
    void (*call)(void **arguments);
    const unsigned *sizes;
    unsigned count, threads;
};

template <auto kernel> struct Caller;
template <class... P, void (*kernel)(P...)> struct Caller<kernel> {
    static constexpr unsigned sizes[sizeof...(P) + 1] = {(unsigned)sizeof(P)..., 0};
    template <unsigned... I> struct Indices {};
    template <unsigned N, unsigned... I> struct Count : Count<N - 1, N - 1, I...> {};
    template <unsigned... I> struct Count<0, I...> {
        static void call(void **arguments) { kernel(*(P *)arguments[I]...); }
    };
    static void call(void **arguments) { Count<sizeof...(P)>::call(arguments); }
};
template <auto kernel> constexpr Entry entry(unsigned threads) {
    using C = Caller<kernel>;
    return {C::call, C::sizes, sizeof(C::sizes) / sizeof(unsigned) - 1, threads};
}

} // namespace emulated
