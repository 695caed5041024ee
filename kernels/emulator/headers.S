// The headers that kernels are compiled with, as they lie here.
#define HEADER(name, file) .globl name; name: .incbin file; .globl name##_end; name##_end: .byte 0
    .section .rodata
    HEADER(device_h, "device.h")
    HEADER(device_types_h, "device_types.h")
    HEADER(half_h, "half.h")
    .section .note.GNU-stack,"",%progbits
