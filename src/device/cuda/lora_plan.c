#include "device/cuda/lora_plan.h"

#include "device/cuda/plan.h"

enum {
    BLOCKS = 256,            /* in flight at once on the largest chips: what a cut aims at */
    SPLIT_LEAST = 512,       /* of `in`: a shorter sum is not worth the partial sums' traffic */
    RANGE_LEAST = 128, RANGE_MOST = 512,
    RANGE_BLOCKS = 192,
};

/* Partial sums of u and db that exist at a time: they shall stay in the L2 cache of the chips that have a large one. */
static const uint64_t group_bytes = 32 << 20;

static int round_up(int value, int to)
{
    return (int)(((int64_t)value + to - 1) / to * to);
}

static int divide_up(int64_t value, int64_t by)
{
    return (int)((value + by - 1) / by);
}

int nb_lora_site_tokens(int site_tokens, int tokens_max)
{
    return site_tokens > tokens_max ? site_tokens : tokens_max;
}

static int rank_of(const struct nb_linear_part *part)
{
    return nb_dptr_is_null(part->lora.a) ? 0 : part->lora.rank;
}

/* The least tile of the kernels that cuts `columns` into as few pieces as the largest would. */
static int stack_tile(int columns)
{
    static const int tile[] = {16, 32, 48, 64, 96, 128};
    int pieces = divide_up(columns, 128), each = divide_up(columns, pieces ? pieces : 1), i = 0;
    while (tile[i] < each)
        i++;
    return tile[i];
}

void nb_lora_stack_of(const struct nb_linear_part *part, int parts, struct nb_lora_stack *stack)
{
    int all = 0, widest = 0;
    *stack = (struct nb_lora_stack){.dropout = false};
    for (int p = 0; p < parts; p++) {
        int rank = round_up(rank_of(&part[p]), 8);
        stack->dropout = stack->dropout || (rank > 0 && part[p].lora.dropout > 0);
        all += rank;
        widest = rank > widest ? rank : widest;
    }
    stack->tile = stack_tile(stack->dropout ? widest : all);
    for (int p = 0; p < NB_LINEAR_PARTS; p++) {
        int rank = p < parts ? rank_of(&part[p]) : 0;
        stack->begin[p + 1] = stack->begin[p] + round_up(rank, stack->dropout ? stack->tile : 8);
    }
    stack->tiles = divide_up(stack->begin[NB_LINEAR_PARTS], stack->tile);
}

static int down_splits(int in, int64_t tokens, int column_tiles, int *split_columns)
{
    int64_t blocks = (tokens + NB_LORA_ROWS - 1) / NB_LORA_ROWS * column_tiles, wanted = BLOCKS / blocks;
    int most = divide_up(in, SPLIT_LEAST), splits = wanted < 1 ? 1 : wanted < most ? (int)wanted : most;
    *split_columns = round_up(divide_up(in, splits), NB_LORA_DEPTH);
    return divide_up(in, *split_columns);
}

void nb_lora_down_plan_of(const struct nb_linear *args, struct nb_lora_down_plan *plan)
{
    *plan = (struct nb_lora_down_plan){.splits = 0};
    nb_lora_stack_of(args->part, args->parts, &plan->stack);
    if (plan->stack.tiles == 0)
        return;
    int site = nb_lora_site_tokens(args->site_tokens, args->tokens_max);
    plan->splits = down_splits(args->in, site, plan->stack.tiles, &plan->split_columns);
    uint64_t splits = (uint64_t)plan->splits, tokens = (uint64_t)args->tokens_max, rows = splits > 1 ? splits * tokens : 0;
    if (args->site_tokens < args->tokens_max) {
        /* What is asked for the most tokens also serves fewer, which may take more splits: room for the most that any
         * number takes. */
        int columns;
        splits = (uint64_t)down_splits(args->in, 1, plan->stack.tiles, &columns);
        uint64_t most = (uint64_t)divide_up(BLOCKS * NB_LORA_ROWS, plan->stack.tiles);
        rows = splits == 1 ? 0 : splits * tokens < most ? splits * tokens : most;
    }
    plan->partial_bytes = rows * (uint64_t)(plan->stack.tile * plan->stack.tiles) * sizeof(float);
}

uint64_t nb_cuda_lora_partial_bytes(const struct nb_device_profile *profile, const struct nb_linear *args)
{
    (void)profile;
    struct nb_lora_down_plan down;
    nb_lora_down_plan_of(args, &down);
    /* What few tokens need is asked of any number, so that more never ask for less. */
    struct nb_linear few = *args;
    few.tokens_max = args->tokens_max < NB_CUDA_FEW_TOKENS ? args->tokens_max : NB_CUDA_FEW_TOKENS;
    few.site_tokens = args->site_tokens < NB_CUDA_FEW_TOKENS ? args->site_tokens : NB_CUDA_FEW_TOKENS;
    struct nb_linear_few_plan plan;
    nb_linear_few_plan_of(&few, &plan);
    return nb_aligned(down.partial_bytes > plan.partial_bytes ? down.partial_bytes : plan.partial_bytes);
}

