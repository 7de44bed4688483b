/* How much an op has to do: the emulated machine is a few hundred times slower than a processor. */
#include "harness.h"

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
