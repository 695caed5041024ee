// Threads of a block as fibers. A fiber runs until it must wait for others; then the next ready one goes on, or a
// thread that has not begun yet. A fiber whose thread ends takes the next one, so that a kernel without barriers costs
// a loop. What cannot happen on a card, or hangs it, is reported: threads that end before a barrier others wait at,
// lanes at different operations, writes behind shared memory.
#include "fiber.h"
#include "parallel.h"
#include "report.h"
#include <deque>
#include <memory>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emulated {
namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES = 227 << 10, RED_ZONE = 1024;
constexpr int LANES = 32, GROUPS = 8;

struct Copy {
    void *to;
    const void *from;
    bool valid;
};

struct Fiber : Thread {
    jmp_buf at;
    ucontext_t first;
    void *stack = nullptr;
    unsigned number; // of the thread in its block
    bool copying = false;
    std::deque<std::vector<Copy>> groups; // ended ones
    std::vector<Copy> copies;             // of the group that is open
};

// Lanes that wait for each other in one operation.
struct Group {
    unsigned mask = 0, arrived = 0;
    void (*together)(void *const *) = nullptr;
    void *brought[LANES];
    Fiber *fibers[LANES];
};

struct Warp {
    unsigned exists, ended;
    Group groups[GROUPS];
};

[[noreturn]] void fail_in(const Launch &, const Fiber &, const char *);

// Runs blocks on one thread of the system.
struct Runner {
    const Launch *launch = nullptr;
    Index block;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber *> idle, at_barrier;
    std::deque<Fiber *> ready;
    std::vector<Warp> warps;
    unsigned threads, begun, ended, barriers;
    Fiber *current = nullptr;
    jmp_buf outside;
    unsigned char *shared;

    Runner() { shared = (unsigned char *)aligned_alloc(4096, (SHARED_BYTES + RED_ZONE + 4095) / 4096 * 4096 + 4096); }
    ~Runner() {
        for (auto &fiber : fibers) munmap(fiber->stack, STACK_BYTES);
        free(shared);
    }

    void run(const Launch &of, Index at) {
        launch = &of, block = at;
        threads = of.block.x * of.block.y * of.block.z;
        begun = ended = barriers = 0;
        warps.resize((threads + LANES - 1) / LANES);
        for (unsigned w = 0; w < warps.size(); w++) {
            unsigned lanes = threads - w * LANES;
            warps[w].exists = lanes >= LANES ? ~0u : (1u << lanes) - 1;
            warps[w].ended = 0;
            for (auto &group : warps[w].groups) group.mask = 0;
        }
        memset(shared, 0xff, of.shared_bytes + RED_ZONE);
        if (of.poison_variables) of.poison_variables(of.module);
        if (!_setjmp(outside)) go_on();
        for (size_t i = 0; i < RED_ZONE; i++)
            if (shared[of.shared_bytes + i] != 0xff)
                fail("%s: block (%u, %u, %u) wrote %zu bytes behind its %u bytes of shared memory", of.name, at.x, at.y,
                     at.z, i, of.shared_bytes);
    }

    void begin(Fiber &fiber) {
        unsigned n = begun++;
        Index size = launch->block;
        fiber.number = n;
        fiber.thread = {n % size.x, n / size.x % size.y, n / size.x / size.y};
        fiber.block = block;
        fiber.block_size = size;
        fiber.grid_size = launch->grid;
        fiber.shared = shared;
        fiber.lane = n % LANES;
    }

    void end(Fiber &fiber) {
        // Copies that nobody waited for are not there.
        if (fiber.copying) fiber.groups.clear(), fiber.copies.clear(), fiber.copying = false;
        warps[fiber.number / LANES].ended |= 1u << fiber.lane;
        ended++;
    }

    // What every fiber does until the process ends.
    [[noreturn]] void live(Fiber &fiber) {
        for (;;) {
            launch->entry->call(launch->arguments);
            end(fiber);
            if (begun < threads) {
                begin(fiber);
                continue;
            }
            idle.push_back(&fiber);
            if (!_setjmp(fiber.at)) go_on();
        }
    }

    static void enter(unsigned high, unsigned low) {
        auto *runner = (Runner *)((uintptr_t)high << 32 | low);
        runner->live(*runner->current);
    }

    // To a fiber that can run; there is none to come back to from here but through its `at`.
    [[noreturn]] void go_on() {
        if (!ready.empty()) {
            current = ready.front();
            ready.pop_front();
            _longjmp(current->at, 1);
        }
        if (begun < threads) {
            if (!idle.empty()) {
                current = idle.back();
                idle.pop_back();
                begin(*current);
                _longjmp(current->at, 1);
            }
            fibers.push_back(std::make_unique<Fiber>());
            current = fibers.back().get();
            begin(*current);
            current->stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (current->stack == MAP_FAILED) fail("no memory for the stack of a thread");
            mprotect(current->stack, 4096, PROT_NONE); // an overflow faults
            getcontext(&current->first);
            current->first.uc_stack.ss_sp = current->stack;
            current->first.uc_stack.ss_size = STACK_BYTES;
            current->first.uc_link = nullptr;
            auto self = (uintptr_t)this;
            makecontext(&current->first, (void (*)())enter, 2, (unsigned)(self >> 32), (unsigned)self);
            setcontext(&current->first);
        }
        if (ended == threads) {
            current = nullptr;
            _longjmp(outside, 1);
        }
        stuck();
    }

