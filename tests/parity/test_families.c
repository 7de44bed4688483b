/* Six families' tiny models against the values that transformers, PEFT and bitsandbytes give (tests/golden/README.md), in fp32
 * arithmetic, and against themselves: kept or computed again, packed or apart, on any number of threads, late or at once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "rig.h"
#include "support/golden.h"

enum { LENGTH = 24, ROWS = 2, VOCAB_MAX = 301 };

/* Sums of up to 128 products in fp32, through two layers: the reference's own error is about 1e-6 of a logit. */
static const double logit_tolerance = 5e-5, loss_tolerance = 2e-6, gradient_tolerance = 1e-5;

struct family {
    char model[128], adapter[128], four_bits[128];
    bool straddles; /* has matrices whose rows are not whole blocks, and a reference that misreads them: see rig.c */
    int vocab;
    struct nb_golden *golden;
    struct rig_rows rows;
};

static const struct nb_batch_limits both_rows = {
    .tokens = ROWS * LENGTH, .sequences = ROWS, .longest = LENGTH, .trained_rows = ROWS * LENGTH, .loss_rows = NB_TILE_TOKENS};
static const struct nb_batch_limits one_row = {
    .tokens = LENGTH, .sequences = 1, .longest = LENGTH, .trained_rows = LENGTH, .loss_rows = NB_TILE_TOKENS};

static int open_family(void **state)
{
    struct family *f = calloc(1, sizeof *f);
    const char *name = *state;
    char path[160];
    snprintf(f->model, sizeof f->model, "tests/golden/models/%s", name);
    snprintf(f->adapter, sizeof f->adapter, "tests/golden/models/%s/adapter_start", name);
    snprintf(f->four_bits, sizeof f->four_bits, "tests/golden/models/%s/bnb4", name);
    f->straddles = strcmp(name, "qwen3") == 0;
    snprintf(path, sizeof path, "%s/reference.safetensors", f->model);
    f->golden = nb_golden_open(path);
    f->vocab = (int)nb_golden_tensor(f->golden, "base.logits").shape[2];
    assert_in_range(f->vocab, 1, VOCAB_MAX);
    f->rows = (struct rig_rows){nb_golden_tensor(f->golden, "input_ids").data, nb_golden_tensor(f->golden, "labels").data, ROWS, LENGTH};
    *state = f;
    return 0;
}

static int close_family(void **state)
{
    struct family *f = *state;
    nb_golden_close(&f->golden);
    free(f);
    return 0;
}

/* fp32, NF4 double-quantized, with the adapter, training on both rows in one buffer: what most tests vary. */
static struct rig_options training(const struct family *f)
{
    return (struct rig_options){.model = f->model, .adapter = f->adapter, .format = NB_WEIGHT_NF4, .nested = true,
                                .activation = NB_DTYPE_F32, .keep = NB_KEEP_INPUT, .limits = both_rows, .threads = 2};
}

static struct rig_options forward_only(const struct family *f)
{
    struct rig_options o = training(f);
    o.keep = NB_KEEP_NOTHING;
    return o;
}

/* The weights that the references of quantized models had. */
static void use_reference_weights(const struct family *f, struct rig_options *options)
{
    if (f->straddles) {
        options->model = f->four_bits;
        options->format = NB_WEIGHT_BF16;
        options->reference_scales = true;
    }
}

/* ---- against the reference ---- */

static void all_logits(struct rig *rig, const struct family *f, float *logits)
{
    rig_begin_step(rig);
    rig_set_rows(rig, 0, &f->rows, 0, ROWS);
    rig_check(nb_pass_forward(rig->pass, 0, 0, nb_model_config_of(rig->model)->layers));
    for (int t = 0; t < ROWS * LENGTH; t++)
        rig_logits(rig, 0, t, logits + t * f->vocab);
}

static double run_loss(struct rig *rig, const struct family *f)
{
    rig_begin_step(rig);
    rig_set_rows(rig, 0, &f->rows, 0, ROWS);
    rig_check(nb_pass_forward(rig->pass, 0, 0, nb_model_config_of(rig->model)->layers + 1));
    return rig_loss(rig, rig_trained_tokens(&f->rows, 0, ROWS));
}

static void assert_logits(const struct family *f, const float *got, const float *want)
{
    double worst = 0;
    for (int i = 0; i < ROWS * LENGTH * f->vocab; i++)
        worst = fmax(worst, isfinite(got[i]) ? fabs((double)got[i] - (double)want[i]) : INFINITY);
    if (!(worst <= logit_tolerance))
        fail_msg("logits differ by %g, %g is allowed", worst, logit_tolerance);
}

