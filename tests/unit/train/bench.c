#include "bench.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/file.h"

enum { ARENA_BYTES = 8 << 20 };

struct nb_adapter_options bench_options(void)
{
    return (struct nb_adapter_options){
        .target_linear = true, .rank = 4, .alpha = 8, .activation = NB_DTYPE_F32, .trains = true, .seed = 7};
}

void bench_open(struct bench *bench, const struct nb_adapter_options *options)
{
    struct nb_cpu_options cpu = {.threads = 1};
    memset(bench, 0, sizeof *bench);
    struct nb_session *s = &bench->session;
    bench_ok(nb_checkpoint_open("tests/golden/models/llama", &bench->checkpoint));
    bench_ok(nb_config_defaults(&bench->config));
    bench->config.base_model = strdup("tests/golden/models/llama");
    bench->run.config = &bench->config;
    s->run = &bench->run;
    bench_ok(nb_cpu_device_create(&cpu, &s->device));
    bench_ok(s->device->stream_create(s->device, &s->stream));
    bench_ok(s->device->memory_take(s->device, ARENA_BYTES, &s->slab));
    bench_ok(nb_arena_create("test", s->slab.address, ARENA_BYTES, &s->arena));
    bench_ok(nb_adapter_create(nb_checkpoint_config(bench->checkpoint), options, &s->adapter));
    uint64_t paged = nb_adapter_paged_bytes(s->adapter) + NB_ALIGNMENT; /* a checked build's red zone */
    bench_ok(s->device->host_take(s->device, paged, &s->host.memory));
    bench_ok(nb_arena_create("pinned", (uintptr_t)s->host.memory, paged, &s->pinned));
    bench_ok(nb_adapter_allocate(s->adapter, s->device, s->arena, s->pinned));
    bench_ok(s->device->host_take(s->device, nb_adapter_staging_bytes(s->adapter), &s->staging));
    bench_ok(nb_adapter_initialize(s->adapter, s->stream, s->staging));
}

void bench_close(struct bench *bench)
{
    struct nb_session *s = &bench->session;
    nb_adapter_destroy(&s->adapter);
    nb_arena_destroy(&s->arena);
    nb_arena_destroy(&s->pinned);
    s->device->host_give_back(s->device, s->host.memory);
    s->device->stream_destroy(s->device, &s->stream);
    s->device->host_give_back(s->device, s->staging);
    s->device->memory_give_back(s->device, s->slab);
    nb_device_destroy(&s->device);
    nb_config_destroy(&bench->config);
    nb_checkpoint_close(&bench->checkpoint);
}

void *bench_download(struct bench *bench, nb_dptr from, uint64_t bytes)
{
    struct nb_session *s = &bench->session;
    void *to = malloc(bytes + 1);
    assert_non_null(to);
    bench_ok(s->device->download(s->device, s->stream, to, from, bytes));
    bench_ok(s->device->stream_wait(s->device, s->stream));
    return to;
}

void bench_scramble(struct bench *bench, nb_dptr at, uint64_t count_f32, unsigned seed)
{
    struct nb_session *s = &bench->session;
    float *values = malloc(count_f32 * sizeof *values);
    assert_non_null(values);
    uint32_t x = seed * 2654435761u + 1;
    for (uint64_t i = 0; i < count_f32; i++) {
        x = x * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)x * 0x1p-32f;
    }
    bench_ok(s->device->upload(s->device, s->stream, at, values, count_f32 * sizeof *values));
    bench_ok(s->device->stream_wait(s->device, s->stream));
    free(values);
}

void bench_ok(nb_status status)
{
    if (status != NB_OK)
        fail_msg("%s", nb_status_message());
}

void bench_fails(nb_status status, nb_status code, const char *words)
{
    if (status != code)
        fail_msg("status %d, not %d: %s", (int)status, (int)code, status == NB_OK ? "no error" : nb_status_message());
    if (!strstr(nb_status_message(), words))
        fail_msg("the message does not say \"%s\": %s", words, nb_status_message());
}

char *bench_folder(void)
{
    const char *base = getenv("TMPDIR");
    char *path = nb_format("%s/nibble-test-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    return path;
}

void bench_write(const char *folder, const char *name, const char *text)
{
    char *path = nb_path_join(folder, name);
    bench_ok(nb_file_write(path, text, strlen(text)));
    free(path);
}
