// What the emulator says on standard error: notes on refused calls, and faults of a kernel, which end the process.
#pragma once

namespace emulated {

// A call was refused as on a card; says why, where a card gives only a number.
void note(const char *format, ...) __attribute__((format(printf, 1, 2)));

// What a card may not notice, or notices by an unspecific error.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace emulated