static void assert_loss(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want)))
        fail_msg("loss %.9g, the reference has %.9g: off by %g of it, %g is allowed", got, want, fabs(got / want - 1), tolerance);
}

static void check_forward(const struct family *f, const struct rig_options *options, const char *logits_name, const char *loss_name)
{
    struct rig rig;
    static float logits[ROWS * LENGTH * VOCAB_MAX];
    rig_open(&rig, options);
    all_logits(&rig, f, logits);
    assert_logits(f, logits, nb_golden_f32(f->golden, "%s", logits_name));
    if (loss_name)
        assert_loss(run_loss(&rig, f), (double)*nb_golden_f32(f->golden, "%s", loss_name), loss_tolerance);
    rig_close(&rig);
}

static void test_base(void **state)
{
    const struct family *f = *state;
    struct rig_options o = forward_only(f);
    o.adapter = NULL;
    o.format = NB_WEIGHT_BF16;
    check_forward(f, &o, "base.logits", "base.loss");
}

static void test_quantized(void **state)
{
    const struct family *f = *state;
    struct rig_options o = forward_only(f);
    o.adapter = NULL;
    use_reference_weights(f, &o);
    check_forward(f, &o, "quantized.logits", "quantized.loss");
}

static void test_adapter(void **state)
{
    const struct family *f = *state;
    struct rig_options o = forward_only(f);
    use_reference_weights(f, &o);
    check_forward(f, &o, "adapter.logits", NULL);
}

/* Loss, then every gradient, each against its own norm. `gradients` are of the summed loss. */
static void assert_gradients(const struct family *f, const struct nb_adapter *adapter, const float *gradients, int trained)
{
    for (int i = 0; i < nb_adapter_trainable_count(adapter); i++) {
        const struct nb_trainable *t = nb_adapter_trainable(adapter, i);
        const float *want = nb_golden_f32(f->golden, "grad.%s", t->name);
        double difference = 0, norm = 0;
        for (uint64_t k = 0; k < t->count; k++) {
            double d = (double)gradients[t->offset + k] / trained - (double)want[k];
            difference += d * d;
            norm += (double)want[k] * (double)want[k];
        }
        if (!(sqrt(difference) <= gradient_tolerance * sqrt(norm)))
            fail_msg("%s: off by %g of its norm %g, %g is allowed", t->name, sqrt(difference / norm), sqrt(norm), gradient_tolerance);
    }
}

static void test_gradients(void **state)
{
    const struct family *f = *state;
    struct rig rig;
    struct rig_options o = training(f);
    use_reference_weights(f, &o);
    rig_open(&rig, &o);
    int trained = rig_trained_tokens(&f->rows, 0, ROWS);
    rig_begin_step(&rig);
    rig_set_rows(&rig, 0, &f->rows, 0, ROWS);
    rig_forward_backward(&rig, 0);
    assert_loss(rig_loss(&rig, trained), (double)nb_golden_f32(f->golden, "train.losses")[0], loss_tolerance);
    float *gradients = rig_gradients(&rig);
    assert_gradients(f, rig.adapter, gradients, trained);
    free(gradients);
    rig_close(&rig);
}

/* The first row's first 8 tokens as a prompt, taken in pieces of `chunk`. */
static void check_greedy(const struct family *f, int chunk)
{
    enum { PROMPT = 8, NEW = 12 };
    const int32_t *want = nb_golden_tensor(f->golden, "base.greedy").data;
    struct rig_options o = forward_only(f);
    struct nb_generator_options greedy = {
        .context_max = PROMPT + NEW, .prompt_chunk = chunk, .sampling = {.temperature = 0, .top_p = 1}};
    struct nb_generator *generator;
    struct rig rig;
    o.adapter = NULL;
    o.format = NB_WEIGHT_BF16;
    o.limits = (struct nb_batch_limits){0};
    rig_open(&rig, &o);
    rig_check(nb_generator_create(rig.model, NULL, &greedy, rig.arena, rig.stream, &generator));
    rig_check(nb_generator_append(generator, f->rows.ids, PROMPT));
    for (int i = 0; i < NEW; i++) {
        int32_t id;
        rig_check(nb_generator_next(generator, &id));
        assert_int_equal(id, want[PROMPT + i]);
    }
    int32_t beyond;
    assert_int_equal(nb_generator_tokens(generator), PROMPT + NEW);
    assert_int_equal(nb_generator_next(generator, &beyond), NB_USAGE);
    assert_int_equal(nb_generator_append(generator, f->rows.ids, 1), NB_USAGE);
    nb_generator_destroy(&generator);
    rig_close(&rig);
}

