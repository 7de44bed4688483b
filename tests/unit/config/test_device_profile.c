/* Device profiles: those that are shipped, what a file may say, and what is refused with its line. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "config/device_profile.h"

#define WHOLE_FILE                                                                                          \
    "name: NVIDIA GeForce RTX 4090\nmemory_mib: 24564\ncompute_capability: \"8.9\"\nmultiprocessors: 128\n" \
    "bf16_tflops: 165.2\nmemory_gb_per_s: 1008\nlink_gb_per_s: 31.5\n"

static nb_status parse(const char *text, struct nb_device_profile *profile)
{
    return nb_device_profile_parse(text, strlen(text), "gpu.yml", profile);
}

static void a_file_becomes_a_profile(void **state)
{
    (void)state;
    struct nb_device_profile p;
    if (parse(WHOLE_FILE, &p) != NB_OK)
        fail_msg("%s", nb_status_message());
    assert_string_equal(p.name, "NVIDIA GeForce RTX 4090");
    assert_int_equal(p.kind, NB_DEVICE_CUDA);
    assert_int_equal(p.memory_bytes, 24564ull << 20);
    assert_int_equal(p.reserved_bytes, (300ull << 20) + (24564ull << 20) / 128);
    assert_int_equal(p.driver_bytes, (4ull * 128 + 256) << 20);
    assert_int_equal(p.compute_capability, 89);
    assert_int_equal(p.multiprocessors, 128);
    assert_true(p.bf16);
    assert_true(p.bf16_tflops == 165.2f && p.memory_gb_per_s == 1008.0f && p.link_gb_per_s == 31.5f);
    assert_int_equal(p.cublaslt_version, NB_DEVICE_PROFILE_CUBLASLT);
    assert_null(p.products);

    assert_int_equal(parse(WHOLE_FILE "cublaslt_version: 0\n", &p), NB_OK);
    assert_int_equal(p.cublaslt_version, 0);
    assert_int_equal(parse(WHOLE_FILE "reserved_mib: 484\ndriver_mib: 0\n", &p), NB_OK);
    assert_true(p.reserved_bytes == 484ull << 20 && p.driver_bytes == 0);
    assert_int_equal(parse("{name: g, memory_mib: 1000, compute_capability: 12.0, multiprocessors: 1, bf16_tflops: 1e1,"
                           " memory_gb_per_s: 1, link_gb_per_s: 1}",
                         &p),
        NB_OK);
    assert_int_equal(p.compute_capability, 120);
}

static void a_wrong_file_is_refused_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "gpu.yml: lines of \"key: value\" are expected"},
        {"- 1\n", "gpu.yml:1:1: lines of"},
        {"name: [a\n", "gpu.yml:2:1: not YAML"},
        {"name: a\nmemory: 3\n", "gpu.yml:2:1: unknown key \"memory\""},
        {"name: a\nmemory_mb: 3\n", "gpu.yml:2:1: unknown key \"memory_mb\"; did you mean \"memory_mib\"?"},
        {"name: a\nname: b\n", "gpu.yml:2:1: duplicate key"},
        {"name:\n", "name: one value is expected"},
        {"name: \"\"\n", "name: 1 to 63 bytes are expected"},
        {"name: 0123456789012345678901234567890123456789012345678901234567890123\n",
            "name: 1 to 63 bytes are expected"},
        {"memory_mib: 24GB\n", "gpu.yml:1:13: memory_mib: \"24GB\" is not a whole number"},
        {"memory_mib: 24564.5\n", "is not a whole number"},
        {"driver_mib: -1\n", "driver_mib: -1 is out of range: it must be at least 0"},
        {"reserved_mib: few\n", "reserved_mib: \"few\" is not a whole number"},
        {"memory_mib: 63\n", "memory_mib: 63 is out of range: it must be at least 64 and at most 16777216"},
        {"memory_mib: 99999999999999999999\n", "memory_mib"},
        {"compute_capability: 89\n", "compute_capability: \"89\" is not of the form 8.9"},
        {"compute_capability: 8.90\n", "is not of the form 8.9"},
        {"compute_capability: 7.5\n", "7.5 is out of range: it must be at least 8"},
        {"multiprocessors: -1\n", "multiprocessors: -1 is out of range"},
        {"bf16_tflops: nan\n", "\"nan\" is not a number"},
        {"bf16_tflops: 0\n", "out of range"},
        {"bf16_tflops: [1]\n", "bf16_tflops: one value is expected"},
        {"name: a\n", "gpu.yml: the key \"memory_mib\" is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct nb_device_profile p = {.multiprocessors = 7}, untouched = p;
        assert_int_equal(parse(cases[i].text, &p), NB_USAGE);
        if (!strstr(nb_status_message(), cases[i].message))
            fail_msg("\"%s\" does not hold \"%s\"", nb_status_message(), cases[i].message);
        assert_memory_equal(&p, &untouched, sizeof p);
    }
    /* Each key but the last can be missing, and is missed. */
    const char *line = WHOLE_FILE;
    for (int missing = 0; missing < 7; missing++) {
        const char *end = strchr(line, '\n') + 1;
        char *text = nb_format("%.*s%s", (int)(line - WHOLE_FILE), WHOLE_FILE, end);
        struct nb_device_profile p;
        assert_int_equal(parse(text, &p), NB_USAGE);
        assert_non_null(strstr(nb_status_message(), "is missing"));
        free(text);
        line = end;
    }
}

