// A plain function marked RM_CLONES is compiled once per vector width, with everything it calls inlined; the
// loader picks the widest version the machine has. Not under sanitizers, whose runtime starts after the
// picking.
#pragma once

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define RM_CLONES __attribute__((flatten, target_clones("arch=x86-64-v3", "default")))
#else
#define RM_CLONES
#endif