static void test_greedy(void **state)
{
    check_greedy(*state, 8);
    check_greedy(*state, 3);
    check_greedy(*state, 1);
}

/* ---- against itself ---- */

/* Quantized here, quantized by bitsandbytes, and bitsandbytes' matrices dequantized at load: the same weights, the same bits. */
static void test_bitsandbytes_checkpoint(void **state)
{
    const struct family *f = *state;
    static float want[ROWS * LENGTH * VOCAB_MAX], got[ROWS * LENGTH * VOCAB_MAX];
    struct rig rig;
    struct rig_options o = forward_only(f);
    o.adapter = NULL;
    rig_open(&rig, &o);
    all_logits(&rig, f, want);
    rig_close(&rig);
    o.model = f->four_bits;
    for (int dequantized = 0; dequantized < 2; dequantized++) {
        o.format = dequantized ? NB_WEIGHT_BF16 : NB_WEIGHT_NF4;
        rig_open(&rig, &o);
        all_logits(&rig, f, got);
        rig_close(&rig);
        assert_memory_equal(got, want, (size_t)(ROWS * LENGTH * f->vocab) * sizeof *want);
    }
}

struct result {
    double loss;
    float *gradients;
    uint64_t elements, high_water;
};

/* One step over both rows, cut into micro-batches of `rows_a_batch` rows that go to slots in turn. */
static struct result run_step(const struct family *f, const struct rig_options *options, int rows_a_batch)
{
    struct rig rig;
    struct result result = {0};
    rig_open(&rig, options);
    rig_begin_step(&rig);
    int slots = options->slots ? options->slots : 1, layers = nb_model_config_of(rig.model)->layers;
    for (int row = 0; row < ROWS;) {
        int first = row;
        for (int slot = 0; slot < slots && row < ROWS; slot++, row += rows_a_batch) {
            rig_set_rows(&rig, slot, &f->rows, row, rows_a_batch);
            rig_check(nb_pass_forward(rig.pass, slot, 0, layers + 1));
        }
        for (int slot = (row - first) / rows_a_batch - 1; slot >= 0; slot--) {
            /* in two ranges: a step may stop between any two layers */
            rig_check(nb_pass_backward(rig.pass, slot, layers, layers));
            rig_check(nb_pass_backward(rig.pass, slot, layers - 1, 0));
        }
    }
    if (!options->dry) {
        result.loss = rig_loss(&rig, rig_trained_tokens(&f->rows, 0, ROWS));
        result.gradients = rig_gradients(&rig);
    }
    result.elements = nb_adapter_elements(rig.adapter);
    result.high_water = nb_arena_high_water(rig.arena);
    rig_close(&rig);
    return result;
}

static void free_result(struct result *result)
{
    free(result->gradients);
}

static void assert_same_bytes(const struct family *f, const struct rig_options *a, const struct rig_options *b)
{
    struct result first = run_step(f, a, ROWS), second = run_step(f, b, ROWS);
    assert_memory_equal(&first.loss, &second.loss, sizeof first.loss);
    assert_memory_equal(first.gradients, second.gradients, first.elements * sizeof(float));
    free_result(&first);
    free_result(&second);
}

static void test_keep_everything(void **state)
{
    const struct family *f = *state;
    struct rig_options a = training(f), b = a;
    b.keep = NB_KEEP_EVERYTHING;
    assert_same_bytes(f, &a, &b);
    a.activation = b.activation = NB_DTYPE_BF16;
    assert_same_bytes(f, &a, &b);
}

static void assert_close(const struct family *f, const struct rig_options *a, const struct rig_options *b, int rows_a_batch)
{
    struct result first = run_step(f, a, ROWS), second = run_step(f, b, rows_a_batch);
    double difference = 0, norm = 0;
    for (uint64_t i = 0; i < first.elements; i++) {
        double d = (double)first.gradients[i] - (double)second.gradients[i];
        difference += d * d;
        norm += (double)first.gradients[i] * (double)first.gradients[i];
    }
    assert_true(fabs(first.loss - second.loss) <= 1e-6 * fabs(first.loss));
    assert_true(norm > 0 && sqrt(difference) <= 1e-5 * sqrt(norm));
    free_result(&first);
    free_result(&second);
}

static void test_micro_batches(void **state)
{
    const struct family *f = *state;
    struct rig_options packed = training(f), apart = packed;
    apart.limits = one_row;
    apart.batches = 2;
    assert_close(f, &packed, &apart, 1); /* one after the other in one slot */
    apart.slots = 2;
    assert_close(f, &packed, &apart, 1); /* both in flight */
    apart.limits = both_rows;
    assert_close(f, &packed, &apart, 1); /* limits larger than what comes */
}

