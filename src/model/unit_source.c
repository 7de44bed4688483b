#include "model/unit_source.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/file_reader.h"
#include "checkpoint/bnb_read.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_read.h"
#include "model/unit_file.h"
#include "model/weight_store.h"

enum { PIECES_OF_TENSOR = 6 };

/* Bytes of a unit that stand in the checkpoint as they are used. */
struct piece {
    const struct nb_file_reader *file;
    const struct nb_safetensors_tensor *tensor; /* NULL once the source is made: the checkpoint may be closed */
    uint64_t offset, bytes;                     /* in the file */
    uint64_t to;                                /* in the unit */
    bool bf16;
};

/* The one number that a quant_state gives as text. */
struct constant {
    uint64_t to;
    float value;
};

struct unit_pieces {
    uint64_t bytes;
    int pieces, constants;
    struct piece *piece; /* in the order of their files and offsets */
    struct constant constant[NB_TENSOR_LAYER_ROLES];
    bool verified;
};

struct nb_unit_source {
    struct nb_unit_file *file;      /* or, of a checkpoint, NULL */
    struct nb_file_reader **reader; /* of a checkpoint */
    size_t readers;
    int units;
    struct unit_pieces *unit; /* [units]; of a file without pieces */
};

void nb_unit_source_destroy(struct nb_unit_source **source)
{
    struct nb_unit_source *s = *source;
    *source = NULL;
    if (!s)
        return;
    nb_unit_file_close(&s->file);
    for (size_t i = 0; i < s->readers; i++)
        nb_file_reader_close(&s->reader[i]);
    free(s->reader);
    for (int i = 0; s->unit && i < s->units; i++)
        free(s->unit[i].piece);
    free(s->unit);
    free(s);
}

static nb_status create(const struct nb_weight_store *store, struct nb_unit_source **source)
{
    struct nb_unit_source *s = calloc(1, sizeof *s);
    *source = s;
    if (s) {
        s->units = nb_weight_store_units(store);
        s->unit = calloc((size_t)s->units, sizeof *s->unit);
    }
    if (s && s->unit)
        return NB_OK;
    nb_unit_source_destroy(source);
    return nb_fail(NB_MEMORY, "no memory for where the weights lie in their file");
}

nb_status nb_unit_source_of_file(
    struct nb_unit_file **file, const struct nb_weight_store *store, struct nb_unit_source **source)
{
    nb_status status = create(store, source);
    if (status != NB_OK) {
        nb_unit_file_close(file);
        return status;
    }
    const nb_dptr anywhere = {NB_UNIT_FILE_ALIGNMENT};
    struct nb_unit_view view;
    for (int i = 0; i < (*source)->units; i++)
        (*source)->unit[i].bytes = nb_weight_store_layout(store, i, anywhere, &view);
    (*source)->file = *file;
    *file = NULL;
    return NB_OK;
}

/* ---- what a checkpoint holds ---- */

nb_status nb_unit_source_check(const struct nb_checkpoint *checkpoint, const struct nb_weight_store *store)
{
    const nb_dptr anywhere = {NB_UNIT_FILE_ALIGNMENT};
    for (int unit = 0; unit < nb_weight_store_units(store); unit++) {
        const struct nb_tensor_spec *spec;
        struct nb_unit_view view;
        int tensors = nb_weight_store_is_in_file(store, unit) ? nb_weight_store_tensors(store, unit, &spec) : 0;
        nb_weight_store_layout(store, unit, anywhere, &view);
        for (int i = 0; i < tensors; i++) {
            char name[NB_TENSOR_NAME_BYTES];
            nb_tensor_name(&spec[i], unit - 1, name);
            const struct nb_weight *matrix = &view.matrix[spec[i].role];
            bool four_bits = matrix->rows > 0 && matrix->format != NB_WEIGHT_BF16;
            if (four_bits ? nb_checkpoint_tensor_is_quantized(checkpoint, name)
                          : nb_checkpoint_tensor_in_bf16(checkpoint, name, spec[i].rows, spec[i].columns) != NULL)
                continue;
            return nb_fail(NB_UNSUPPORTED,
                "weights_from: file: %s holds %s in another form than it is used in; set quantized_cache: FOLDER, "
                "or write a 4-bit model with `nibble quantize`",
                nb_checkpoint_path(checkpoint), name);
        }
    }
    return NB_OK;
}

