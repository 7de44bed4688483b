#include "base/threads.h"

#include <stdlib.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>

void nb_threads_let_waits_sleep(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
        return;
    /* 1,000 turns are 10 to 30 microseconds: the gap between two parallel loops, and less than a wake-up. */
    if (setenv("OMP_WAIT_POLICY", "passive", 1) != 0 || setenv("GOMP_SPINCOUNT", "1000", 1) != 0)
        return;
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length > 0) {
        path[length] = 0;
        execv(path, argv);
    }
}

void nb_threads_set_default(int threads)
{
    if (threads > 0)
        omp_set_num_threads(threads);
}

#else

void nb_threads_let_waits_sleep(char **argv)
{
    (void)argv;
}

void nb_threads_set_default(int threads)
{
    (void)threads;
}

#endif
