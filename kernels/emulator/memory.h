// The emulated card's memory: plain memory of the process, with room around each allocation that nobody may write to.
#pragma once

#include "status.h"
#include <stddef.h>
#include <stdint.h>

namespace emulated::memory {

using Address = uint64_t;

// Bytes of the whole card: `DARKROOM_EMULATED_VRAM`, or 4 GiB.
size_t total();
size_t used();
size_t most_used();
// `most_used` counts anew from here.
void forget_most();

// New memory holds NaN of every float type. CUDA_ERROR_OUT_OF_MEMORY beyond `total()`.
CUresult allocate(size_t bytes, Address *address);
// What is freed is NaN for a while, so that late readers see it and late writers are found.
CUresult release(Address address);

// Memory of a graph: allocated with it, but there for users only between its allocation and its release when run.
CUresult allocate_for_graph(size_t bytes, Address *address);
// The next use, as recorded in a graph, is for `bytes`.
void resize(Address address, size_t bytes);
// From now on it is used for `bytes`; it holds NaN.
void begin_use(Address address, size_t bytes);
void end_use(Address address);
bool belongs_to_graph(Address address);
bool in_use(Address address);

// Whether all of these bytes are in one allocation.
bool contains(Address address, size_t bytes);
// Ends the process if not; `what` says who reads or writes there.
void require(Address address, size_t bytes, const char *what);

// Ends the process if a byte around any allocation was written to.
void check();

// Host memory that the card may read and write at any time.
void *allocate_host(size_t bytes);
bool release_host(void *address);
bool is_pinned(const void *address, size_t bytes);

} // namespace emulated::memory
