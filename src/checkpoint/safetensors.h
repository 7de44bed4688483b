/* safetensors files: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
 * Source: the format's description, huggingface/safetensors README ("Format"). */
#ifndef NB_CHECKPOINT_SAFETENSORS_H
#define NB_CHECKPOINT_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct nb_mapped_file;

enum { NB_SAFETENSORS_RANK_MAX = 8 };

enum nb_safetensors_dtype {
    NB_SAFETENSORS_BOOL,
    NB_SAFETENSORS_U8,
    NB_SAFETENSORS_I8,
    NB_SAFETENSORS_F8_E4M3,
    NB_SAFETENSORS_F8_E5M2,
    NB_SAFETENSORS_U16,
    NB_SAFETENSORS_I16,
    NB_SAFETENSORS_F16,
    NB_SAFETENSORS_BF16,
    NB_SAFETENSORS_U32,
    NB_SAFETENSORS_I32,
    NB_SAFETENSORS_F32,
    NB_SAFETENSORS_U64,
    NB_SAFETENSORS_I64,
    NB_SAFETENSORS_F64,
    NB_SAFETENSORS_DTYPES,
};

/* "BF16", as the header spells it; its size in bytes. */
const char *nb_safetensors_dtype_name(enum nb_safetensors_dtype dtype);
size_t nb_safetensors_dtype_bytes(enum nb_safetensors_dtype dtype);

/* One tensor of an open file. `data` points into the mapping at no particular alignment: read it with memcpy or byte by byte. */
struct nb_safetensors_tensor {
    const char *name; /* owned by the reader */
    const char *path; /* the file it lies in, for messages; owned by the reader */
    enum nb_safetensors_dtype dtype;
    int rank;                                /* 0 for a scalar */
    uint64_t shape[NB_SAFETENSORS_RANK_MAX]; /* outermost first; row-major */
    uint64_t count;                          /* of elements */
    uint64_t bytes;
    uint64_t offset; /* of data from the start of the file */
    const unsigned char *data;
};

/* One file, or the files an index names, mapped read-only. */
struct nb_safetensors;

/* Opens one file. Errors: NB_IO; NB_FORMAT for a header that is too long (past the end, over 100 MB), not JSON, nested deeper than
 * the format, with duplicate names, an unknown dtype, a shape that does not give the tensor's bytes, or offsets that overlap, leave
 * holes or reach past the end. The message names file, tensor and byte offset. Destroy with nb_safetensors_close. */
nb_status nb_safetensors_open(const char *path, struct nb_safetensors **file);

/* Opens FOLDER/NAME.safetensors, or the files FOLDER/NAME.safetensors.index.json names ("weight_map"); every name of the index must
 * be in the file it says. Errors as above, and NB_IO when there is neither. */
nb_status nb_safetensors_open_folder(const char *folder, const char *name, struct nb_safetensors **file);

/* Reads the same from memory, which must outlive the reader; `path` is for messages. What the open functions and the fuzzer call. */
nb_status nb_safetensors_parse(const void *data, uint64_t bytes, const char *path, struct nb_safetensors **file);

/* Takes NULL; nulls the handle. Tensors got from it are gone. */
void nb_safetensors_close(struct nb_safetensors **file);

size_t nb_safetensors_count(const struct nb_safetensors *file);

/* Tensor number i, in the order of the files and of their offsets. */
const struct nb_safetensors_tensor *nb_safetensors_at(const struct nb_safetensors *file, size_t i);

/* NULL when there is none of that name. */
const struct nb_safetensors_tensor *nb_safetensors_find(const struct nb_safetensors *file, const char *name);

/* The value of a key of "__metadata__", or NULL. Owned by the reader. */
const char *nb_safetensors_metadata(const struct nb_safetensors *file, const char *key);

/* Mapped file number i; NULL beyond the last, and where the bytes are the caller's. */
const struct nb_mapped_file *nb_safetensors_file_at(const struct nb_safetensors *file, size_t i);

/* The tensor has been read: its pages may go. */
/* Brings a tensor into memory: a failing disk is an error here, not a signal where it is read. Errors: NB_IO. */
nb_status nb_safetensors_fetch(const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor);
void nb_safetensors_forget(const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor);

/* A tensor to be written. */
struct nb_safetensors_entry {
    const char *name;
    enum nb_safetensors_dtype dtype;
    int rank;
    uint64_t shape[NB_SAFETENSORS_RANK_MAX];
};

/* The bytes of an entry's data. */
uint64_t nb_safetensors_entry_bytes(const struct nb_safetensors_entry *entry);

/* Writes a file through nb_writer: whole or not at all. The header, with {"format": "pt"} as metadata and padded so that the data
 * starts at a multiple of 8, is written at once from the entries, which are not kept; their bytes follow in the same order. */
struct nb_safetensors_writer;

/* Errors: NB_IO; NB_USAGE for duplicate names. */
nb_status nb_safetensors_writer_open(
    const char *path, const struct nb_safetensors_entry *entries, size_t count, struct nb_safetensors_writer **writer);

/* The next bytes; calls may split tensors anywhere. */
nb_status nb_safetensors_writer_write(struct nb_safetensors_writer *writer, const void *data, size_t bytes);

/* Checks that all announced bytes came, syncs and renames. Destroys *writer and nulls it, whatever it returns. `crc32` (may be NULL)
 * receives the zlib crc32 of the whole file. */
nb_status nb_safetensors_writer_finish(struct nb_safetensors_writer **writer, uint32_t *crc32);

/* Leaves nothing on the disk. Takes NULL; nulls the handle. */
void nb_safetensors_writer_abandon(struct nb_safetensors_writer **writer);

#endif
