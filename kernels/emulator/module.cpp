// Loads what the emulated NVRTC made, or candle's PTX, of which only the names of kernels are used.
#include "module.h"
#include "fiber.h"
#include "report.h"
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

namespace emulated {
namespace {

// Bytes of a shared object in memory: as far as its section headers, which the linker writes last.
size_t bytes_of_object(const void *image) {
    auto *header = (const ElfW(Ehdr) *)image;
    return header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
}

// Kernels need the emulator's own symbols, however it was loaded.
void export_symbols() {
    static bool once = [] {
        Dl_info self;
        if (dladdr((void *)export_symbols, &self)) dlopen(self.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
        return true;
    }();
    (void)once;
}

// A module's `__shared__` variables are all that is thread-local in it.
struct ThreadLocals {
    ElfW(Addr) base;
    void *data;
    size_t bytes;
};

int find_thread_locals(dl_phdr_info *info, size_t, void *out) {
    auto *locals = (ThreadLocals *)out;
    if (info->dlpi_addr != locals->base) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
            locals->data = info->dlpi_tls_data;
            locals->bytes = info->dlpi_phdr[i].p_memsz;
        }
    return 1;
}

void poison_variables(void *library) {
    thread_local std::map<void *, ThreadLocals> known;
    auto found = known.find(library);
    if (found == known.end()) {
        auto touch = (void *(*)())dlsym(library, "darkroom_thread_locals");
        if (touch) touch(); // so that they exist in this thread
        ThreadLocals locals{((link_map *)library)->l_addr, nullptr, 0};
        dl_iterate_phdr(find_thread_locals, &locals);
        found = known.insert({library, locals}).first;
    }
    if (found->second.data) memset(found->second.data, 0xff, found->second.bytes);
}

} // namespace

Module::~Module() {
    // A shared object stays: threads remember where its variables are.
}

CUresult load(const void *image, Module **module) {
    auto *text = (const char *)image;
    if (memcmp(text, ELFMAG, SELFMAG) != 0) {
        if (!strstr(text, ".version")) {
            note("a module is neither PTX nor compiled by the emulator: was its cache made by a real GPU?");
            return CUDA_ERROR_INVALID_IMAGE;
        }
        *module = new Module;
        return CUDA_SUCCESS;
    }
    export_symbols();
    size_t bytes = bytes_of_object(image);
    int file = memfd_create("kernels", MFD_CLOEXEC);
    if (file < 0 || write(file, image, bytes) != (ssize_t)bytes) return CUDA_ERROR_OUT_OF_MEMORY;
    std::string path = "/proc/self/fd/" + std::to_string(file);
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        note("%s", dlerror());
        close(file);
        return CUDA_ERROR_INVALID_IMAGE;
    }
    // The file stays open: its path names the library, and a path that names another is taken for this one.
    *module = new Module;
    (*module)->library = library;
    return CUDA_SUCCESS;
}

CUresult find(Module &module, const char *name, Function **function) {
    std::lock_guard<std::mutex> lock(module.mutex);
    auto &slot = module.functions[name];
    if (!slot) {
        const Entry *entry = module.library ? (const Entry *)dlsym(module.library, (std::string("darkroom_entry_") + name).c_str())
                                            : candle_kernel(name);
        if (!entry) {
            module.functions.erase(name);
            note("there is no kernel \"%s\" here", name);
            return CUDA_ERROR_NOT_FOUND;
        }
        slot = std::make_unique<Function>(Function{&module, name, *entry, !module.library});
    }
    *function = slot.get();
    return CUDA_SUCCESS;
}

CUresult check_launch(const Function &function, Index grid, Index block, unsigned shared_bytes) {
    const char *name = function.name.c_str();
    size_t threads = (size_t)block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64) {
        note("%s: no block of %u x %u x %u threads", name, block.x, block.y, block.z);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (threads > function.entry.threads) {
        note("%s: %zu threads, but it is compiled for at most %u", name, threads, function.entry.threads);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
        note("%s: no grid of %u x %u x %u blocks", name, grid.x, grid.y, grid.z);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (shared_bytes > (unsigned)function.allowed_shared_bytes) {
        note("%s: %u bytes of shared memory, but %d are allowed", name, shared_bytes, function.allowed_shared_bytes);
        return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

void launch(const Function &function, Index grid, Index block, unsigned shared_bytes, void **arguments) {
    if (function.whole) return run_whole(function.entry, grid, arguments);
    run({function.name.c_str(), &function.entry, arguments, grid, block, shared_bytes, poison_variables,
         function.module->library});
}

} // namespace emulated
