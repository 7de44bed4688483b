/* How the program's OpenMP threads behave. */
#ifndef NB_BASE_THREADS_H
#define NB_BASE_THREADS_H

/* Makes threads that wait for others spin briefly and then sleep. The run time reads its wait policy from the environment before main
 * begins, so this starts the program again (same process, same arguments) with the policy set; it returns when the policy stands,
 * also one the user has set, or when that cannot be done. Call it first in main.
 * On two cores shared with other work, spinning for milliseconds made training 5 times slower: a waiting thread held the core that the
 * thread it waited for needed. Not spinning at all costs a wake-up of 30 microseconds a parallel loop, 4 % of a small model's step. */
void nb_threads_let_waits_sleep(char **argv);

/* Threads of parallel loops that are not told a number; 0 leaves the run time's own choice, all processors. */
void nb_threads_set_default(int threads);

#endif
