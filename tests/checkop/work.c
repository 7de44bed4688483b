/* What the harness has to know of an op's args: whether they ask for fp32, and how much there is to do, for the emulated machine is a few
 * hundred times slower than a processor. */
#include "harness.h"

bool checkop_in_f32(enum checkop_op op, const void *args)
{
    switch (op) {
#define WITH_ACTIVATION(name) \
    case CHECKOP_##name:      \
        return ((const struct nb_##name *)args)->activation == NB_DTYPE_F32;
        WITH_ACTIVATION(embedding)
        WITH_ACTIVATION(gather_rows)
        WITH_ACTIVATION(scatter_rows)
        WITH_ACTIVATION(rmsnorm)
        WITH_ACTIVATION(rmsnorm_backward)
        WITH_ACTIVATION(layernorm)
        WITH_ACTIVATION(layernorm_backward)
        WITH_ACTIVATION(rope)
        WITH_ACTIVATION(rope_backward)
        WITH_ACTIVATION(linear)
        WITH_ACTIVATION(linear_backward)
        WITH_ACTIVATION(attention)
        WITH_ACTIVATION(attention_backward)
        WITH_ACTIVATION(kv_append)
        WITH_ACTIVATION(swiglu)
        WITH_ACTIVATION(swiglu_backward)
        WITH_ACTIVATION(geglu)
        WITH_ACTIVATION(geglu_backward)
        WITH_ACTIVATION(add)
        WITH_ACTIVATION(cross_entropy)
        WITH_ACTIVATION(sample)
#undef WITH_ACTIVATION
    default: /* what computes in fp32 whatever the activations are */
        return false;
    }
}

static double work_of_linear(const struct nb_linear *a)
{
    double work = 0;
    for (int i = 0; i < a->parts; i++) {
        const struct nb_linear_part *part = &a->part[i];
        work += (double)a->in * part->out;
        if (!nb_dptr_is_null(part->lora.a))
            work += (double)part->lora.rank * (a->in + part->out);
    }
    return work * a->tokens_max;
}

/* The adapter's gradients beside the products by which they come. */
static double work_of_linear_backward(const struct nb_linear_backward *a)
{
    double work = 0;
    for (int i = 0; i < a->parts; i++) {
        const struct nb_linear_part *part = &a->part[i];
        if (!nb_dptr_is_null(a->dx))
            work += (double)a->in * part->out;
        if (!nb_dptr_is_null(part->lora.a))
            work += 2.0 * part->lora.rank * (a->in + part->out);
    }
    return work * a->tokens_max;
}

/* Each query by every key of the longest sequence, the masked ones too: an upper bound. */
static double work_of_attention(const struct nb_attention *a)
{
    return 2.0 * a->tokens_max * a->longest_max * a->heads * a->head_dim;
}

static double work_of_attention_backward(const struct nb_attention_backward *a)
{
    return 5.0 * a->tokens_max * a->longest_max * a->heads * a->head_dim;
}

double checkop_work(enum checkop_op op, const void *args)
{
    switch (op) {
    case CHECKOP_linear:
        return work_of_linear(args);
    case CHECKOP_linear_backward:
        return work_of_linear_backward(args);
    case CHECKOP_attention:
        return work_of_attention(args);
    case CHECKOP_attention_backward:
        return work_of_attention_backward(args);
    default:
        return 0;
    }
}
