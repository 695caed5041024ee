// Streams, and their capture as graphs. Work that is given to a stream runs at once, in the calling thread; while the
// stream is captured, it becomes a node of a graph instead.
#pragma once

#include "memory.h"
#include "status.h"
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <thread>
#include <vector>

namespace emulated {

struct Graph {
    struct Node {
        enum Kind { WORK, ALLOCATE, RELEASE } kind;
        std::function<void()> run;
        memory::Address address;
        size_t bytes;
    };
    std::vector<Node> nodes;
    // Memory for its allocations, which outlives it as long as something in it is in use.
    struct Memory {
        std::multimap<size_t, memory::Address> unused; // by capacity, while it is captured
        std::set<memory::Address> all;
        ~Memory();
    };
    std::shared_ptr<Memory> memory = std::make_shared<Memory>();
    // Allocations that the graph itself does not release.
    std::set<memory::Address> left() const;
};

struct GraphRun {
    Graph graph;
    bool free_on_launch;
};

struct Stream;

// Of one or more streams that were forked from `origin`.
struct Capture {
    Graph graph;
    Stream *origin;
    int mode;
    std::thread::id thread;
    bool invalid = false;
    std::set<Stream *> forked; // with work that the origin has not waited for
};

struct Stream {
    std::shared_ptr<Capture> capture;
    bool legacy = false;
};

// What a handle is: NULL and 1 the legacy stream, 2 the calling thread's own.
Stream *stream_of(void *handle);

// Runs `work` or records it.
CUresult submit(Stream *stream, std::function<void()> work);

// For calls that a capture of the calling thread forbids, or a global capture of any: refuses them and spoils it.
CUresult outside_of_captures(const char *call);

CUresult begin_capture(Stream *stream, int mode);
CUresult end_capture(Stream *stream, Graph **graph);
// Spoils the stream's capture.
CUresult refuse_in_capture(Stream *stream, const char *call);

CUresult allocate_in(Stream *stream, size_t bytes, memory::Address *address);
CUresult release_in(Stream *stream, memory::Address address);

CUresult launch(GraphRun &run, Stream *stream);

} // namespace emulated
