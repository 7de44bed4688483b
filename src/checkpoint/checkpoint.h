/* A model on the disk, whatever its form: a Hugging Face folder (safetensors, one file or sharded with an index; bf16, f16 or f32, or
 * bitsandbytes 4-bit), a config.json alone, or a .gguf file. Tensors are asked for by their Hugging Face names in all cases. */
#ifndef NB_CHECKPOINT_CHECKPOINT_H
#define NB_CHECKPOINT_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/bfloat.h"
#include "base/status.h"
#include "checkpoint/model_config.h"
#include "quant/matrix.h"

struct nb_checkpoint;
struct nb_gguf;
struct nb_safetensors;
struct nb_safetensors_tensor;

/* `path` is a folder with a config.json, a .gguf file, or a .json file (a config without weights, for planning). Weights are mapped,
 * not read. A folder without weights opens as well: reading a tensor of it is the error (NB_IO, naming the folder). Damaged weight
 * files are errors here. Destroy with nb_checkpoint_close. */
nb_status nb_checkpoint_open(const char *path, struct nb_checkpoint **checkpoint);

/* Takes NULL; nulls the handle. Views got from it are gone. */
void nb_checkpoint_close(struct nb_checkpoint **checkpoint);

/* Owned by the checkpoint, as everything below. */
const struct nb_model_config *nb_checkpoint_config(const struct nb_checkpoint *checkpoint);
const char *nb_checkpoint_path(const struct nb_checkpoint *checkpoint);   /* as given */
const char *nb_checkpoint_folder(const struct nb_checkpoint *checkpoint); /* of a Hugging Face model, else NULL */
const struct nb_gguf *nb_checkpoint_gguf(const struct nb_checkpoint *checkpoint); /* of a .gguf file, else NULL */
const struct nb_safetensors *nb_checkpoint_safetensors(const struct nb_checkpoint *checkpoint); /* NULL without such weights */
bool nb_checkpoint_has_weights(const struct nb_checkpoint *checkpoint);

bool nb_checkpoint_tensor_exists(const struct nb_checkpoint *checkpoint, const char *name);

/* Bytes the tensor takes in its file, a quantized one's scales and maps included; 0 when it is not there. For progress. */
uint64_t nb_checkpoint_tensor_bytes(const struct nb_checkpoint *checkpoint, const char *name);

/* The tensor as bf16 [rows, columns], row-major and contiguous (a vector has one row), rounded to nearest even from whatever the file
 * holds: GGUF blocks are dequantized in fp32 and rounded, llama's permuted q and k rows are put back, and bitsandbytes matrices are
 * dequantized. All cores work on it. Errors: NB_FORMAT for a tensor that is missing, has another shape or dtype, or holds a NaN or
 * an infinity (also one that arises by rounding), naming file, tensor and index. */
nb_status nb_checkpoint_tensor_read_bf16(
    const struct nb_checkpoint *checkpoint, const char *name, int64_t rows, int64_t columns, nb_bf16 *out);

/* The tensor in its file, where that holds it as bf16 [rows, columns]; NULL where it is read in another way. */
const struct nb_safetensors_tensor *nb_checkpoint_tensor_in_bf16(
    const struct nb_checkpoint *checkpoint, const char *name, int64_t rows, int64_t columns);

/* Whether the file holds the tensor in bitsandbytes' 4-bit layout. */
bool nb_checkpoint_tensor_is_quantized(const struct nb_checkpoint *checkpoint, const char *name);

/* A view of such a matrix into the mapping, with the file's own maps and offset. Errors: NB_FORMAT for parts that are missing or do
 * not fit the shape, and for a quant_state that is not understood; scales and maps are finite. From one thread at a time. */
nb_status nb_checkpoint_matrix_quantized(const struct nb_checkpoint *checkpoint, const char *name, int64_t rows,
    int64_t columns, struct nb_quant_matrix *view);

/* A line for each file of weights that tells this state of it from any other: its name, size, time of writing, and the
 * checksum of its header, all as they were when it was opened. */
void nb_checkpoint_describe_files(const struct nb_checkpoint *checkpoint, FILE *out);

/* Brings what a tensor is made of into memory: a failing disk, or a file cut short under the program, is an error here and not a signal
 * where it is read. Reading in bf16 does so itself; with a view of the packed values it is the reader's to do. Errors: NB_IO. */
nb_status nb_checkpoint_fetch(const struct nb_checkpoint *checkpoint, const char *name);

/* The tensor, with what belongs to it, has been read: its pages may go. A later read brings them back. */
void nb_checkpoint_forget(const struct nb_checkpoint *checkpoint, const char *name);

#endif
