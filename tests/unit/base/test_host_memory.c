/* What the system's files say about memory, whatever stands in them; and that the limits around this process count. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/host_memory.h"
#include "base/random.h"

static void kilobytes_are_read(void **state)
{
    static const char meminfo[] = "MemTotal:       24684096 kB\nMemFree:          123 kB\nMemAvailable:   24184452 kB\n"
                                  "MemAvailableToo: 5 kB\nHugePages_Total:       7\nVmLck:\t      64 kB";
    uint64_t bytes = 1;
    (void)state;
    assert_true(nb_host_kilobytes_of(meminfo, "MemAvailable", &bytes) && bytes == 24184452ull * 1024);
    assert_true(nb_host_kilobytes_of(meminfo, "MemTotal", &bytes) && bytes == 24684096ull * 1024);
    assert_true(nb_host_kilobytes_of(meminfo, "VmLck", &bytes) && bytes == 65536); /* without a line's end, behind a tab */
    assert_true(nb_host_kilobytes_of("A: 0 kB\n", "A", &bytes) && bytes == 0);
    assert_true(nb_host_kilobytes_of("A: 18014398509481983 kB\n", "A", &bytes) && bytes == UINT64_MAX - 1023);
    assert_true(nb_host_kilobytes_of("A: 18014398509481984 kB\n", "A", &bytes) && bytes == UINT64_MAX);
    assert_true(nb_host_kilobytes_of("A: 99999999999999999999999 kB\n", "A", &bytes) && bytes == UINT64_MAX);
    bytes = 77;
    static const char *const bad[] = {"", "\n\n", "A:", "A: kB", "A: x kB", "A: -5 kB", "A: 5", "A: 5 MB", "A: 5 kBs",
        "A: 5 kB 6", " A: 5 kB", "BA: 5 kB", "A : 5 kB", "AA: 5 kB", "a: 5 kB", "A\n: 5 kB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(nb_host_kilobytes_of(bad[i], "A", &bytes));
    assert_false(nb_host_kilobytes_of(meminfo, "HugePages_Total", &bytes)); /* a count */
    assert_false(nb_host_kilobytes_of(meminfo, "Mem", &bytes));
    assert_int_equal(bytes, 77);
}

static void statistics_are_read(void **state)
{
    static const char stat[] = "anon 123\ninactive_file 4096\nactive_file 8192\ntotal_inactive_file 1\nnothing\nslab";
    (void)state;
    assert_int_equal(nb_host_stat_of(stat, "inactive_file"), 4096);
    assert_int_equal(nb_host_stat_of(stat, "active_file"), 8192);
    assert_int_equal(nb_host_stat_of(stat, "nothing"), 0);
    assert_int_equal(nb_host_stat_of(stat, "slab"), 0);
    assert_int_equal(nb_host_stat_of("a -1\n", "a"), 0);
    assert_int_equal(nb_host_stat_of("a 1x\n", "a"), 0);
    assert_int_equal(nb_host_stat_of("", "a"), 0);
}