static const struct nb_mapped_file *mapped_file_of(
    const struct nb_safetensors *file, const struct nb_safetensors_tensor *tensor)
{
    const struct nb_mapped_file *map;
    for (size_t i = 0; (map = nb_safetensors_file_at(file, i)); i++)
        if (tensor->data >= map->data && tensor->data < map->data + map->bytes)
            return map;
    return NULL;
}

static nb_status open_reader(struct nb_unit_source *s, const struct nb_mapped_file *map)
{
    struct nb_file_reader **reader = realloc(s->reader, (s->readers + 1) * sizeof(struct nb_file_reader *));
    if (!reader)
        return nb_fail(NB_MEMORY, "%s: no memory to read it", map->path);
    s->reader = reader;
    NB_TRY(nb_file_reader_open(map->path, &s->reader[s->readers]));
    s->readers++;
    if (nb_file_stamp_equal(nb_file_reader_stamp(s->reader[s->readers - 1]), &map->stamp))
        return NB_OK;
    return nb_fail(NB_IO, "%s: was changed or replaced since it was opened; start again", map->path);
}

static nb_status find_reader(struct nb_unit_source *s, const struct nb_checkpoint *checkpoint, struct piece *piece)
{
    const struct nb_mapped_file *map = mapped_file_of(nb_checkpoint_safetensors(checkpoint), piece->tensor);
    if (!map)
        return nb_fail(
            NB_UNSUPPORTED, "%s: tensor %s lies in no file", nb_checkpoint_path(checkpoint), piece->tensor->name);
    for (size_t i = 0; i < s->readers; i++)
        if (strcmp(nb_file_reader_path(s->reader[i]), map->path) == 0)
            piece->file = s->reader[i];
    if (piece->file)
        return NB_OK;
    NB_TRY(open_reader(s, map));
    piece->file = s->reader[s->readers - 1];
    return NB_OK;
}

static void add_piece(struct unit_pieces *unit, const struct nb_safetensors_tensor *tensor, uint64_t to)
{
    if (tensor && tensor->bytes)
        unit->piece[unit->pieces++] =
            (struct piece){.tensor = tensor, .offset = tensor->offset, .bytes = tensor->bytes, .to = to};
}

static nb_status add_four_bits(struct unit_pieces *unit, const struct nb_checkpoint *checkpoint, const char *name,
    const struct nb_weight *weight, uint64_t base)
{
    struct nb_quant_matrix matrix;
    struct nb_bnb_parts parts;
    NB_TRY(nb_checkpoint_matrix_quantized(checkpoint, name, weight->rows, weight->columns, &matrix));
    enum nb_quant_type type = weight->format == NB_WEIGHT_NF4 ? NB_QUANT_NF4 : NB_QUANT_FP4;
    if (matrix.type != type || matrix.nested != weight->nested)
        return nb_fail(NB_FORMAT, "%s: %s is quantized in another way than the model's config.json says",
            nb_checkpoint_path(checkpoint), name);
    nb_bnb_find(nb_checkpoint_safetensors(checkpoint), name, &parts);
    add_piece(unit, parts.packed, weight->data.address - base);
    add_piece(unit, parts.absmax, weight->absmax.address - base);
    add_piece(unit, parts.quant_map, weight->codebook.address - base);
    if (!weight->nested)
        return NB_OK;
    add_piece(unit, parts.nested_absmax, weight->nested_absmax.address - base);
    add_piece(unit, parts.nested_quant_map, weight->nested_map.address - base);
    unit->constant[unit->constants++] = (struct constant){weight->nested_offset.address - base, matrix.nested_offset};
    return NB_OK;
}

static int compare_pieces(const void *a, const void *b)
{
    const struct piece *x = a, *y = b;
    int order = strcmp(nb_file_reader_path(x->file), nb_file_reader_path(y->file));
    return order != 0 ? order : (x->offset > y->offset) - (x->offset < y->offset);
}