/* What is shipped: read by path, and each number within what such cards have, so that a slipped digit shows. */
static void every_shipped_file_is_read(void **state)
{
    (void)state;
    int files = 0;
    DIR *folder = opendir("configs/devices");
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        const char *dot = strrchr(entry->d_name, '.');
        if (!dot || strcmp(dot, ".yml") != 0)
            continue;
        char *path = nb_format("configs/devices/%s", entry->d_name);
        struct nb_device_profile p;
        if (nb_device_profile_read(path, &p) != NB_OK)
            fail_msg("%s", nb_status_message());
        assert_int_equal(strncmp(p.name, "NVIDIA ", 7), 0);
        assert_true(p.compute_capability == 80 || p.compute_capability == 86 || p.compute_capability == 89 ||
                    p.compute_capability == 90 || p.compute_capability == 120);
        assert_in_range(p.memory_bytes >> 20, 8000, 256 << 10);
        assert_in_range(p.multiprocessors, 20, 200);
        assert_in_range((p.reserved_bytes + p.driver_bytes) >> 20, 500, 2500);
        /* 0.8 to 8 TFLOP/s a multiprocessor, PCIe 4.0 x8 to 5.0 x16 */
        assert_true(
            p.bf16_tflops >= 0.8f * (float)p.multiprocessors && p.bf16_tflops <= 8.0f * (float)p.multiprocessors);
        assert_true(p.memory_gb_per_s >= 200 && p.memory_gb_per_s <= 8000);
        assert_true(p.link_gb_per_s >= 15 && p.link_gb_per_s <= 64);
        free(path);
        files++;
    }
    closedir(folder);
    assert_true(files >= 20);
}

/* A folder tree like an installed one, with this very program in it. */
static void names_are_looked_up_above_the_program(void **state)
{
    (void)state;
    struct nb_device_profile p;
    char folder[] = "/tmp/nibble-profile-XXXXXX", program[4096];
    assert_non_null(mkdtemp(folder));
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    assert_true(length > 0);
    program[length] = 0;
    static const char *const places[] = {"share/nibble/devices", "configs/devices"};
    for (size_t i = 0; i < 2; i++) {
        char *devices = nb_format("%s/%zu/%s", folder, i, places[i]), *bin = nb_format("%s/%zu/bin", folder, i);
        char *file = nb_path_join(devices, "toy.yml"), *copy = nb_path_join(bin, "program");
        assert_int_equal(nb_make_folder(devices), NB_OK);
        assert_int_equal(nb_make_folder(bin), NB_OK);
        assert_int_equal(nb_file_write(file, WHOLE_FILE, sizeof WHOLE_FILE - 1), NB_OK);
        char *command =
            nb_format("cp '%s' '%s' && '%s' toy && ! '%s' tox 2>'%s/err' && grep -q 'did you mean toy?' '%s/err'",
                program, copy, copy, copy, folder, folder);
        assert_int_equal(system(command), 0);
        free(command);
        free(devices);
        free(bin);
        free(file);
        free(copy);
    }
    assert_int_equal(nb_remove_folder(folder), NB_OK);

    assert_int_equal(nb_device_profile_read("no-such-device-anywhere", &p), NB_USAGE);
    assert_non_null(strstr(nb_status_message(), "devices/no-such-device-anywhere: there is no such file"));
    assert_int_equal(nb_device_profile_read("./no-such.yml", &p), NB_IO);
    assert_int_equal(nb_device_profile_read("tests", &p), NB_USAGE);
}

int main(int argc, char **argv)
{
    if (argc == 2) { /* names_are_looked_up_above_the_program calls itself so */
        struct nb_device_profile profile;
        nb_status status = nb_device_profile_read(argv[1], &profile);
        if (status != NB_OK)
            fprintf(stderr, "%s\n", nb_status_message());
        return status == NB_OK ? 0 : 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_becomes_a_profile),
        cmocka_unit_test(a_wrong_file_is_refused_with_its_line),
        cmocka_unit_test(every_shipped_file_is_read),
        cmocka_unit_test(names_are_looked_up_above_the_program),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
