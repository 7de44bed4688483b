/* How much host memory this process may still take, by the least of the limits that stand around it: what the
 * machine has free, the control groups it lives in, and the limits of the shell it was started from. Linux;
 * elsewhere only free pages count.
 *
 * The functions over text know the formats of /proc and /sys/fs/cgroup and touch no file. Text is a string of any
 * contents. */
#ifndef NB_BASE_HOST_MEMORY_H
#define NB_BASE_HOST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Which limit is the least. */
enum nb_host_limit {
    NB_HOST_LIMIT_NONE,          /* none is known */
    NB_HOST_LIMIT_MACHINE,       /* what the machine has free */
    NB_HOST_LIMIT_CGROUP,        /* a control group's, as containers and batch systems set it */
    NB_HOST_LIMIT_ADDRESS_SPACE, /* RLIMIT_AS */
    NB_HOST_LIMIT_DATA,          /* RLIMIT_DATA */
};

/* Bytes that may be taken beside what is taken already; UINT64_MAX where nothing is known to limit them. Page cache
 * that can go counts as free, swap space does not. *limit (may be NULL) receives which limit that is. Leaves
 * nb_status_message undefined. Never fails: a file that is missing or cannot be understood limits nothing. */
uint64_t nb_host_memory_available(enum nb_host_limit *limit);

/* For messages: "the machine's free memory", "the memory limit of this container or job (its cgroup's memory.max)",
 * ... */
const char *nb_host_limit_name(enum nb_host_limit limit);

/* Bytes that mlock would still lock: RLIMIT_MEMLOCK less what is locked; UINT64_MAX without a limit, or with
 * CAP_IPC_LOCK, which lifts it. It does not bound what CUDA pins: the NVIDIA driver holds pages by its own means,
 * and locks none in the sense of mlock. */
uint64_t nb_host_memory_lockable(void);

/* ---- over text ---- */

/* The value of the line "KEY:   123 kB" of /proc/meminfo or /proc/self/status, in bytes. `key` without the colon.
 * False without such a line, or where it holds anything else; values beyond 64 bits are UINT64_MAX. */
bool nb_host_kilobytes_of(const char *text, const char *key, uint64_t *bytes);

/* The value of the line "KEY 123" of a cgroup's memory.stat; 0 without it. */
uint64_t nb_host_stat_of(const char *text, const char *key);

/* A cgroup's limit or use: a number of bytes, or "max", which is UINT64_MAX. False for anything else. */
bool nb_host_limit_of(const char *text, uint64_t *bytes);

/* Whether the effective capabilities in /proc/self/status hold CAP_IPC_LOCK. */
bool nb_host_may_lock(const char *status);

/* Where the memory controller shows this process's control group: from /proc/self/cgroup and /proc/self/mountinfo
 * the folder of the group (v1: of version 1's memory controller), and in *root_bytes how much of its path is the
 * mount point, above which there is nothing to walk up to. False where there is no such hierarchy, or the path is
 * longer than `size`. */
bool nb_host_cgroup_folder(
    const char *cgroups, const char *mounts, bool v1, char *folder, size_t size, size_t *root_bytes);

#endif
