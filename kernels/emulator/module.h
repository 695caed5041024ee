// Modules and their functions: compiled kernels, which are shared objects here, and candle's own, known by name.
#pragma once

#include "device_types.h"
#include "status.h"
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace emulated {

struct Module;

struct Function {
    Module *module;
    std::string name;
    Entry entry;
    // One call does the whole grid.
    bool whole;
    int allowed_shared_bytes = 48 << 10;
};

struct Module {
    void *library = nullptr; // null: candle's kernels
    std::mutex mutex;
    std::map<std::string, std::unique_ptr<Function>> functions;
    ~Module();
};

CUresult load(const void *image, Module **module);
CUresult find(Module &module, const char *name, Function **function);
// Runs it, or says why a card would not.
CUresult check_launch(const Function &function, Index grid, Index block, unsigned shared_bytes);
void launch(const Function &function, Index grid, Index block, unsigned shared_bytes, void **arguments);

// Candle's kernels, as entries that do a whole grid; null if there is none of that name.
const Entry *candle_kernel(const std::string &name);
void run_whole(const Entry &entry, Index grid, void **arguments);

} // namespace emulated
