/* A head in 4 bits computes as one in bf16 does that was made of the same 4 bits: the same bytes, forward and back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "outer.h"

static void a_head_in_4_bits_is_its_own_bf16(void **state)
{
    const struct models *m = *state;
    static const struct {
        enum nb_quant_type type;
        bool nested;
        const char *more;
    } ways[] = {
        {NB_QUANT_NF4, true, "gradient_checkpointing: true\n"},
        {NB_QUANT_NF4, true, "gradient_checkpointing: true\nbf16: true\nsample_packing: true\n"},
        {NB_QUANT_FP4, false, "bnb_4bit_quant_type: fp4\nbnb_4bit_use_double_quant: false\nresident_layers: 0\n"},
        {NB_QUANT_NF4, false, "bnb_4bit_use_double_quant: false\nadapter: lora\nload_in_4bit: true\n"},
        {NB_QUANT_NF4, true, "lora_target_modules: [lm_head, q_proj]\n"},
    };
    for (size_t i = 0; i < 2 * sizeof ways / sizeof *ways; i++) {
        int shape = i % 2 ? TIED : OWN;
        if (shape == TIED && strstr(ways[i / 2].more, "lm_head")) /* no target where it is the embedding */
            continue;
        struct rewriting how = {
            .head = true, .type = ways[i / 2].type, .nested = ways[i / 2].nested, .embedding = NB_SAFETENSORS_BF16};
        char *path = nb_format("%s/reference-%zu", m->folder, i);
        outer_write_again(m->path[shape], path, &how);
        char *more = nb_format("%shead_4bit: true\n", ways[i / 2].more);
        char *reference = outer_yaml(m, path, ways[i / 2].more), *yaml = outer_yaml(m, m->path[shape], more),
             *plain = outer_yaml(m, m->path[shape], ways[i / 2].more);
        struct trained want = outer_train(reference, NULL, 0), got = outer_train(yaml, NULL, 0), late = outer_train(yaml, outer_defer, i + 1),
                       wide = outer_train(plain, NULL, 0);
        outer_assert_same(&want, &got, more);
        outer_assert_same(&want, &late, more);
        assert_true(wide.step[0].loss != got.step[0].loss); /* it changes numbers */
        free(want.masters);
        free(got.masters);
        free(late.masters);
        free(wide.masters);
        free(more);
        free(reference);
        free(yaml);
        free(plain);
        free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_head_in_4_bits_is_its_own_bf16),
    };
    return cmocka_run_group_tests(tests, outer_open_models, outer_close_models);
}
