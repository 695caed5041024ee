// Runs a kernel: its blocks on the system's threads, a block's threads as fibers that take turns on one of them.
#pragma once

#include "device_types.h"

namespace emulated {

struct Launch {
    const char *name;
    const Entry *entry;
    void **arguments;
    Index grid, block;
    unsigned shared_bytes;
    // Sets a system thread's own `__shared__` variables of the kernel's module to NaN; may be null.
    void (*poison_variables)(void *module);
    void *module;
};

// Returns when all blocks have run. What a kernel does wrong ends the process, with a message.
void run(const Launch &launch);

} // namespace emulated
