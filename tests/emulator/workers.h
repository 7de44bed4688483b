/* The OS threads that run blocks. */
#ifndef NB_TESTS_EMULATOR_WORKERS_H
#define NB_TESTS_EMULATOR_WORKERS_H

#include <cstdint>

/* Calls run(argument) on the calling thread, and on as many others as there are processors and `blocks` for, at
 * once; returns when all have. */
void nb_workers_run(void (*run)(void *argument), void *argument, uint64_t blocks);

#endif
