/* The reader of GGUF files, the config from its metadata, and the dequantizers on every tensor of an accepted one. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "checkpoint/gguf.h"
#include "checkpoint/model_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void use_tensor(const struct nb_gguf *gguf, const struct nb_gguf_tensor *tensor)
{
    if (nb_gguf_tensor_find(gguf, tensor->name) != tensor)
        abort();
    float *values = malloc(tensor->count * sizeof *values);
    if (values)
        nb_gguf_dequantize(tensor->type, tensor->data, tensor->count, values);
    free(values);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct nb_gguf *gguf;
    struct nb_model_config config;
    const struct nb_gguf_text *texts;
    size_t count;
    unsigned sum = 0;
    if (nb_gguf_parse(data, bytes, "fuzz.gguf", &gguf) != NB_OK)
        return 0;
    for (size_t i = 0; i < nb_gguf_tensor_count(gguf); i++)
        use_tensor(gguf, nb_gguf_tensor_at(gguf, i));
    if (nb_gguf_strings(gguf, "tokenizer.ggml.tokens", &texts, &count))
        for (size_t i = 0; i < count; i++)
            for (size_t j = 0; j < texts[i].bytes; j++)
                sum += (unsigned char)texts[i].text[j];
    if (nb_model_config_from_gguf(gguf, &config) == NB_OK && nb_model_config_parameters(&config) <= 0)
        abort();
    nb_gguf_close(&gguf);
    return (int)(sum & 0); /* libFuzzer wants 0; the sum keeps the reads */
}