static void test_threads(void **state)
{
    const struct family *f = *state;
    struct rig_options one = training(f), more = one;
    one.threads = 1;
    for (int activation = 0; activation < 2; activation++) {
        one.activation = more.activation = activation ? NB_DTYPE_BF16 : NB_DTYPE_F32;
        more.threads = 2;
        assert_same_bytes(f, &one, &more);
        more.threads = 5;
        assert_same_bytes(f, &one, &more);
    }
}

static void test_deferred(void **state)
{
    const struct family *f = *state;
    struct rig_options now = training(f), late = now;
    late.deferred = true;
    for (uint64_t seed = 1; seed <= 2; seed++) {
        late.seed = seed;
        assert_same_bytes(f, &now, &late);
    }
}

static void test_dry_memory(void **state)
{
    const struct family *f = *state;
    for (int keep = NB_KEEP_INPUT; keep <= NB_KEEP_EVERYTHING; keep++)
        for (int activation = 0; activation < 2; activation++) {
            struct rig_options real = training(f), dry = real;
            real.keep = dry.keep = (enum nb_keep)keep;
            real.activation = dry.activation = activation ? NB_DTYPE_BF16 : NB_DTYPE_F32;
            dry.dry = true;
            struct result taken = run_step(f, &real, ROWS), planned = run_step(f, &dry, ROWS);
            assert_int_equal(taken.high_water, planned.high_water);
            free_result(&taken);
            free_result(&planned);
        }
}

/* bf16 keeps 8 bits: a rounding is within 2^-9 = 0.2 %, and a loss averages many. */
static void test_bf16_activations(void **state)
{
    const struct family *f = *state;
    struct rig_options o = training(f);
    o.activation = NB_DTYPE_BF16;
    use_reference_weights(f, &o);
    struct result result = run_step(f, &o, ROWS);
    assert_loss(result.loss, (double)nb_golden_f32(f->golden, "train.losses")[0], 0.015);
    free_result(&result);
}

static void test_bad_batches(void **state)
{
    const struct family *f = *state;
    struct rig rig;
    struct rig_options o = training(f);
    rig_open(&rig, &o);
    int32_t ids[4] = {3, 4, 5, 6}, positions[4] = {0, 1, 2, 3}, starts[2] = {0, 4}, row[1] = {2}, label[1] = {6};
    struct nb_micro_batch good = {.counts = {.tokens = 4, .sequences = 1, .trained_rows = 1, .key_tokens = 4}, .ids = ids,
                                  .positions = positions, .starts = starts, .trained_row = row, .label = label};
    rig_check(nb_pass_set_batch(rig.pass, 0, &good));
    struct nb_micro_batch bad = good;
    bad.counts.tokens = bad.counts.key_tokens = ROWS * LENGTH + 1;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &bad), NB_USAGE);
    bad = good;
    bad.counts.key_tokens = 5;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &bad), NB_USAGE);
    ids[3] = f->vocab;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &good), NB_USAGE);
    ids[3] = 6;
    label[0] = -1;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &good), NB_USAGE);
    label[0] = 6;
    row[0] = 4;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &good), NB_USAGE);
    row[0] = 2;
    positions[0] = 128;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &good), NB_USAGE);
    positions[0] = 0;
    starts[1] = 3;
    assert_int_equal(nb_pass_set_batch(rig.pass, 0, &good), NB_USAGE);
    rig_close(&rig);
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
#define FAMILY_TEST(function) {.name = #function, .test_func = function, .setup_func = open_family, .teardown_func = close_family, \
                               .initial_state = argv[1]}
    const struct CMUnitTest tests[] = {
        FAMILY_TEST(test_base),
        FAMILY_TEST(test_quantized),
        FAMILY_TEST(test_adapter),
        FAMILY_TEST(test_gradients),
        FAMILY_TEST(test_greedy),
        FAMILY_TEST(test_bitsandbytes_checkpoint),
        FAMILY_TEST(test_keep_everything),
        FAMILY_TEST(test_micro_batches),
        FAMILY_TEST(test_threads),
        FAMILY_TEST(test_deferred),
        FAMILY_TEST(test_dry_memory),
        FAMILY_TEST(test_bf16_activations),
        FAMILY_TEST(test_bad_batches),
    };
    return cmocka_run_group_tests_name(argv[1], tests, NULL, NULL);
}
