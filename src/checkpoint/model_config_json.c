/* A model config as the config.json that transformers would have saved. */
#include "checkpoint/model_config.h"

#include <stdio.h>
#include <stdlib.h>

#include "checkpoint/family.h"
#include "checkpoint/real.h"

static const char *truth(bool value)
{
    return value ? "true" : "false";
}

static void write_ids(FILE *out, const struct nb_model_config *config)
{
    if (config->eos_count == 0)
        fputs("  \"eos_token_id\": null,\n", out);
    else if (config->eos_count == 1)
        fprintf(out, "  \"eos_token_id\": %d,\n", config->eos[0]);
    for (int i = 0; i < config->eos_count && config->eos_count > 1; i++)
        fprintf(out, "%s%d%s", i == 0 ? "  \"eos_token_id\": [\n    " : "    ", config->eos[i],
            i + 1 < config->eos_count ? ",\n" : "\n  ],\n");
}

static void write_layer_types(FILE *out, const struct nb_model_config *config)
{
    fputs("  \"layer_types\": [\n", out);
    for (int layer = 0; layer < config->layers; layer++)
        fprintf(out, "    \"%s_attention\"%s\n", config->layer_windowed[layer] ? "sliding" : "full",
            layer + 1 < config->layers ? "," : "");
    fputs("  ],\n", out);
}

static void write_rope(FILE *out, const struct nb_rope_spec *rope)
{
    char real[NB_REAL_BYTES];
    fputs("  \"rope_parameters\": {\n", out);
    if (rope->type == NB_ROPE_LLAMA3) {
        fprintf(out, "    \"factor\": %s,\n", nb_real_format(rope->factor, true, real));
        fprintf(out, "    \"high_freq_factor\": %s,\n", nb_real_format(rope->high_freq_factor, true, real));
        fprintf(out, "    \"low_freq_factor\": %s,\n", nb_real_format(rope->low_freq_factor, true, real));
        fprintf(out, "    \"original_max_position_embeddings\": %d,\n", rope->original_max_positions);
    }
    fprintf(out, "    \"rope_theta\": %s,\n", nb_real_format(rope->theta, false, real));
    fprintf(out, "    \"rope_type\": \"%s\"\n  },\n", rope->type == NB_ROPE_LLAMA3 ? "llama3" : "default");
}

static void write_config(FILE *out, const struct nb_model_config *c)
{
    char real[NB_REAL_BYTES];
    bool qwen = c->family == &nb_family_qwen2 || c->family == &nb_family_qwen3;
    fprintf(out, "{\n  \"architectures\": [\n    \"%s\"\n  ],\n", c->family->class_name);
    if (!qwen || c->family == &nb_family_qwen3)
        fputs("  \"attention_bias\": false,\n", out);
    fputs("  \"attention_dropout\": 0.0,\n", out);
    if (c->bos >= 0)
        fprintf(out, "  \"bos_token_id\": %d,\n", c->bos);
    fputs("  \"dtype\": \"bfloat16\",\n", out);
    write_ids(out, c);
    fprintf(out, "  \"head_dim\": %d,\n  \"hidden_act\": \"silu\",\n  \"hidden_size\": %d,\n", c->head_dim, c->hidden);
    fprintf(out, "  \"initializer_range\": 0.02,\n  \"intermediate_size\": %d,\n", c->intermediate);
    if (qwen)
        write_layer_types(out, c);
    fprintf(out, "  \"max_position_embeddings\": %d,\n", c->max_positions);
    if (!qwen)
        fputs("  \"mlp_bias\": false,\n", out);
    fprintf(out, "  \"model_type\": \"%s\",\n  \"num_attention_heads\": %d,\n", c->family->name, c->heads);
    fprintf(out, "  \"num_hidden_layers\": %d,\n  \"num_key_value_heads\": %d,\n", c->layers, c->kv_heads);
    if (c->pad >= 0)
        fprintf(out, "  \"pad_token_id\": %d,\n", c->pad);
    fprintf(out, "  \"rms_norm_eps\": %s,\n", nb_real_format((double)c->rms_epsilon, true, real));
    write_rope(out, &c->rope);
    if (c->sliding_window > 0)
        fprintf(out, "  \"sliding_window\": %d,\n", c->sliding_window);
    else if (c->family->windows)
        fputs("  \"sliding_window\": null,\n", out);
    fprintf(out, "  \"tie_word_embeddings\": %s,\n  \"use_cache\": true,\n", truth(c->tied));
    if (qwen)
        fprintf(out, "  \"use_sliding_window\": %s,\n", truth(c->sliding_window > 0));
    fprintf(out, "  \"vocab_size\": %d\n}\n", c->vocab);
}

char *nb_model_config_to_json(const struct nb_model_config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return NULL;
    write_config(out, config);
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