static nb_status find_pieces(
    struct nb_unit_source *s, const struct nb_checkpoint *checkpoint, const struct nb_weight_store *store, int number)
{
    const nb_dptr base = {NB_UNIT_FILE_ALIGNMENT};
    struct unit_pieces *unit = &s->unit[number];
    const struct nb_tensor_spec *spec;
    struct nb_unit_view view;
    int tensors = nb_weight_store_tensors(store, number, &spec);
    unit->bytes = nb_weight_store_layout(store, number, base, &view);
    if (!(unit->piece = calloc((size_t)tensors * PIECES_OF_TENSOR, sizeof *unit->piece)))
        return nb_fail(NB_MEMORY, "no memory for where the weights lie in their file");
    for (int i = 0; i < tensors; i++) {
        char name[NB_TENSOR_NAME_BYTES];
        nb_tensor_name(&spec[i], number - 1, name);
        const struct nb_weight *matrix = &view.matrix[spec[i].role];
        nb_dptr plain = spec[i].rows == 1 ? view.vector[spec[i].role] : matrix->data;
        if (matrix->rows > 0 && matrix->format != NB_WEIGHT_BF16) {
            NB_TRY(add_four_bits(unit, checkpoint, name, matrix, base.address));
            nb_checkpoint_forget(checkpoint, name);
            continue;
        }
        add_piece(unit, nb_checkpoint_tensor_in_bf16(checkpoint, name, spec[i].rows, spec[i].columns),
            plain.address - base.address);
        unit->piece[unit->pieces - 1].bf16 = true;
    }
    for (int i = 0; i < unit->pieces; i++)
        NB_TRY(find_reader(s, checkpoint, &unit->piece[i]));
    qsort(unit->piece, (size_t)unit->pieces, sizeof *unit->piece, compare_pieces);
    for (int i = 0; i < unit->pieces; i++)
        unit->piece[i].tensor = NULL;
    return NB_OK;
}

nb_status nb_unit_source_of_checkpoint(
    const struct nb_checkpoint *checkpoint, const struct nb_weight_store *store, struct nb_unit_source **source)
{
    *source = NULL;
    NB_TRY(nb_unit_source_check(checkpoint, store));
    NB_TRY(create(store, source));
    nb_status status = NB_OK;
    for (int i = 0; status == NB_OK && i < (*source)->units; i++)
        if (nb_weight_store_is_in_file(store, i))
            status = find_pieces(*source, checkpoint, store, i);
    if (status != NB_OK)
        nb_unit_source_destroy(source);
    return status;
}

/* ---- reading ---- */

static nb_status read_pieces(const struct unit_pieces *unit, char *to)
{
    for (int i = 0; i < unit->pieces; i++) {
        const struct piece *piece = &unit->piece[i];
        NB_TRY(nb_file_reader_read(piece->file, piece->offset, to + piece->to, piece->bytes));
        if (unit->verified || !piece->bf16)
            continue;
        int64_t bad =
            nb_tensor_first_not_finite((const nb_bf16 *)(const void *)(to + piece->to), (int64_t)(piece->bytes / 2));
        if (bad >= 0)
            return nb_fail(NB_FORMAT,
                "%s: the weight at offset %" PRIu64
                " is infinite or not a number. The file is damaged, or the model diverged.",
                nb_file_reader_path(piece->file), piece->offset + (uint64_t)bad * sizeof(nb_bf16));
    }
    for (int i = 0; i < unit->constants; i++)
        memcpy(to + unit->constant[i].to, &unit->constant[i].value, sizeof(float));
    return NB_OK;
}

static nb_status read_from_file(const struct nb_unit_source *source, int unit, void *to)
{
    const struct unit_pieces *u = &source->unit[unit];
    uint32_t crc = 0;
    NB_TRY(nb_unit_file_read(source->file, unit, 0, to, u->bytes, u->verified ? NULL : &crc));
    if (u->verified || nb_unit_file_verify(source->file, unit, crc) == NB_OK)
        return NB_OK;
    nb_unit_file_unlink(source->file);
    return nb_fail_within(NB_FORMAT, "the cached weights were removed; start again, and they are made anew");
}

nb_status nb_unit_source_read(struct nb_unit_source *source, int unit, void *to)
{
    NB_TRY(source->file ? read_from_file(source, unit, to) : read_pieces(&source->unit[unit], to));
    source->unit[unit].verified = true;
    return NB_OK;
}

void nb_unit_source_announce(const struct nb_unit_source *source, int unit)
{
    const struct unit_pieces *u = &source->unit[unit];
    if (source->file)
        nb_unit_file_announce(source->file, unit);
    for (int i = 0; i < u->pieces; i++)
        nb_file_reader_announce(u->piece[i].file, u->piece[i].offset, u->piece[i].bytes);
}