/* ---- backward ---- */

/* Blocks a tile of tokens with ranges of so many outputs; and the bytes of a tile's partial sums. */
static int backward_cut(
    const struct nb_linear_backward *args, struct nb_lora_backward_plan *plan, int range, uint64_t *tile_bytes)
{
    plan->range = range;
    plan->blocks = 0;
    *tile_bytes = 0;
    for (int p = 0; p < args->parts; p++) {
        if (plan->width[p] == 0)
            continue;
        uint64_t row = (uint64_t)plan->width[p] * sizeof(float);
        plan->ranges[p] = divide_up(args->part[p].out, range);
        plan->blocks += plan->ranges[p] * plan->rank_tiles[p];
        *tile_bytes += ((uint64_t)plan->ranges[p] * NB_TILE_TOKENS + (uint64_t)args->part[p].out) * row;
    }
    return plan->blocks;
}

void nb_lora_backward_plan_of(const struct nb_linear_backward *args, struct nb_lora_backward_plan *plan)
{
    int widest = 0;
    *plan = (struct nb_lora_backward_plan){.blocks = 0};
    for (int p = 0; p < args->parts; p++)
        widest = rank_of(&args->part[p]) > widest ? rank_of(&args->part[p]) : widest;
    if (widest == 0)
        return;
    plan->tile = widest > 32 ? 64 : widest > 16 ? 32 : 16;
    for (int p = 0; p < args->parts; p++) {
        plan->width[p] = round_up(rank_of(&args->part[p]), 8);
        plan->rank_tiles[p] = divide_up(plan->width[p], plan->tile);
    }
    int64_t site_tiles = divide_up(nb_lora_site_tokens(args->site_tokens, args->tokens_max), NB_TILE_TOKENS);
    site_tiles = site_tiles < NB_LORA_GROUP ? site_tiles : NB_LORA_GROUP;
    uint64_t tile_bytes, least_bytes;
    backward_cut(args, plan, RANGE_LEAST, &least_bytes);
    int range = RANGE_MOST;
    while (range > RANGE_LEAST && site_tiles * backward_cut(args, plan, range, &tile_bytes) < RANGE_BLOCKS)
        range /= 2;
    backward_cut(args, plan, range, &tile_bytes);
    uint64_t tiles = (uint64_t)divide_up(args->tokens_max, NB_TILE_TOKENS), group = group_bytes / tile_bytes;
    group = group < 1 ? 1 : group < NB_LORA_GROUP ? group : NB_LORA_GROUP;
    group = group < tiles ? group : tiles;
    plan->group = (int)group;
    uint64_t at = 0;
    for (int p = 0; p < args->parts; p++) {
        uint64_t row = (uint64_t)plan->width[p] * sizeof(float);
        plan->u[p] = at;
        at += (uint64_t)plan->ranges[p] * group * NB_TILE_TOKENS * row;
        plan->db[p] = at;
        at += group * (uint64_t)args->part[p].out * row;
    }
    plan->partial_bytes = at;
    if (args->site_tokens < args->tokens_max) {
        /* As in the down product: fewer tokens may take shorter ranges. */
        uint64_t all = tiles * least_bytes, bound = least_bytes > group_bytes ? least_bytes : group_bytes;
        plan->partial_bytes = all < bound ? all : bound;
    }
}

uint64_t nb_cuda_lora_backward_partial_bytes(
    const struct nb_device_profile *profile, const struct nb_linear_backward *args)
{
    (void)profile;
    struct nb_lora_backward_plan plan;
    nb_lora_backward_plan_of(args, &plan);
    return nb_aligned(plan.partial_bytes);
}

/* ---- few tokens ---- */

void nb_linear_few_plan_of(const struct nb_linear *args, struct nb_linear_few_plan *plan)
{
    *plan = (struct nb_linear_few_plan){.splits = 1};
    for (int p = 0; p < NB_LINEAR_PARTS; p++) {
        int out = p < args->parts ? args->part[p].out : 0;
        plan->row_tiles[p + 1] = plan->row_tiles[p] + divide_up(out, NB_FEW_ROWS);
        plan->outputs[p + 1] = plan->outputs[p] + out;
    }
    int steps = divide_up(args->in, NB_FEW_DEPTH), wanted = BLOCKS / plan->row_tiles[NB_LINEAR_PARTS];
    int splits = wanted < 1 ? 1 : wanted < steps ? wanted : steps;
    plan->steps = divide_up(steps, splits);
    plan->splits = divide_up(steps, plan->steps);
    if (plan->splits > 1 && nb_lora_site_tokens(args->site_tokens, args->tokens_max) > NB_LORA_FEW_TOKENS)
        plan->partial_bytes = (uint64_t)plan->splits * (uint64_t)args->tokens_max *
                              (uint64_t)plan->outputs[NB_LINEAR_PARTS] * sizeof(float);
}
