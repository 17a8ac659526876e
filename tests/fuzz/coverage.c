/* Loaded before all else by ci/fuzz.sh: takes the calls that gcc puts into each block (-fsanitize-coverage=trace-pc) and counts them in the
 * shape that libFuzzer reads. Addresses are hashed relative to this library, for the loader moves all of them together. */
#include <stdint.h>

#define CELLS 65536
static uint8_t counters[CELLS];

typedef void (*init_fn)(uint8_t *begin, uint8_t *end);

void coverage_begin(init_fn init) { init(counters, counters + CELLS); }

void __sanitizer_cov_trace_pc(void)
{
    uintptr_t at = (uintptr_t)__builtin_return_address(0) - (uintptr_t)counters;
    uint8_t *cell = &counters[(at ^ at >> 16) % CELLS];
    if (*cell != 255)
        ++*cell;
}
