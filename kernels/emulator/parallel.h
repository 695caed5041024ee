// Splits work over the system's processors.
#pragma once

#include <functional>
#include <stddef.h>

namespace emulated {

// Calls `each` for 0..count, from this thread and, if `heavy`, from helpers that live as long as the process. Returns
// when all calls have. Calls from within a call run alone.
void for_each(size_t count, bool heavy, const std::function<void(size_t)> &each);

} // namespace emulated