    void wait() {
        Fiber *self = current;
        if (!_setjmp(self->at)) go_on();
    }

    void block_barrier() {
        at_barrier.push_back(current);
        if (at_barrier.size() < threads) return wait();
        // Every other time in reverse, so that an order that only luck gives is not relied upon.
        if (barriers++ % 2) ready.insert(ready.end(), at_barrier.rbegin(), at_barrier.rend());
        else ready.insert(ready.end(), at_barrier.begin(), at_barrier.end());
        at_barrier.clear();
        wait();
    }

    void warp(unsigned mask, void (*together)(void *const *), void *mine) {
        Fiber &self = *current;
        Warp &warp = warps[self.number / LANES];
        mask &= warp.exists;
        if (!(mask >> self.lane & 1)) fail_in(*launch, self, "a lane that is not in the mask of its warp's operation");
        Group *group = nullptr;
        for (auto &g : warp.groups) if (g.mask == mask) group = &g;
        if (!group) {
            for (auto &g : warp.groups) if (g.mask == 0) group = &g;
            if (!group) fail_in(*launch, self, "too many operations of one warp at once");
            group->mask = mask, group->arrived = 0, group->together = together;
            memset(group->brought, 0, sizeof group->brought);
        }
        if (group->together != together) fail_in(*launch, self, "the lanes of a warp are at different operations");
        group->arrived |= 1u << self.lane;
        group->brought[self.lane] = mine;
        group->fibers[self.lane] = &self;
        if (group->arrived != mask) return wait();
        together(group->brought);
        group->mask = 0;
        for (int i = 0; i < LANES; i++)
            if (mask >> i & 1 && group->fibers[i] != &self) ready.push_back(group->fibers[i]);
    }

    [[noreturn]] void stuck() {
        if (!at_barrier.empty()) {
            unsigned elsewhere = threads - (unsigned)at_barrier.size() - ended;
            fail("%s: block (%u, %u, %u): barrier not reached by all threads: %zu of %u wait at it (the first is %u), "
                 "%u have ended, %u wait for lanes of their warp",
                 launch->name, block.x, block.y, block.z, at_barrier.size(), threads, at_barrier[0]->number, ended,
                 elsewhere);
        }
        for (unsigned w = 0; w < warps.size(); w++)
            for (auto &group : warps[w].groups)
                if (group.mask)
                    fail("%s: block (%u, %u, %u), warp %u: an operation of lanes %08x was reached by %08x alone; %08x "
                         "have ended",
                         launch->name, block.x, block.y, block.z, w, group.mask, group.arrived, warps[w].ended);
        fail("%s: no thread can go on", launch->name);
    }
};

[[noreturn]] void fail_in(const Launch &launch, const Fiber &fiber, const char *what) {
    fail("%s: block (%u, %u, %u), thread (%u, %u, %u): %s", launch.name, fiber.block.x, fiber.block.y, fiber.block.z,
         fiber.thread.x, fiber.thread.y, fiber.thread.z, what);
}

Runner &runner() {
    thread_local Runner runner;
    return runner;
}

void arrive(std::vector<Copy> &copies) {
    for (auto &copy : copies) {
        if (copy.valid) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    copies.clear();
}

} // namespace

void run(const Launch &launch) {
    size_t blocks = (size_t)launch.grid.x * launch.grid.y * launch.grid.z;
    size_t threads = blocks * launch.block.x * launch.block.y * launch.block.z;
    for_each(blocks, threads >= 4096, [&](size_t i) {
        Index grid = launch.grid;
        runner().run(launch, {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)});
    });
}

} // namespace emulated

using namespace emulated;

#define FOR_KERNELS extern "C" __attribute__((visibility("default")))

FOR_KERNELS Thread *darkroom_emulated_thread() { return runner().current; }
FOR_KERNELS void darkroom_emulated_block_barrier() { runner().block_barrier(); }
FOR_KERNELS void darkroom_emulated_warp(unsigned mask, void (*together)(void *const *), void *mine) {
    runner().warp(mask, together, mine);
}
FOR_KERNELS void darkroom_emulated_copy_16(void *shared, const void *global, bool valid) {
    Runner &r = runner();
    Fiber &self = *r.current;
    if ((uintptr_t)shared % 16) fail_in(*r.launch, self, "copy_16_async: the shared address is not aligned to 16 bytes");
    if (valid && (uintptr_t)global % 16) fail_in(*r.launch, self, "copy_16_async: the global address is not aligned to 16 bytes");
    memset(shared, 0xff, 16);
    self.copies.push_back({shared, global, valid});
    self.copying = true;
}
FOR_KERNELS void darkroom_emulated_copies_end_group() {
    Fiber &self = *runner().current;
    self.groups.push_back(std::move(self.copies));
    self.copies.clear();
    self.copying = true;
}
FOR_KERNELS void darkroom_emulated_copies_wait(int groups_left) {
    Fiber &self = *runner().current;
    while (self.groups.size() > (size_t)groups_left) {
        arrive(self.groups.front());
        self.groups.pop_front();
    }
}
FOR_KERNELS void darkroom_emulated_fail(const char *what) {
    Runner &r = runner();
    fail_in(*r.launch, *r.current, what);
}