static void limits_are_read(void **state)
{
    uint64_t bytes = 0;
    (void)state;
    assert_true(nb_host_limit_of("max\n", &bytes) && bytes == UINT64_MAX);
    assert_true(nb_host_limit_of("max", &bytes) && bytes == UINT64_MAX);
    assert_true(nb_host_limit_of("0\n", &bytes) && bytes == 0);
    assert_true(nb_host_limit_of("536870912\n", &bytes) && bytes == 512ull << 20);
    /* version 1's unlimited */
    assert_true(nb_host_limit_of("9223372036854771712\n", &bytes) && bytes == 9223372036854771712ull);
    assert_true(nb_host_limit_of("18446744073709551616\n", &bytes) && bytes == UINT64_MAX);
    static const char *const bad[] = {"", "\n", "maximum\n", "ma", "-1\n", " 5", "5 6\n", "5k\n", "0x10\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(nb_host_limit_of(bad[i], &bytes));
}

static void capabilities_are_read(void **state)
{
    (void)state;
    assert_true(nb_host_may_lock("Name:\tx\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n"));
    assert_true(nb_host_may_lock("CapEff:\t0000000000004000"));
    assert_false(nb_host_may_lock("CapEff:\t0000000000000000\nCapPrm:\t000001ffffffffff\n"));
    assert_false(nb_host_may_lock("CapEff:\t000001ffffffbfff\n"));
    static const char *const bad[] = {"", "CapEff:", "CapEff:\n", "CapEff: zz\n", "CapEff: 4000 4000\n"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(nb_host_may_lock(bad[i]));
}

/* ---- where the control group stands ---- */

#define V2 "41 31 0:38 / /sys/fs/cgroup rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1                                                                         \
    "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n"         \
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"

static void expect_folder(const char *cgroups, const char *mounts, bool v1, const char *wanted, size_t wanted_root)
{
    char folder[64];
    size_t root;
    bool found = nb_host_cgroup_folder(cgroups, mounts, v1, folder, sizeof folder, &root);
    assert_int_equal(found, wanted != NULL);
    if (!wanted)
        return;
    assert_string_equal(folder, wanted);
    assert_int_equal(root, wanted_root);
}

static void a_group_is_found(void **state)
{
    (void)state;
    expect_folder("0::/user.slice/a.scope\n", V2, false, "/sys/fs/cgroup/user.slice/a.scope", 14);
    expect_folder("0::/a:b c", V2, false, "/sys/fs/cgroup/a:b c", 14); /* a group's name may hold a colon */
    expect_folder("0::/\n", V2, false, "/sys/fs/cgroup", 14);
    expect_folder("4:memory:/job/7\n0::/\n", V1 V2, true, "/sys/fs/cgroup/memory/job/7", 21);
    expect_folder("4:cpu,memory:/job\n", V1, true, "/sys/fs/cgroup/memory/job", 21);
    /* hierarchies of other controllers, or of names that only look so */
    expect_folder("4:memory2:/job\n1:name=memory:/x\n", V1, true, NULL, 0);
    expect_folder("4:memory:/job\n", V2, true, NULL, 0);
    expect_folder("4:memory:/job\n", V2, false, NULL, 0);
    expect_folder("0::/job\n", V1, false, NULL, 0);
}

static void a_container_shows_a_part(void **state)
{
    (void)state;
    static const char part[] = "41 31 0:38 /docker/abc /cg rw - cgroup2 cgroup rw\n";
    expect_folder("0::/docker/abc\n", part, false, "/cg", 3);
    expect_folder("0::/docker/abc/own\n", part, false, "/cg/own", 3);
    expect_folder("0::/docker/abcd\n", part, false, "/cg", 3); /* outside of what is shown */
    expect_folder("0::/\n", part, false, "/cg", 3);
    expect_folder("0::/../../elsewhere\n", V2, false, "/sys/fs/cgroup", 14);
    static const char blank[] = "41 31 0:38 /a\\040b /c\\040g\\134 rw - cgroup2 cgroup rw\n";
    expect_folder("0::/a b/c\n", blank, false, "/c g\\/c", 5);
}

static void odd_tables_are_no_group(void **state)
{
    (void)state;
    static const char *const groups[] = {
        "", "\n\n", "0", "0:", "0::", "0::\n", "0::relative\n", ":", "::", ":::", "0:x:/a\n"};
    for (size_t i = 0; i < sizeof groups / sizeof *groups; i++)
        expect_folder(groups[i], V2, false, NULL, 0);
    static const char *const mounts[] = {"", "\n", "cgroup2", "41 31 0:38 / /cg rw - cgroup2",
        "41 31 0:38 / /cg rw cgroup2 cgroup rw\n", "41 31 0:38 / cg rw - cgroup2 cgroup rw\n",
        "41 31 0:38  /cg rw - cgroup2 cgroup rw\n", "- - - - - - - - - -\n"};
    for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++)
        expect_folder("0::/a\n", mounts[i], false, NULL, 0);
    char line[200] = "0::/";
    memset(line + 4, 'x', 100);
    expect_folder(line, V2, false, NULL, 0); /* longer than the room for it */
    char mount[200] = "41 31 0:38 / /";
    memset(mount + 14, 'x', 100);
    strcat(mount, " rw - cgroup2 cgroup rw\n");
    expect_folder("0::/\n", mount, false, NULL, 0);
}

/* Texts of a file with some bytes changed: nothing is read outside of them (the sanitizers' builds see that),
 * nothing written outside of the room that is given. */
static void damaged_tables_do_no_harm(void **state)
{
    static const char groups[] = "4:cpu,memory:/job/7\n0::/user/a b\n", mounts[] = V1 V2;
    static const char some[] = "\n :/-\\,x0347";
    (void)state;
    for (uint32_t round = 0; round < 20000; round++) {
        char *g = strdup(groups), *m = strdup(mounts), folder[32 + 1];
        size_t root;
        for (uint32_t k = 0; k < 4; k++) {
            const uint32_t counter[4] = {round, k, 0, 0}, key[2] = {20261122, 0};
            const struct nb_philox r = nb_philox(counter, key);
            g[r.word[0] % strlen(groups)] = some[r.word[1] % sizeof some];
            m[r.word[2] % strlen(mounts)] = some[r.word[3] % sizeof some];
        }
        folder[32] = 'e';
        for (int v1 = 0; v1 < 2; v1++)
            if (nb_host_cgroup_folder(g, m, v1, folder, 32, &root))
                assert_true(root > 0 && root <= strlen(folder) && folder[0] == '/');
        assert_int_equal(folder[32], 'e');
        free(g);
        free(m);
    }
}

/* ---- this process ---- */

static void the_machine_has_something(void **state)
{
    enum nb_host_limit limit;
    uint64_t bytes = nb_host_memory_available(&limit);
    (void)state;
    assert_true(bytes > 1 << 20 && bytes < UINT64_MAX);
    assert_int_not_equal(limit, NB_HOST_LIMIT_NONE);
    assert_non_null(nb_host_limit_name(limit));
    assert_true(nb_host_memory_available(NULL) > 1 << 20);
}

/* In a child, for a limit cannot be raised again. */
static int limited(int resource, rlim_t bytes)
{
    int ended;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct rlimit limit = {bytes, bytes};
        enum nb_host_limit which;
        if (setrlimit(resource, &limit) != 0)
            _exit(99);
        uint64_t available = nb_host_memory_available(&which);
        _exit(available < bytes ? (int)which : 98);
    }
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended));
    return WEXITSTATUS(ended);
}

