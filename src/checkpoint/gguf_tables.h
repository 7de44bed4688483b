/* A GGUF reader's tables, for the files of this room that make them and look into them. */
#ifndef NB_CHECKPOINT_GGUF_TABLES_H
#define NB_CHECKPOINT_GGUF_TABLES_H

#include "base/file.h"
#include "checkpoint/gguf.h"

/* The numbers stand in the files. */
enum nb_gguf_kind {
    NB_GGUF_KIND_U8,
    NB_GGUF_KIND_I8,
    NB_GGUF_KIND_U16,
    NB_GGUF_KIND_I16,
    NB_GGUF_KIND_U32,
    NB_GGUF_KIND_I32,
    NB_GGUF_KIND_F32,
    NB_GGUF_KIND_BOOL,
    NB_GGUF_KIND_STRING,
    NB_GGUF_KIND_ARRAY,
    NB_GGUF_KIND_U64,
    NB_GGUF_KIND_I64,
    NB_GGUF_KIND_F64,
    NB_GGUF_KINDS,
};

struct nb_gguf_value {
    struct nb_gguf_text key;
    uint64_t offset;        /* of the key, for messages */
    enum nb_gguf_kind kind; /* of an array: its elements' */
    bool array;
    const unsigned char *data;  /* of a number, or of an array of numbers */
    struct nb_gguf_text *texts; /* of strings; owned */
    uint64_t count;             /* 1 unless an array */
};

struct nb_gguf {
    struct nb_mapped_file map; /* data is NULL when the bytes are the caller's */
    char *path;
    struct nb_gguf_value *values; /* sorted by key */
    size_t value_count;
    struct nb_gguf_tensor *tensors;
    size_t tensor_count;
    const struct nb_gguf_tensor **by_name, **by_offset;
    char *names;
};

/* Bytes of a number of each kind; 0 for strings and arrays. */
extern const unsigned char nb_gguf_kind_bytes[NB_GGUF_KINDS];

/* By bytes, a prefix first. */
int nb_gguf_compare_texts(const struct nb_gguf_text *a, const struct nb_gguf_text *b);

#endif
