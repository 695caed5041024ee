// The driver: one device, its context, streams and events, memory, modules and launches.
#include "memory.h"
#include "module.h"
#include "report.h"
#include "stream.h"
#include <atomic>
#include <chrono>
#include <stdio.h>
#include <string.h>

using namespace emulated;
using memory::Address;

namespace {

using Clock = std::chrono::steady_clock;

struct Event {
    bool recorded = false;
    Clock::time_point at;
    std::weak_ptr<Capture> capture; // in which it was recorded
    bool captured = false;
    Stream *stream = nullptr;
};

bool initialised = false;
char context;             // its address is the only context
char pool;                // its address is the only pool
std::atomic<uint64_t> release_threshold{0};
thread_local void *current_context = nullptr;

CUresult copy(Stream *stream, void *to, const void *from, size_t bytes) {
    return submit(stream, [=] { memmove(to, from, bytes); });
}

bool on_card(Address address, size_t bytes, const char *call) {
    if (memory::contains(address, bytes)) return true;
    note("%s: %zu bytes at 0x%llx are not within an allocation of the card", call, bytes, (unsigned long long)address);
    return false;
}

template <class T> CUresult fill(Stream *stream, Address to, T value, size_t count, const char *call) {
    if (!on_card(to, count * sizeof(T), call)) return CUDA_ERROR_INVALID_VALUE;
    return submit(stream, [=] {
        for (size_t i = 0; i < count; i++) ((T *)to)[i] = value;
    });
}

struct Name {
    CUresult code;
    const char *name, *text;
};
const Name NAMES[] = {
    {CUDA_SUCCESS, "CUDA_SUCCESS", "no error"},
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {CUDA_ERROR_ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "the operation cannot be performed in the present state"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CUDA_ERROR_STREAM_CAPTURE_MERGE, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "operation would result in a merge of separate capture sequences"},
    {CUDA_ERROR_STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not ended in the same stream as it began"},
    {CUDA_ERROR_STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {CUDA_ERROR_STREAM_CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {CUDA_ERROR_CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a thread-local capture sequence from another thread"},
};

} // namespace

// ---- Errors and initialisation

EXPORTED CUresult cuGetErrorName(CUresult error, const char **text) {
    for (auto &name : NAMES) if (name.code == error) return *text = name.name, CUDA_SUCCESS;
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
}
EXPORTED CUresult cuGetErrorString(CUresult error, const char **text) {
    for (auto &name : NAMES) if (name.code == error) return *text = name.text, CUDA_SUCCESS;
    return *text = nullptr, CUDA_ERROR_INVALID_VALUE;
}
EXPORTED CUresult cuInit(unsigned) { return initialised = true, CUDA_SUCCESS; }
EXPORTED CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }

// ---- The device

EXPORTED CUresult cuDeviceGetCount(int *count) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    return *count = 1, CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceGet(int *device, int ordinal) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (ordinal != 0) return CUDA_ERROR_INVALID_DEVICE;
    return *device = 0, CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceGetName(char *name, int bytes, int) {
    snprintf(name, bytes, "Emulated GPU");
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceGetUuid_v2(char *uuid, int) {
    memcpy(uuid, "darkroomemulated", 16);
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceGetUuid(char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }
EXPORTED CUresult cuDeviceGetPCIBusId(char *id, int bytes, int) {
    snprintf(id, bytes, "0000:00:00.0");
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = memory::total(), CUDA_SUCCESS; }
EXPORTED CUresult cuDeviceComputeCapability(int *major, int *minor, int) {
    return *major = 9, *minor = 0, CUDA_SUCCESS;
}
EXPORTED CUresult cuDeviceGetAttribute(int *value, int attribute, int) {
    // As of an H100.
    switch (attribute) {
    case 1: *value = 1024; break;          // threads of a block
    case 2: case 3: *value = 1024; break;  // and in x, y
    case 4: *value = 64; break;            // and in z
    case 5: *value = 0x7fffffff; break;    // blocks in x
    case 6: case 7: *value = 65535; break; // in y, z
    case 8: *value = 48 << 10; break;      // shared memory of a block
    case 9: *value = 64 << 10; break;      // constant memory
    case 10: *value = 32; break;           // lanes of a warp
    case 12: case 82: *value = 65536; break; // registers of a block, of a multiprocessor
    case 13: *value = 1980000; break;      // kHz
    case 14: *value = 512; break;          // alignment of textures
    case 16: *value = 132; break;          // multiprocessors
    case 19: case 31: case 41: case 78: case 79: case 80: case 83: case 95: case 99: case 102: case 115: *value = 1; break;
    case 36: *value = 2619000; break;      // kHz of memory
    case 37: *value = 5120; break;         // bits of its bus
    case 38: *value = 50 << 20; break;     // L2
    case 39: *value = 2048; break;         // threads of a multiprocessor
    case 40: *value = 3; break;            // copy engines
    case 75: *value = 9; break;            // compute capability
    case 76: *value = 0; break;
    case 81: *value = 228 << 10; break;    // shared memory of a multiprocessor
    case 97: *value = 227 << 10; break;    // and of a block that asks for more
    case 106: *value = 32; break;          // blocks of a multiprocessor
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

// ---- The context

EXPORTED CUresult cuDevicePrimaryCtxRetain(void **out, int device) {
    if (device != 0) return CUDA_ERROR_INVALID_DEVICE;
    return *out = &context, CUDA_SUCCESS;
}
EXPORTED CUresult cuDevicePrimaryCtxRelease_v2(int) { return CUDA_SUCCESS; }
EXPORTED CUresult cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {
    return *flags = 0, *active = 1, CUDA_SUCCESS;
}
EXPORTED CUresult cuCtxSetCurrent(void *set) { return current_context = set, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetCurrent(void **out) { return *out = current_context, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetDevice(int *device) { return *device = 0, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxSetFlags(unsigned) { return CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetLimit(size_t *value, int) { return *value = 1024, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxSetLimit(int, size_t) { return CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetCacheConfig(int *value) { return *value = 0, CUDA_SUCCESS; }
EXPORTED CUresult cuCtxSetCacheConfig(int) { return CUDA_SUCCESS; }
EXPORTED CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuCtxSynchronize() {
    if (CUresult refused = outside_of_captures("cuCtxSynchronize")) return refused;
    memory::check();
    return CUDA_SUCCESS;
}

// ---- Streams

EXPORTED CUresult cuStreamCreate(void **out, unsigned) { return *out = new Stream, CUDA_SUCCESS; }
EXPORTED CUresult cuStreamCreateWithPriority(void **out, unsigned, int) { return *out = new Stream, CUDA_SUCCESS; }
EXPORTED CUresult cuStreamDestroy_v2(void *handle) {
    Stream *stream = stream_of(handle);
    if (handle != stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) stream->capture->invalid = true;
    delete stream;
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuStreamSynchronize(void *handle) {
    if (CUresult refused = refuse_in_capture(stream_of(handle), "cuStreamSynchronize")) return refused;
    memory::check();
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuStreamQuery(void *handle) { return refuse_in_capture(stream_of(handle), "cuStreamQuery"); }
EXPORTED CUresult cuStreamAttachMemAsync(void *, Address, size_t, unsigned) { return CUDA_SUCCESS; }
EXPORTED CUresult cuLaunchHostFunc(void *stream, void (*call)(void *), void *data) {
    return submit(stream_of(stream), [=] { call(data); });
}

// ---- Capture and graphs

EXPORTED CUresult cuStreamBeginCapture_v2(void *stream, int mode) { return begin_capture(stream_of(stream), mode); }
EXPORTED CUresult cuStreamEndCapture(void *stream, void **graph) {
    return end_capture(stream_of(stream), (Graph **)graph);
}
EXPORTED CUresult cuStreamIsCapturing(void *handle, int *status) {
    auto &capture = stream_of(handle)->capture;
    *status = !capture ? 0 : capture->invalid ? 2 : 1;
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuThreadExchangeStreamCaptureMode(int *mode) {
    thread_local int current = 0;
    std::swap(current, *mode);
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuGraphInstantiateWithFlags(void **out, Graph *graph, unsigned long long flags) {
    if (flags & 4) return CUDA_ERROR_INVALID_VALUE; // launched by the device: not with what is captured here
    *out = new GraphRun{*graph, (flags & 1) != 0};
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuGraphGetNodes(Graph *graph, void **, size_t *count) {
    return *count = graph->nodes.size(), CUDA_SUCCESS;
}
EXPORTED CUresult cuGraphUpload(GraphRun *, void *) { return CUDA_SUCCESS; }
EXPORTED CUresult cuGraphLaunch(GraphRun *run, void *stream) { return emulated::launch(*run, stream_of(stream)); }
EXPORTED CUresult cuGraphExecDestroy(GraphRun *run) { return delete run, CUDA_SUCCESS; }
EXPORTED CUresult cuGraphDestroy(Graph *graph) { return delete graph, CUDA_SUCCESS; }
EXPORTED CUresult cuDeviceGraphMemTrim(int) { return CUDA_SUCCESS; }

// ---- Events

EXPORTED CUresult cuEventCreate(void **out, unsigned) { return *out = new Event, CUDA_SUCCESS; }
EXPORTED CUresult cuEventDestroy_v2(Event *event) { return delete event, CUDA_SUCCESS; }
EXPORTED CUresult cuEventRecord(Event *event, void *handle) {
    Stream *stream = stream_of(handle);
    if (stream->capture && stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    event->capture = stream->capture;
    event->captured = stream->capture != nullptr;
    event->stream = stream;
    if (!event->captured) event->recorded = true, event->at = Clock::now();
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuStreamWaitEvent(void *handle, Event *event, unsigned) {
    Stream *stream = stream_of(handle);
    auto captured_in = event->capture.lock();
    if (stream->capture) {
        if (stream->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        if (captured_in != stream->capture) {
            note("a captured stream waits for an event from outside of its capture: the capture is lost");
            stream->capture->invalid = true;
            return captured_in ? CUDA_ERROR_STREAM_CAPTURE_MERGE : CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        if (stream == captured_in->origin && event->stream != stream) {
            captured_in->forked.erase(event->stream);
            event->stream->capture = nullptr; // until it is forked again
        }
    } else if (captured_in) {
        if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        stream->capture = captured_in;
        captured_in->forked.insert(stream);
    } else if (event->captured) {
        note("a stream waits for an event of a capture that has ended");
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuEventQuery(Event *event) {
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    return outside_of_captures("cuEventQuery");
}
EXPORTED CUresult cuEventSynchronize(Event *event) {
    if (event->captured) return CUDA_ERROR_CAPTURED_EVENT;
    if (CUresult refused = outside_of_captures("cuEventSynchronize")) return refused;
    memory::check();
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuEventElapsedTime_v2(float *milliseconds, Event *from, Event *to) {
    if (!from->recorded || !to->recorded || from->captured || to->captured) return CUDA_ERROR_INVALID_HANDLE;
    *milliseconds = std::chrono::duration<float, std::milli>(to->at - from->at).count();
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuEventElapsedTime(float *milliseconds, Event *from, Event *to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

// ---- Memory

EXPORTED CUresult cuMemGetInfo_v2(size_t *free, size_t *total) {
    return *total = memory::total(), *free = *total - memory::used(), CUDA_SUCCESS;
}
EXPORTED CUresult cuMemAlloc_v2(Address *address, size_t bytes) {
    if (CUresult refused = outside_of_captures("cuMemAlloc")) return refused;
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    return memory::allocate(bytes, address);
}
EXPORTED CUresult cuMemAllocManaged(Address *address, size_t bytes, unsigned) { return cuMemAlloc_v2(address, bytes); }
EXPORTED CUresult cuMemFree_v2(Address address) {
    if (CUresult refused = outside_of_captures("cuMemFree")) return refused;
    memory::check();
    return memory::release(address);
}
EXPORTED CUresult cuMemAllocAsync(Address *address, size_t bytes, void *stream) {
    return allocate_in(stream_of(stream), bytes, address);
}
EXPORTED CUresult cuMemAllocFromPoolAsync(Address *address, size_t bytes, void *, void *stream) {
    return allocate_in(stream_of(stream), bytes, address);
}
EXPORTED CUresult cuMemFreeAsync(Address address, void *stream) { return release_in(stream_of(stream), address); }

EXPORTED CUresult cuMemHostAlloc(void **out, size_t bytes, unsigned) {
    if (CUresult refused = outside_of_captures("cuMemHostAlloc")) return refused;
    *out = memory::allocate_host(bytes);
    return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
EXPORTED CUresult cuMemFreeHost(void *address) {
    if (CUresult refused = outside_of_captures("cuMemFreeHost")) return refused;
    return memory::release_host(address) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
EXPORTED CUresult cuMemHostGetFlags(unsigned *flags, void *) { return *flags = 0, CUDA_SUCCESS; }
EXPORTED CUresult cuMemHostGetDevicePointer_v2(Address *address, void *host, unsigned) {
    return *address = (Address)host, CUDA_SUCCESS;
}

EXPORTED CUresult cuDeviceGetDefaultMemPool(void **out, int) { return *out = &pool, CUDA_SUCCESS; }
EXPORTED CUresult cuDeviceGetMemPool(void **out, int) { return *out = &pool, CUDA_SUCCESS; }
EXPORTED CUresult cuDeviceSetMemPool(int, void *) { return CUDA_SUCCESS; }
EXPORTED CUresult cuMemPoolCreate(void **out, const void *) { return *out = &pool, CUDA_SUCCESS; }
EXPORTED CUresult cuMemPoolDestroy(void *) { return CUDA_SUCCESS; }
EXPORTED CUresult cuMemPoolTrimTo(void *, size_t) { return CUDA_SUCCESS; }
EXPORTED CUresult cuMemPoolSetAttribute(void *, int attribute, void *value) {
    if (attribute == 4) release_threshold = *(uint64_t *)value;
    if (attribute == 6 || attribute == 8) memory::forget_most();
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuMemPoolGetAttribute(void *, int attribute, void *value) {
    switch (attribute) {
    case 1: case 2: case 3: *(int *)value = 1; break;
    case 4: *(uint64_t *)value = release_threshold; break;
    case 5: case 7: *(uint64_t *)value = memory::used(); break;
    case 6: case 8: *(uint64_t *)value = memory::most_used(); break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// ---- Copies and fills

EXPORTED CUresult cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *handle) {
    Stream *stream = stream_of(handle);
    if (!on_card(to, bytes, "cuMemcpyHtoDAsync")) return CUDA_ERROR_INVALID_VALUE;
    if (!memory::is_pinned(from, bytes))
        if (CUresult refused = refuse_in_capture(stream, "a copy from host memory that is not pinned")) return refused;
    return copy(stream, (void *)to, from, bytes);
}
EXPORTED CUresult cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *handle) {
    Stream *stream = stream_of(handle);
    if (!on_card(from, bytes, "cuMemcpyDtoHAsync")) return CUDA_ERROR_INVALID_VALUE;
    if (!memory::is_pinned(to, bytes)) {
        if (CUresult refused = refuse_in_capture(stream, "a copy to host memory that is not pinned")) return refused;
        memory::check();
    }
    return copy(stream, to, (const void *)from, bytes);
}
EXPORTED CUresult cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    if (!on_card(to, bytes, "cuMemcpyDtoDAsync") || !on_card(from, bytes, "cuMemcpyDtoDAsync"))
        return CUDA_ERROR_INVALID_VALUE;
    return copy(stream_of(stream), (void *)to, (const void *)from, bytes);
}
EXPORTED CUresult cuMemcpyPeerAsync(Address to, void *, Address from, void *, size_t bytes, void *stream) {
    return cuMemcpyDtoDAsync_v2(to, from, bytes, stream);
}
EXPORTED CUresult cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) {
    if (CUresult refused = outside_of_captures("cuMemcpyHtoD")) return refused;
    return cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
}
EXPORTED CUresult cuMemcpyDtoH_v2(void *to, Address from, size_t bytes) {
    if (CUresult refused = outside_of_captures("cuMemcpyDtoH")) return refused;
    return cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
}
EXPORTED CUresult cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    if (CUresult refused = outside_of_captures("cuMemcpyDtoD")) return refused;
    return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr);
}
EXPORTED CUresult cuMemsetD8Async(Address to, unsigned char value, size_t count, void *stream) {
    return fill(stream_of(stream), to, value, count, "cuMemsetD8Async");
}
EXPORTED CUresult cuMemsetD16Async(Address to, unsigned short value, size_t count, void *stream) {
    return fill(stream_of(stream), to, value, count, "cuMemsetD16Async");
}
EXPORTED CUresult cuMemsetD32Async(Address to, unsigned value, size_t count, void *stream) {
    return fill(stream_of(stream), to, value, count, "cuMemsetD32Async");
}
EXPORTED CUresult cuMemsetD8_v2(Address to, unsigned char value, size_t count) {
    if (CUresult refused = outside_of_captures("cuMemsetD8")) return refused;
    return cuMemsetD8Async(to, value, count, nullptr);
}
EXPORTED CUresult cuMemsetD32_v2(Address to, unsigned value, size_t count) {
    if (CUresult refused = outside_of_captures("cuMemsetD32")) return refused;
    return cuMemsetD32Async(to, value, count, nullptr);
}

// ---- Modules, functions, launches

EXPORTED CUresult cuModuleLoadData(Module **module, const void *image) {
    if (CUresult refused = outside_of_captures("cuModuleLoadData")) return refused;
    return emulated::load(image, module);
}
EXPORTED CUresult cuModuleLoadDataEx(Module **module, const void *image, unsigned, void *, void *) {
    return cuModuleLoadData(module, image);
}
EXPORTED CUresult cuModuleUnload(Module *) { return CUDA_SUCCESS; }
EXPORTED CUresult cuModuleGetFunction(Function **function, Module *module, const char *name) {
    return emulated::find(*module, name, function);
}
EXPORTED CUresult cuModuleGetGlobal_v2(Address *, size_t *, Module *, const char *) { return CUDA_ERROR_NOT_FOUND; }
EXPORTED CUresult cuFuncGetName(const char **name, Function *function) {
    return *name = function->name.c_str(), CUDA_SUCCESS;
}
EXPORTED CUresult cuFuncLoad(Function *) { return CUDA_SUCCESS; }
EXPORTED CUresult cuFuncGetAttribute(int *value, int attribute, Function *function) {
    switch (attribute) {
    case 0: *value = (int)function->entry.threads; break;
    case 4: *value = 64; break;
    case 5: case 6: *value = 90; break;
    case 8: *value = function->allowed_shared_bytes; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuFuncSetAttribute(Function *function, int attribute, int value) {
    if (attribute == 8) {
        if (value < 0 || value > 227 << 10) {
            note("%s: no block has %d bytes of shared memory", function->name.c_str(), value);
            return CUDA_ERROR_INVALID_VALUE;
        }
        function->allowed_shared_bytes = value;
    }
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuFuncSetCacheConfig(Function *, int) { return CUDA_SUCCESS; }
EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *, int threads, size_t shared) {
    int by_threads = threads > 0 ? 2048 / threads : 0, by_shared = (int)((227 << 10) / (shared + 1024));
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    if (*blocks > 32) *blocks = 32;
    return CUDA_SUCCESS;
}
EXPORTED CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, Function *function, int threads,
                                                                     size_t shared, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

EXPORTED CUresult cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned shared, void *handle, void **parameters, void **extra) {
    if (extra) return CUDA_ERROR_NOT_SUPPORTED;
    Index grid{gx, gy, gz}, block{bx, by, bz};
    if (CUresult refused = emulated::check_launch(*function, grid, block, shared)) return refused;
    Stream *stream = stream_of(handle);
    if (!stream->capture) {
        emulated::launch(*function, grid, block, shared, parameters);
        return CUDA_SUCCESS;
    }
    // What the parameters are now is what every replay gets.
    auto &entry = function->entry;
    std::vector<std::vector<unsigned char>> values(entry.count);
    for (unsigned i = 0; i < entry.count; i++)
        values[i].assign((unsigned char *)parameters[i], (unsigned char *)parameters[i] + entry.sizes[i]);
    return submit(stream, [=]() mutable {
        std::vector<void *> pointers;
        for (auto &value : values) pointers.push_back(value.data());
        emulated::launch(*function, grid, block, shared, pointers.data());
    });
}

EXPORTED CUresult cuLaunchCooperativeKernel(Function *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                                          unsigned, void *, void **) {
    return CUDA_ERROR_NOT_SUPPORTED; // blocks do not run at the same time here
}
EXPORTED CUresult cuProfilerStart() { return CUDA_SUCCESS; }
EXPORTED CUresult cuProfilerStop() { return CUDA_SUCCESS; }
