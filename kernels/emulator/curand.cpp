// cuRAND: uniform and normal numbers of a seed. They are not NVIDIA's: nothing may depend on which they are.
#include "memory.h"
#include "status.h"
#include "stream.h"
#include <memory>
#include <random>

using namespace emulated;

namespace {

enum Status : int { SUCCESS = 0, LENGTH_NOT_MULTIPLE = 105, LAUNCH_FAILURE = 201 };

struct Generator {
    std::shared_ptr<std::mt19937_64> numbers = std::make_shared<std::mt19937_64>(0);
    void *stream = nullptr;
};

template <class T, class D> Status generate(Generator *generator, T *to, size_t count, D distribution) {
    memory::require((uint64_t)to, count * sizeof(T), "cuRAND writes");
    auto numbers = generator->numbers;
    CUresult result = submit(stream_of(generator->stream), [=]() mutable {
        for (size_t i = 0; i < count; i++) to[i] = distribution(*numbers);
    });
    return result == CUDA_SUCCESS ? SUCCESS : LAUNCH_FAILURE;
}

} // namespace

EXPORTED Status curandCreateGenerator(Generator **generator, int) { return *generator = new Generator, SUCCESS; }
EXPORTED Status curandDestroyGenerator(Generator *generator) { return delete generator, SUCCESS; }
EXPORTED Status curandSetStream(Generator *generator, void *stream) { return generator->stream = stream, SUCCESS; }
EXPORTED Status curandSetPseudoRandomGeneratorSeed(Generator *generator, unsigned long long seed) {
    return generator->numbers->seed(seed), SUCCESS;
}
EXPORTED Status curandSetGeneratorOffset(Generator *generator, unsigned long long offset) {
    return generator->numbers->discard(offset), SUCCESS;
}
EXPORTED Status curandGenerateUniform(Generator *generator, float *to, size_t count) {
    return generate(generator, to, count, std::uniform_real_distribution<float>(0, 1));
}
EXPORTED Status curandGenerateUniformDouble(Generator *generator, double *to, size_t count) {
    return generate(generator, to, count, std::uniform_real_distribution<double>(0, 1));
}
EXPORTED Status curandGenerateNormal(Generator *generator, float *to, size_t count, float mean, float deviation) {
    if (count % 2) return LENGTH_NOT_MULTIPLE;
    return generate(generator, to, count, std::normal_distribution<float>(mean, deviation));
}
EXPORTED Status curandGenerateNormalDouble(Generator *generator, double *to, size_t count, double mean, double deviation) {
    if (count % 2) return LENGTH_NOT_MULTIPLE;
    return generate(generator, to, count, std::normal_distribution<double>(mean, deviation));
}
EXPORTED Status curandGenerate(Generator *generator, unsigned *to, size_t count) {
    return generate(generator, to, count, std::uniform_int_distribution<unsigned>());
}
