/* The CPU device: its table of ops and its profile. */
#include "device/cpu/cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "device/cpu/product.h"

/* The scratch member of the args that have one. */
#define SCRATCH_OF(type, args) (((const struct nb_##type *)(const void *)(args))->scratch.bytes)
#define SCRATCH_BYTES(args) \
    _Generic((args),                                                                \
        const struct nb_linear *: SCRATCH_OF(linear, args),                         \
        const struct nb_linear_backward *: SCRATCH_OF(linear_backward, args),       \
        const struct nb_attention *: SCRATCH_OF(attention, args),                   \
        const struct nb_attention_backward *: SCRATCH_OF(attention_backward, args), \
        const struct nb_quantize *: SCRATCH_OF(quantize, args),                     \
        const struct nb_sample *: SCRATCH_OF(sample, args),                         \
        default: UINT64_MAX)

static nb_status check_scratch(const char *op, uint64_t given, uint64_t needed)
{
    if (given >= needed)
        return NB_OK;
    return nb_fail(NB_UNSUPPORTED, "%s: %llu bytes of scratch were given, %llu are needed; ask %s_scratch_bytes", op,
        (unsigned long long)given, (unsigned long long)needed, op);
}

#define DEFINE_OP(name)                                                                                             \
    static void run_##name(struct nb_cpu *cpu, const void *args)                                                    \
    {                                                                                                               \
        nb_cpu_run_##name(cpu, args);                                                                               \
    }                                                                                                               \
    static nb_status enter_##name(struct nb_device *device, struct nb_stream *stream, const struct nb_##name *args) \
    {                                                                                                               \
        NB_TRY(nb_check_##name(args));                                                                              \
        NB_TRY(check_scratch(#name, SCRATCH_BYTES(args), nb_cpu_##name##_scratch_bytes(&device->profile, args)));   \
        return nb_cpu_enqueue((struct nb_cpu *)device, stream, run_##name, args, sizeof *args);                     \
    }
NB_OPS(DEFINE_OP)

/* The processor's name as the kernel gives it, "CPU" where it gives none. */
static void read_name(char *name, size_t bytes)
{
    snprintf(name, bytes, "CPU");
    FILE *file = fopen("/proc/cpuinfo", "re");
    if (!file)
        return;
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char *value = strncmp(line, "model name", 10) == 0 ? strchr(line, ':') : NULL;
        if (value) {
            value += strspn(value, ": \t");
            value[strcspn(value, "\n")] = 0;
            if (*value)
                snprintf(name, bytes, "%.*s", (int)bytes - 1, value);
            break;
        }
    }
    fclose(file);
}

static int thread_count(const struct nb_cpu_options *options)
{
#ifdef _OPENMP
    return options->threads > 0 ? options->threads : omp_get_num_procs();
#else
    (void)options;
    return 1;
#endif
}

void nb_cpu_profile(const struct nb_cpu_options *options, struct nb_device_profile *profile)
{
    long pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
    *profile = (struct nb_device_profile){
        .kind = NB_DEVICE_CPU,
        .memory_bytes = pages > 0 && page_bytes > 0 ? (uint64_t)pages * (uint64_t)page_bytes : 0,
        .multiprocessors = thread_count(options),
        .bf16 = nb_products_have_bf16(),
    };
    read_name(profile->name, sizeof profile->name);
}

static void destroy(struct nb_device *device)
{
    struct nb_cpu *cpu = (struct nb_cpu *)device;
    nb_cpu_queue_destroy(cpu);
    nb_products_destroy(&cpu->products);
    free(cpu);
}

nb_status nb_cpu_device_create(const struct nb_cpu_options *options, struct nb_device **device)
{
    struct nb_cpu *cpu = calloc(1, sizeof *cpu);
    if (!cpu)
        return nb_fail(NB_MEMORY, "no memory for the CPU device");
    nb_cpu_profile(options, &cpu->base.profile);
    cpu->threads = cpu->base.profile.multiprocessors;
    cpu->base.destroy = destroy;
    nb_adamw8_coders_init(&cpu->adamw8);
#define ENTER_OP(name)             \
    cpu->base.name = enter_##name; \
    cpu->base.name##_scratch_bytes = nb_cpu_##name##_scratch_bytes;
    NB_OPS(ENTER_OP)
    nb_status status = nb_cpu_queue_install(cpu, options);
    if (status == NB_OK)
        status = nb_products_create(cpu->threads, &cpu->products);
    if (status != NB_OK) {
        destroy(&cpu->base);
        return status;
    }
    *device = &cpu->base;
    return NB_OK;
}
