// A pool of threads: whoever has work takes part in it, and idle helpers join.
#include "parallel.h"
#include <atomic>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

namespace emulated {
namespace {

struct Work {
    size_t count;
    const std::function<void(size_t)> &each;
    std::atomic<size_t> next{0};
    size_t helpers = 0; // now inside; guarded by the pool's mutex
    void take_part() {
        for (size_t i; (i = next++) < count;) each(i);
    }
};

struct Pool {
    std::mutex mutex;
    std::condition_variable arrived, left;
    std::list<Work *> open;
    thread_local static bool inside;

    Pool() {
        unsigned processors = std::thread::hardware_concurrency();
        for (unsigned i = 1; i < processors; i++) std::thread([this] { help(); }).detach();
    }
    [[noreturn]] void help() {
        inside = true;
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            arrived.wait(lock, [this] { return !open.empty(); });
            Work *work = open.front();
            work->helpers++;
            lock.unlock();
            work->take_part();
            lock.lock();
            open.remove(work); // nothing is left to take
            if (--work->helpers == 0) left.notify_all();
        }
    }
    void share(Work &work) {
        std::unique_lock<std::mutex> lock(mutex);
        open.push_back(&work);
        lock.unlock();
        arrived.notify_all();
        inside = true;
        work.take_part();
        inside = false;
        lock.lock();
        open.remove(&work);
        left.wait(lock, [&] { return work.helpers == 0; });
    }
};
thread_local bool Pool::inside = false;

} // namespace

void for_each(size_t count, bool heavy, const std::function<void(size_t)> &each) {
    // Never destroyed: its threads run until the process ends.
    static Pool &pool = *new Pool;
    Work work{count, each};
    if (heavy && count > 1 && !Pool::inside) pool.share(work);
    else work.take_part();
}

} // namespace emulated