static void limits_of_the_shell_count(void **state)
{
    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* its shadow is beyond any such limit */
#endif
    assert_int_equal(limited(RLIMIT_AS, 64 << 20), NB_HOST_LIMIT_ADDRESS_SPACE);
    assert_int_equal(limited(RLIMIT_DATA, 32 << 20), NB_HOST_LIMIT_DATA);
}

static void a_locked_limit_counts_without_the_capability(void **state)
{
    struct rlimit limit;
    (void)state;
    assert_int_equal(getrlimit(RLIMIT_MEMLOCK, &limit), 0);
    uint64_t bytes = nb_host_memory_lockable();
    assert_true(bytes == UINT64_MAX || bytes <= limit.rlim_cur);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kilobytes_are_read),
        cmocka_unit_test(statistics_are_read),
        cmocka_unit_test(limits_are_read),
        cmocka_unit_test(capabilities_are_read),
        cmocka_unit_test(a_group_is_found),
        cmocka_unit_test(a_container_shows_a_part),
        cmocka_unit_test(odd_tables_are_no_group),
        cmocka_unit_test(damaged_tables_do_no_harm),
        cmocka_unit_test(the_machine_has_something),
        cmocka_unit_test(limits_of_the_shell_count),
        cmocka_unit_test(a_locked_limit_counts_without_the_capability),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
