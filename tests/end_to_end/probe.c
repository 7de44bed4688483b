/* What the end-to-end scripts need to look into files, independent of the program under test.
 *
 *   probe json FILE [PATH]     checks that FILE is one JSON value; prints the value at PATH ("rows.0.tokens")
 *   probe jsonl FILE [PATH]    the same for each line: one value a line
 *   probe tensor FILE NAME     a safetensors tensor's values (F32, I32, I64), separated by commas
 *   probe place FILE NAME      where its bytes lie: "OFFSET BYTES"
 *   probe rows FILE            input_ids and labels [rows, tokens] as JSONL rows of tokens
 *   probe patch FILE OFFSET HEX   overwrites bytes */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what, const char *where)
{
    fprintf(stderr, "probe: %s: %s\n", where, what);
    exit(1);
}

static char *read_file(const char *path, size_t *bytes)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        fail("cannot open", path);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*bytes + 1);
    if (!data || fread(data, 1, *bytes, file) != *bytes)
        fail("cannot read", path);
    data[*bytes] = 0;
    fclose(file);
    return data;
}

static json_t *parse(const char *text, size_t bytes, const char *where)
{
    json_error_t error;
    json_t *value = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (!value)
        fail(error.text, where);
    return value;
}

/* "rows.0.tokens" from the root; fails where the path leads nowhere. */
static const json_t *at_path(const json_t *value, const char *path)
{
    char name[256];
    for (const char *part = path; *part;) {
        size_t length = strcspn(part, ".");
        if (length >= sizeof name)
            fail("too long", path);
        memcpy(name, part, length);
        name[length] = 0;
        value = json_is_array(value) ? json_array_get(value, strtoul(name, NULL, 10)) : json_object_get(value, name);
        if (!value)
            fail("no such value", path);
        part += length + (part[length] == '.');
    }
    return value;
}

static void print_value(const json_t *value)
{
    if (json_is_string(value)) {
        fwrite(json_string_value(value), 1, json_string_length(value), stdout);
        putchar('\n');
    } else if (json_is_real(value)) {
        printf("%.17g\n", json_real_value(value));
    } else {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        puts(text);
        free(text);
    }
}

static void print_json(const char *path, const char *where)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    json_t *value = parse(text, bytes, path);
    if (where)
        print_value(at_path(value, where));
    json_decref(value);
    free(text);
}

static void print_lines(const char *path, const char *where)
{
    size_t bytes;
    char *text = read_file(path, &bytes);
    for (char *line = text; *line;) {
        size_t length = strcspn(line, "\n");
        json_t *value = parse(line, length, path);
        if (where)
            print_value(at_path(value, where));
        json_decref(value);
        line += length + (line[length] == '\n');
    }
    free(text);
}

struct tensor {
    char *file;       /* owned */
    char *dtype;      /* owned */
    const char *data; /* in file */
    uint64_t offset, bytes, rows;
};

static struct tensor open_tensor(const char *path, const char *name)
{
    size_t bytes;
    uint64_t header;
    struct tensor tensor = {.file = read_file(path, &bytes)};
    memcpy(&header, tensor.file, sizeof header);
    json_t *root = parse(tensor.file + 8, header, path);
    const json_t *entry = json_object_get(root, name);
    if (!entry)
        fail("no such tensor", name);
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t begin = (uint64_t)json_integer_value(json_array_get(offsets, 0));
    tensor.bytes = (uint64_t)json_integer_value(json_array_get(offsets, 1)) - begin;
    tensor.offset = 8 + header + begin;
    tensor.rows = (uint64_t)json_integer_value(json_array_get(json_object_get(entry, "shape"), 0));
    tensor.dtype = strdup(json_string_value(json_object_get(entry, "dtype")));
    tensor.data = tensor.file + tensor.offset;
    json_decref(root);
    return tensor;
}

static void close_tensor(struct tensor *tensor)
{
    free(tensor->file);
    free(tensor->dtype);
}

static uint64_t element_bytes(const struct tensor *tensor)
{
    return strcmp(tensor->dtype, "I64") == 0 ? 8 : 4;
}

static void print_values(const struct tensor *tensor, uint64_t first, uint64_t count)
{
    for (uint64_t i = first; i < first + count; i++) {
        const char *comma = i == first ? "" : ",";
        if (strcmp(tensor->dtype, "I64") == 0) {
            int64_t value;
            memcpy(&value, tensor->data + 8 * i, sizeof value);
            printf("%s%" PRId64, comma, value);
        } else if (strcmp(tensor->dtype, "I32") == 0) {
            int32_t value;
            memcpy(&value, tensor->data + 4 * i, sizeof value);
            printf("%s%" PRId32, comma, value);
        } else if (strcmp(tensor->dtype, "F32") == 0) {
            float value;
            memcpy(&value, tensor->data + 4 * i, sizeof value);
            printf("%s%.9g", comma, (double)value);
        } else {
            fail("neither F32 nor I32 nor I64", tensor->dtype);
        }
    }
}

static void print_tensor(const char *path, const char *name)
{
    struct tensor tensor = open_tensor(path, name);
    print_values(&tensor, 0, tensor.bytes / element_bytes(&tensor));
    putchar('\n');
    close_tensor(&tensor);
}

static void print_place(const char *path, const char *name)
{
    struct tensor tensor = open_tensor(path, name);
    printf("%" PRIu64 " %" PRIu64 "\n", tensor.offset, tensor.bytes);
    close_tensor(&tensor);
}

static void print_rows(const char *path)
{
    struct tensor ids = open_tensor(path, "input_ids"), labels = open_tensor(path, "labels");
    uint64_t width = ids.bytes / element_bytes(&ids) / ids.rows;
    for (uint64_t row = 0; row < ids.rows; row++) {
        printf("{\"input_ids\": [");
        print_values(&ids, row * width, width);
        printf("], \"labels\": [");
        print_values(&labels, row * width, width);
        puts("]}");
    }
    close_tensor(&ids);
    close_tensor(&labels);
}

static void patch(const char *path, const char *offset, const char *hex)
{
    FILE *file = fopen(path, "r+b");
    if (!file || fseek(file, strtol(offset, NULL, 10), SEEK_SET))
        fail("cannot open", path);
    for (; hex[0] && hex[1]; hex += 2) {
        char digits[3] = {hex[0], hex[1], 0};
        fputc((int)strtoul(digits, NULL, 16), file);
    }
    if (fclose(file))
        fail("cannot write", path);
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    const char *third = argc > 3 ? argv[3] : NULL;
    if (strcmp(what, "json") == 0)
        print_json(argv[2], third);
    else if (strcmp(what, "jsonl") == 0)
        print_lines(argv[2], third);
    else if (strcmp(what, "tensor") == 0 && third)
        print_tensor(argv[2], third);
    else if (strcmp(what, "place") == 0 && third)
        print_place(argv[2], third);
    else if (strcmp(what, "rows") == 0)
        print_rows(argv[2]);
    else if (strcmp(what, "patch") == 0 && argc == 5)
        patch(argv[2], third, argv[4]);
    else
        fail("unknown command", what);
    return 0;
}
