// Streams run their work when it is given to them. A capture keeps it, and refuses what a card's capture refuses.
#include "stream.h"
#include "report.h"
#include <list>
#include <mutex>

namespace emulated {
namespace {

enum Mode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

std::mutex captures_mutex;
std::list<std::weak_ptr<Capture>> captures; // that have begun and not ended

std::mutex live_mutex;
// Graphs' allocations that users have: the memory goes when they give it back.
std::map<memory::Address, std::shared_ptr<Graph::Memory>> held;

size_t rounded(size_t bytes) { return (bytes + 511) / 512 * 512; }

} // namespace

Graph::Memory::~Memory() {
    for (auto address : all) memory::release(address);
}

std::set<memory::Address> Graph::left() const {
    std::set<memory::Address> left;
    for (auto &node : nodes) {
        if (node.kind == Node::ALLOCATE) left.insert(node.address);
        if (node.kind == Node::RELEASE) left.erase(node.address);
    }
    return left;
}

Stream *stream_of(void *handle) {
    static Stream *legacy = [] {
        auto *stream = new Stream;
        stream->legacy = true;
        return stream;
    }();
    static thread_local Stream own;
    if (handle == nullptr || handle == (void *)1) return legacy;
    if (handle == (void *)2) return &own;
    return (Stream *)handle;
}

CUresult submit(Stream *stream, std::function<void()> work) {
    if (auto &capture = stream->capture) {
        if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        capture->graph.nodes.push_back({Graph::Node::WORK, std::move(work), 0, 0});
        if (stream != capture->origin) capture->forked.insert(stream);
        return CUDA_SUCCESS;
    }
    work();
    return CUDA_SUCCESS;
}

CUresult outside_of_captures(const char *call) {
    std::lock_guard<std::mutex> lock(captures_mutex);
    bool refused = false;
    for (auto &weak : captures)
        if (auto capture = weak.lock())
            if (capture->mode == GLOBAL || (capture->mode == THREAD_LOCAL && capture->thread == std::this_thread::get_id()))
                capture->invalid = refused = true;
    if (refused) note("%s during the capture of a graph: the capture is lost", call);
    return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

CUresult refuse_in_capture(Stream *stream, const char *call) {
    if (!stream->capture) return CUDA_SUCCESS;
    stream->capture->invalid = true;
    note("%s in a stream that is captured: the capture is lost", call);
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult begin_capture(Stream *stream, int mode) {
    if (stream->legacy) {
        note("the legacy stream cannot be captured");
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture) return CUDA_ERROR_ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->mode = mode;
    capture->thread = std::this_thread::get_id();
    stream->capture = capture;
    std::lock_guard<std::mutex> lock(captures_mutex);
    captures.remove_if([](auto &weak) { return weak.expired(); });
    captures.push_back(capture);
    return CUDA_SUCCESS;
}

CUresult end_capture(Stream *stream, Graph **graph) {
    *graph = nullptr;
    auto capture = stream->capture;
    if (!capture) return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->origin != stream) return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    if (capture->mode != RELAXED && capture->thread != std::this_thread::get_id())
        return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    stream->capture = nullptr;
    {
        std::lock_guard<std::mutex> lock(captures_mutex);
        captures.remove_if([&](auto &weak) { return weak.expired() || weak.lock() == capture; });
    }
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!capture->forked.empty()) {
        note("a stream that joined the capture was not joined again");
        return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    *graph = new Graph(std::move(capture->graph));
    (*graph)->memory->unused.clear();
    return CUDA_SUCCESS;
}

CUresult allocate_in(Stream *stream, size_t bytes, memory::Address *address) {
    auto capture = stream->capture;
    if (!capture) return memory::allocate(bytes, address);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (bytes == 0) {
        *address = 0;
        return CUDA_SUCCESS;
    }
    auto &memory = *capture->graph.memory;
    auto reused = memory.unused.find(rounded(bytes));
    if (reused != memory.unused.end()) {
        *address = reused->second;
        memory.unused.erase(reused);
        memory::resize(*address, bytes);
    } else {
        CUresult result = memory::allocate_for_graph(bytes, address);
        if (result != CUDA_SUCCESS) return result;
        memory.all.insert(*address);
    }
    capture->graph.nodes.push_back({Graph::Node::ALLOCATE, nullptr, *address, bytes});
    return CUDA_SUCCESS;
}

CUresult release_in(Stream *stream, memory::Address address) {
    if (address == 0) return CUDA_SUCCESS;
    if (auto capture = stream->capture) {
        if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        size_t bytes = 0;
        for (auto &node : capture->graph.nodes)
            if (node.address == address) bytes = node.kind == Graph::Node::ALLOCATE ? node.bytes : 0;
        if (bytes == 0) {
            note("memory is freed in the capture of a graph that did not allocate it");
            return CUDA_ERROR_INVALID_VALUE;
        }
        capture->graph.nodes.push_back({Graph::Node::RELEASE, nullptr, address, bytes});
        capture->graph.memory->unused.insert({rounded(bytes), address});
        return CUDA_SUCCESS;
    }
    if (memory::belongs_to_graph(address)) {
        std::lock_guard<std::mutex> lock(live_mutex);
        auto found = held.find(address);
        if (found == held.end()) {
            note("a graph's memory is freed that no launch has allocated");
            return CUDA_ERROR_INVALID_VALUE;
        }
        memory::end_use(address);
        held.erase(found);
        return CUDA_SUCCESS;
    }
    return memory::release(address);
}

CUresult launch(GraphRun &run, Stream *stream) {
    auto left = run.graph.left();
    if (!stream->capture) {
        std::lock_guard<std::mutex> lock(live_mutex);
        for (auto address : left) {
            if (!held.count(address)) continue;
            if (!run.free_on_launch) {
                note("a graph is launched again while an allocation of its last launch is not freed");
                return CUDA_ERROR_INVALID_VALUE;
            }
            memory::end_use(address);
            held.erase(address);
        }
        for (auto address : left) held[address] = run.graph.memory;
    } else if (!left.empty()) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    Graph graph = run.graph;
    return submit(stream, [graph] {
        for (auto &node : graph.nodes) {
            if (node.kind == Graph::Node::ALLOCATE) memory::begin_use(node.address, node.bytes);
            else if (node.kind == Graph::Node::RELEASE) memory::end_use(node.address);
            else node.run();
        }
    });
}

} // namespace emulated
