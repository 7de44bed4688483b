/* Which way a product with a frozen matrix takes, in what chunks, with which tile. Everything here follows from the
 * profile and the site, never from what memory is free or how the tokens are cut.
 *
 * The default weighs two costs, as shares of the product itself. Dequantizing N x K weights moves about 3 bytes a
 * weight (4 bits and a scale read, bf16 written, part of it read again past the cache) and the product is 2 M N K
 * operations, so it costs 1.49 * TFLOP/s / (TB/s * M) of it. Fusing costs what nibble's own kernel loses against the
 * bf16 product it would feed: next to nothing where mma.sync is all there is, 0.65 on Hopper, whose wgmma it cannot
 * use. Where the first is larger, the fused way wins, and where the bf16 weights would take too much memory. */
#include <string.h>

#include "device/cuda/plan.h"

static const char *const path_names[] = {"fused", "scratch", "overlapped"};

const char *nb_product_path_name(enum nb_product_path path)
{
    return path_names[path];
}

bool nb_product_path_parse(const char *name, enum nb_product_path *path)
{
    for (int i = 0; i < (int)(sizeof path_names / sizeof *path_names); i++) {
        if (strcmp(name, path_names[i]) == 0) {
            *path = (enum nb_product_path)i;
            return true;
        }
    }
    return false;
}

/* ---- the measured table ---- */

static bool table_counts(const struct nb_device_profile *profile)
{
    const struct nb_product_table *table = profile->products;
    return table && table->cublaslt_version == profile->cublaslt_version && strcmp(table->device, profile->name) == 0;
}

static bool fits(const struct nb_product_choice *choice, const struct nb_product_site *site)
{
    return choice->out == site->out && choice->in == site->in && choice->backward == site->backward;
}

/* The line of a site, or NULL: the one with the least tokens >= the site's, else the one with the most. */
static const struct nb_product_choice *measured(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    const struct nb_product_choice *above = NULL, *below = NULL;
    if (!table_counts(profile))
        return NULL;
    for (int i = 0; i < profile->products->count; i++) {
        const struct nb_product_choice *choice = &profile->products->choice[i];
        if (!fits(choice, site))
            continue;
        if (choice->tokens >= site->tokens) {
            if (!above || choice->tokens < above->tokens)
                above = choice;
        } else if (!below || choice->tokens > below->tokens) {
            below = choice;
        }
    }
    return above ? above : below;
}

/* ---- the default ---- */

/* Data-center chips multiply with mma.sync at 1,024 fused multiply-adds a clock and multiprocessor or more, and have
 * shared memory to match: A100, H100, B200. The others have at most half of it. */
static bool is_wide(const struct nb_device_profile *profile)
{
    int major = profile->compute_capability / 10;
    return profile->compute_capability == 80 || major == 9 || major == 10;
}

static bool has_warpgroups(const struct nb_device_profile *profile)
{
    int major = profile->compute_capability / 10;
    return major == 9 || major == 10;
}

/* What fusing loses, as a share of the product, against multiplying from bf16 scratch. Estimates: where cuBLASLt
 * multiplies, its lead over nibble's kernel; else the issue slots that decoding again for every tile of rows takes
 * from the same kernel. */
static double fusing_cost(const struct nb_device_profile *profile)
{
    bool library = profile->cublaslt_version != 0;
    if (has_warpgroups(profile))
        return library ? 0.65 : 0.08;
    if (is_wide(profile))
        return library ? 0.15 : 0.05;
    return library ? 0.06 : 0.02;
}

static double scratch_cost(const struct nb_device_profile *profile, int tokens)
{
    bool own_on_hopper = has_warpgroups(profile) && profile->cublaslt_version == 0;
    double reached = own_on_hopper ? 0.5 : 0.8; /* of the rate on paper */
    double terabytes_per_s = (double)profile->memory_gb_per_s / 1000;
    return terabytes_per_s > 0 ? 1.49 * reached * (double)profile->bf16_tflops / (terabytes_per_s * tokens) : 0;
}

enum { DEFAULT_CHUNK_BYTES_MAX = 512 << 20 };

/* A column of dX's chunk is as long as the matrix is high: a head's vocabulary makes hundreds of MiB of a chunk, more than
 * its 4 bits save. */
static bool is_too_high(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    int64_t depth = site->backward ? site->out : site->in;
    return 2 * depth * nb_product_chunk(profile, site) > DEFAULT_CHUNK_BYTES_MAX;
}

