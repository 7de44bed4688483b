#include <string.h>

#include "device/cpu/element.h"

NB_CPU_NO_SCRATCH(kv_append)

/* `count` rows of `width` elements to the cache from row `begin` on. */
static void append(const struct nb_kv_append *a, nb_dptr from, int stride, nb_dptr cache, int64_t begin, int count)
{
    uint64_t element = nb_dtype_bytes(a->activation), bytes = (uint64_t)a->width * element;
    for (int t = 0; t < count; t++)
        memcpy((char *)nb_cpu_pointer(cache) + (uint64_t)(begin + t) * bytes,
               (const char *)nb_cpu_pointer(from) + (uint64_t)t * (uint64_t)stride * element, bytes);
}

void nb_cpu_run_kv_append(struct nb_cpu *cpu, const struct nb_kv_append *a)
{
    (void)cpu; /* one thread: a prompt is appended once, an answer a row at a time */
    int64_t begin = nb_cpu_slot(a->slot)->cache_tokens, room = a->capacity - begin;
    int tokens = nb_cpu_tokens(a->slot, a->tokens_max);
    int count = room < tokens ? (int)(room < 0 ? 0 : room) : tokens;
    append(a, a->k, a->k_stride, a->k_cache, begin, count);
    append(a, a->v, a->v_stride, a->v_cache, begin, count);
}
