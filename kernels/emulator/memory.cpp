// Allocations of the emulated card. Around each lies a red zone. Everything that is not set is 0xff bytes: NaN in every
// float type, and an index far outside in every whole one. Freed memory stays so for a while before it is given back.
#include "memory.h"
#include "report.h"
#include <deque>
#include <map>
#include <mutex>
#include <stdlib.h>
#include <string.h>

namespace emulated::memory {
namespace {

constexpr size_t GRAIN = 512, RED_ZONE = 512;
constexpr size_t QUARANTINE_BYTES = 64 << 20;

struct Allocation {
    size_t bytes, capacity;
    bool of_graph, live;
};

struct Card {
    std::mutex mutex;
    std::map<Address, Allocation> allocations;
    std::deque<std::pair<Address, size_t>> quarantine;
    size_t quarantined = 0, used = 0, most = 0, total = 4ull << 30;
    std::map<uintptr_t, size_t> pinned;

    Card() {
        if (const char *bytes = getenv("DARKROOM_EMULATED_VRAM")) total = strtoull(bytes, nullptr, 10);
    }
};

Card &card() {
    // Never destroyed: other threads may still work when the process ends.
    static Card &card = *new Card;
    return card;
}

bool untouched(const unsigned char *at, size_t bytes) {
    return bytes == 0 || (at[0] == 0xff && memcmp(at, at + 1, bytes - 1) == 0);
}

size_t first_touched(const unsigned char *at, size_t bytes) {
    size_t i = 0;
    while (i < bytes && at[i] == 0xff) i++;
    return i;
}

void check(Address address, const Allocation &of) {
    auto *at = (const unsigned char *)address;
    if (!untouched(at - RED_ZONE, RED_ZONE))
        fail("memory overrun: something wrote before the allocation of %zu bytes at 0x%llx", of.bytes,
             (unsigned long long)address);
    size_t behind = of.capacity - of.bytes + RED_ZONE;
    if (!untouched(at + of.bytes, behind))
        fail("memory overrun: something wrote at byte %zu behind the end of the allocation of %zu bytes at 0x%llx",
             first_touched(at + of.bytes, behind), of.bytes, (unsigned long long)address);
}

void give_back(Address address, size_t capacity) {
    auto *at = (const unsigned char *)address;
    if (!untouched(at, capacity))
        fail("memory was written after it was freed: byte %zu of %zu at 0x%llx", first_touched(at, capacity), capacity,
             (unsigned long long)address);
    free((void *)(address - RED_ZONE));
}

CUresult allocate(size_t bytes, Address *address, bool of_graph) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    if (bytes == 0) {
        *address = 0;
        return CUDA_SUCCESS;
    }
    size_t capacity = (bytes + GRAIN - 1) / GRAIN * GRAIN;
    if (bytes > c.total || capacity > c.total - c.used) return CUDA_ERROR_OUT_OF_MEMORY;
    auto *start = (unsigned char *)aligned_alloc(GRAIN, capacity + 2 * RED_ZONE);
    if (!start) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(start, 0xff, capacity + 2 * RED_ZONE);
    *address = (Address)(start + RED_ZONE);
    c.allocations[*address] = {bytes, capacity, of_graph, !of_graph};
    c.used += capacity;
    if (c.used > c.most) c.most = c.used;
    return CUDA_SUCCESS;
}

} // namespace

size_t total() { return card().total; }
size_t used() {
    std::lock_guard<std::mutex> lock(card().mutex);
    return card().used;
}
size_t most_used() {
    std::lock_guard<std::mutex> lock(card().mutex);
    return card().most;
}
void forget_most() {
    std::lock_guard<std::mutex> lock(card().mutex);
    card().most = card().used;
}

CUresult allocate(size_t bytes, Address *address) { return allocate(bytes, address, false); }
CUresult allocate_for_graph(size_t bytes, Address *address) { return allocate(bytes, address, true); }

CUresult release(Address address) {
    if (address == 0) return CUDA_SUCCESS;
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    if (found == c.allocations.end()) {
        note("0x%llx is freed and is no allocation, or was freed before", (unsigned long long)address);
        return CUDA_ERROR_INVALID_VALUE;
    }
    check(address, found->second);
    size_t capacity = found->second.capacity;
    memset((void *)address, 0xff, capacity);
    c.allocations.erase(found);
    c.used -= capacity;
    c.quarantine.push_back({address, capacity});
    c.quarantined += capacity;
    while (c.quarantined > QUARANTINE_BYTES) {
        auto [oldest, bytes] = c.quarantine.front();
        c.quarantine.pop_front();
        c.quarantined -= bytes;
        give_back(oldest, bytes);
    }
    return CUDA_SUCCESS;
}

void resize(Address address, size_t bytes) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    if (found != c.allocations.end()) found->second.bytes = bytes;
}

void begin_use(Address address, size_t bytes) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    if (found == c.allocations.end()) return;
    found->second.bytes = bytes;
    found->second.live = true;
    memset((void *)address, 0xff, found->second.capacity);
}

void end_use(Address address) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    if (found == c.allocations.end()) return;
    check(address, found->second);
    found->second.live = false;
    memset((void *)address, 0xff, found->second.capacity);
}

bool belongs_to_graph(Address address) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    return found != c.allocations.end() && found->second.of_graph;
}

bool in_use(Address address) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto found = c.allocations.find(address);
    return found != c.allocations.end() && found->second.live;
}

bool contains(Address address, size_t bytes) {
    if (bytes == 0) return true;
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto next = c.allocations.upper_bound(address);
    if (next == c.allocations.begin()) return false;
    auto &[start, allocation] = *--next;
    return address - start <= allocation.bytes && bytes <= allocation.bytes - (address - start);
}

void require(Address address, size_t bytes, const char *what) {
    if (!contains(address, bytes))
        fail("%s: %zu bytes at 0x%llx are not within an allocation of the card", what, bytes,
             (unsigned long long)address);
}

void check() {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    for (auto &[address, allocation] : c.allocations) check(address, allocation);
}

void *allocate_host(size_t bytes) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    void *address = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
    if (address) c.pinned[(uintptr_t)address] = bytes;
    return address;
}

bool release_host(void *address) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    if (!c.pinned.erase((uintptr_t)address)) return false;
    free(address);
    return true;
}

bool is_pinned(const void *address, size_t bytes) {
    Card &c = card();
    std::lock_guard<std::mutex> lock(c.mutex);
    auto next = c.pinned.upper_bound((uintptr_t)address);
    if (next == c.pinned.begin()) return false;
    auto &[start, size] = *--next;
    return (uintptr_t)address - start <= size && bytes <= size - ((uintptr_t)address - start);
}

} // namespace emulated::memory