enum nb_product_path nb_product_path_of(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    if (site->format == NB_WEIGHT_BF16)
        return NB_PRODUCT_FUSED; /* nothing to dequantize */
    const struct nb_product_choice *choice = measured(profile, site);
    bool straddles = site->in % 64 != 0;
    if (choice && !(straddles && choice->path == NB_PRODUCT_FUSED))
        return choice->path;
    if (straddles)
        return NB_PRODUCT_SCRATCH;
    if (is_too_high(profile, site))
        return NB_PRODUCT_FUSED;
    return scratch_cost(profile, site->tokens > 0 ? site->tokens : 1) > fusing_cost(profile) ? NB_PRODUCT_FUSED : NB_PRODUCT_SCRATCH;
}

/* ---- chunks ---- */

/* A chunk is at least 128 KiB a multiprocessor, which the second-level caches hold (16 MiB on an H100), and wide
 * enough for two waves of 128 x 256 tiles at 2,048 tokens, so that the product still fills the chip (32 MiB there at
 * a sum over 4,096). Whole tiles of 256 results. */
int nb_product_chunk(const struct nb_device_profile *profile, const struct nb_product_site *site)
{
    int width = site->backward ? site->in : site->out;
    int64_t depth = site->backward ? site->out : site->in;
    int64_t multiprocessors = profile->multiprocessors > 0 ? profile->multiprocessors : 1;
    int64_t cached = (multiprocessors << 17) / (2 * depth) / 256 * 256, waves = multiprocessors / 8 * 256;
    int64_t chunk = cached > waves ? cached : waves;
    if (chunk < 256)
        chunk = 256;
    return chunk < width ? (int)chunk : width;
}

/* ---- tiles ---- */

/* Time of a tile on a multiprocessor, in multiply-adds a step at the full rate: small tiles read more of shared
 * memory a product, which the wide chips feel most. */
static double tile_time(enum nb_product_tile tile, bool wide)
{
    switch (tile) {
    case NB_PRODUCT_TILE_64: return 64 * 64 / (wide ? 0.5 : 0.7);
    case NB_PRODUCT_TILE_128: return 128 * 128 / (wide ? 0.8 : 1.0);
    default: return 256 * 128;
    }
}

enum nb_product_tile nb_product_tile_of(const struct nb_device_profile *profile, int rows, int64_t columns)
{
    static const int height[] = {64, 128, 256}, width[] = {64, 128, 128};
    bool wide = is_wide(profile);
    int64_t multiprocessors = profile->multiprocessors > 0 ? profile->multiprocessors : 1;
    enum nb_product_tile best = NB_PRODUCT_TILE_64, last = wide ? NB_PRODUCT_TILE_256 : NB_PRODUCT_TILE_128;
    double best_time = 0;
    for (enum nb_product_tile tile = NB_PRODUCT_TILE_64; tile <= last; tile++) {
        int64_t blocks = (((int64_t)rows + height[tile] - 1) / height[tile]) * ((columns + width[tile] - 1) / width[tile]);
        int64_t waves = (blocks + multiprocessors - 1) / multiprocessors;
        double time = (double)waves * tile_time(tile, wide);
        if (tile == NB_PRODUCT_TILE_64 || time <= best_time) {
            best = tile;
            best_time = time;
        }
    }
    return best;
}

/* ---- sites ---- */

static int site_tokens(int planned, int tokens_max)
{
    return planned > 0 ? planned : tokens_max;
}

/* A matrix that was dequantized before stands where its 4-bit form would: it takes the same way. */
static enum nb_weight_format stored_format(const struct nb_weight *weight)
{
    return weight->format == NB_WEIGHT_BF16 ? weight->dequantized : weight->format;
}

struct nb_product_site nb_linear_site(const struct nb_linear *args, int part)
{
    return (struct nb_product_site){.out = args->part[part].out,
        .in = args->in,
        .tokens = site_tokens(args->site_tokens, args->tokens_max),
        .format = stored_format(&args->part[part].weight)};
}

struct nb_product_site nb_linear_backward_site(const struct nb_linear_backward *args)
{
    struct nb_product_site site = {.in = args->in,
        .tokens = site_tokens(args->site_tokens, args->tokens_max),
        .backward = true,
        .format = NB_WEIGHT_BF16};
    for (int p = 0; p < args->parts; p++) {
        site.part_out[p] = args->part[p].out;
        site.out += args->part[p].out;
        if (stored_format(&args->part[p].weight) != NB_WEIGHT_BF16)
            site.format = stored_format(&args->part[p].weight);
    }
    return site;
}

bool nb_linear_is_few(const struct nb_linear *args)
{
    for (int p = 0; p < args->parts; p++)
        if (!nb_dptr_is_null(args->part[p].lora.a) && args->part[p].lora.dropout > 0)
            return false;
    return site_tokens(args->site_tokens, args->tokens_max) <= NB_CUDA_FEW_TOKENS && args->tokens_max <= NB_CUDA_FEW_TOKENS;
}
