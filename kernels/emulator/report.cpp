// Notes and faults on standard error, each one line.
#include "report.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

namespace emulated {

static void say(const char *format, va_list arguments) {
    char text[2048];
    vsnprintf(text, sizeof text, format, arguments);
    fprintf(stderr, "emulated GPU: %s\n", text);
}

void note(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
}

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(format, arguments);
    va_end(arguments);
    abort();
}

} // namespace emulated

// Kernels are compiled with checks of alignment and of arrays' bounds; these are what a failed check calls.
extern "C" {
#pragma GCC visibility push(default)
struct SourceLocation {
    const char *file;
    unsigned line, column;
};
[[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(SourceLocation *at, unsigned long address) {
    emulated::fail("%s:%u: address 0x%lx is not aligned for what is read or written there, or is null", at->file,
                   at->line, address);
}
[[noreturn]] void __ubsan_handle_out_of_bounds_abort(SourceLocation *at, unsigned long index) {
    emulated::fail("%s:%u: index %ld is outside of the array", at->file, at->line, (long)index);
}
#pragma GCC visibility pop
}
