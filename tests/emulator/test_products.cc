/* Products with frozen weights: a row's bits are its own, whatever comes with it. On every path, with and without cuBLASLt, the whole, its
 * chunks of tokens, a row alone, the row among other rows and the same work out of a graph give the same bytes, forward and backward. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/device.cuh"
#include "device/cuda/plan.h"
#include "quant/matrix.h"

namespace {

int failures;

enum { IN = 320, OUT = 520, OUT_TOO = 40, PARTS = 2, RANK = 16, TOKENS = 140, VALID = 134, CHUNK = 48, DY = OUT + OUT_TOO };
const int outs[PARTS] = {OUT, OUT_TOO};

void must(nb_status status)
{
    if (status != NB_OK) {
        printf("%s\n%s\n", nb_status_message(), nb_emulator_fault_message());
        exit(1);
    }
}

struct machine {
    struct nb_device *device = NULL;
    struct nb_stream *stream = NULL;
    explicit machine(const struct nb_cuda_options &options)
    {
        must(nb_cuda_device_create(&options, &device));
        must(device->prepare(device, NULL, 0));
        must(device->stream_create(device, &stream));
    }
    machine(const machine &) = delete;
    ~machine()
    {
        device->stream_destroy(device, &stream);
        nb_device_destroy(&device);
    }
};

/* Device memory that goes with the machine. */
struct memory {
    const machine &on;
    nb_dptr at{};
    size_t bytes;
    memory(const machine &m, size_t size) : on(m), bytes(size) { must(m.device->memory_take(m.device, size ? size : 1, &at)); }
    memory(const memory &) = delete;
    ~memory() { on.device->memory_give_back(on.device, at); }
    void up(const void *from) const
    {
        must(on.device->upload(on.device, on.stream, at, from, bytes));
        must(on.device->stream_wait(on.device, on.stream));
    }
    std::vector<nb_bf16> down() const
    {
        std::vector<nb_bf16> host(bytes / 2);
        must(on.device->download(on.device, on.stream, host.data(), at, bytes));
        must(on.device->stream_wait(on.device, on.stream));
        return host;
    }
};

uint64_t state = 1;

float uniform()
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) * 0x1p-23f - 1.0f;
}

std::vector<nb_bf16> random_matrix(size_t count, float size)
{
    std::vector<nb_bf16> values(count);
    for (nb_bf16 &value : values)
        value = nb_bf16_from_float(size * uniform());
    return values;
}

/* A quantized matrix with its parts in one slab. */
struct weight {
    struct nb_quant_layout layout{};
    memory slab, offset;
    static size_t slab_bytes(int rows)
    {
        struct nb_quant_layout layout;
        must(nb_quant_matrix_layout(NB_QUANT_NF4, true, (uint64_t)rows, IN, &layout));
        return layout.bytes;
    }
    weight(const machine &m, int rows) : slab(m, slab_bytes(rows)), offset(m, sizeof(float))
    {
        must(nb_quant_matrix_layout(NB_QUANT_NF4, true, (uint64_t)rows, IN, &layout));
        std::vector<char> host(layout.bytes + 16);
        std::vector<float> scales((size_t)rows * IN / 64 + 1);
        std::vector<nb_bf16> w = random_matrix((size_t)rows * IN, 0.1f);
        struct nb_quant_parts parts = nb_quant_matrix_parts(&layout, host.data(), scales.data());
        must(nb_quantize(NB_QUANT_NF4, true, w.data(), (uint64_t)rows, IN, &parts));
        slab.up(host.data());
        offset.up(&parts.nested_offset);
    }
    struct nb_weight view(int rows) const
    {
        struct nb_weight w = {};
        w.format = NB_WEIGHT_NF4, w.nested = true, w.rows = rows, w.columns = IN;
        w.data = nb_dptr_at(slab.at, layout.packed);
        w.absmax = nb_dptr_at(slab.at, layout.absmax);
        w.nested_absmax = nb_dptr_at(slab.at, layout.nested_absmax);
        w.nested_map = nb_dptr_at(slab.at, layout.nested_map);
        w.nested_offset = offset.at;
        w.codebook = nb_dptr_at(slab.at, layout.codebook);
        return w;
    }
};

/* Both ops' buffers, over TOKENS rows. */
struct bench {
    const machine &m;
    weight w, w_too;
    memory x, step, slot, dx, dy, a[PARTS], b[PARTS], t[PARTS], y[PARTS], da[PARTS], db[PARTS], scratch;
    float dropout;
    std::vector<nb_bf16> x_host, dy_host; /* the parts' dy side by side */

    bench(const machine &on, float drop, size_t scratch_bytes)
        : m(on), w(on, OUT), w_too(on, OUT_TOO), x(on, (size_t)TOKENS * IN * 2), step(on, sizeof(struct nb_step)),
          slot(on, sizeof(struct nb_slot)), dx(on, (size_t)TOKENS * IN * 2), dy(on, (size_t)TOKENS * DY * 2),
          a{{on, RANK * IN * 2}, {on, RANK * IN * 2}},
          b{{on, OUT * RANK * 2}, {on, OUT_TOO * RANK * 2}}, t{{on, TOKENS * RANK * 2}, {on, TOKENS * RANK * 2}},
          y{{on, TOKENS * OUT * 2}, {on, TOKENS * OUT_TOO * 2}},
          da{{on, RANK * IN * 4}, {on, RANK * IN * 4}}, db{{on, OUT * RANK * 4}, {on, OUT_TOO * RANK * 4}}, scratch(on, scratch_bytes),
          dropout(drop)
    {
        struct nb_step values = {};
        values.random_step = 3, values.seed[0] = 5, values.seed[1] = 7;
        step.up(&values);
        for (int p = 0; p < PARTS; p++) {
            a[p].up(random_matrix(RANK * IN, 0.1f).data());
            b[p].up(random_matrix((size_t)outs[p] * RANK, 0.3f).data());
            da[p].up(std::vector<float>(RANK * IN).data());
            db[p].up(std::vector<float>((size_t)outs[p] * RANK).data());
        }
        x_host = random_matrix((size_t)TOKENS * IN, 1);
        dy_host = random_matrix((size_t)TOKENS * DY, 1);
        fill();
    }
    void fill() const
    {
        x.up(x_host.data());
        dy.up(dy_host.data());
    }
    /* Everything that the ops write. */
    void clear() const
    {
        std::vector<char> zeros((size_t)TOKENS * OUT * 2 + (size_t)TOKENS * IN * 2);
        dx.up(zeros.data());
        for (int p = 0; p < PARTS; p++) {
            t[p].up(zeros.data());
            y[p].up(zeros.data());
        }
    }
    template <class A> void bind(A *args, int begin, int tokens) const
    {
        args->x = nb_dptr_at(x.at, (uint64_t)begin * IN * 2);
        args->step = step.at, args->slot = slot.at;
        args->tokens_max = tokens, args->in = IN, args->x_stride = IN, args->parts = PARTS;
        args->activation = NB_DTYPE_BF16;
        args->site_tokens = TOKENS;
        args->scratch.base = scratch.at, args->scratch.bytes = scratch.bytes;
        for (int p = 0; p < PARTS; p++) {
            struct nb_linear_part *part = &args->part[p];
            part->weight = (p == 0 ? w : w_too).view(outs[p]);
            part->out = part->y_stride = outs[p];
            part->output_scale = p == 0 || dropout == 0 ? 1.0f : 0.75f; /* alike, cuBLASLt takes both parts' dX at once */
            part->lora.a = a[p].at, part->lora.b = b[p].at;
            part->lora.t = nb_dptr_at(t[p].at, (uint64_t)begin * RANK * 2);
            part->lora.rank = RANK, part->lora.scale = 2, part->lora.dropout = dropout, part->lora.module = 77 + (uint64_t)p;
        }
    }
    struct nb_linear forward(int begin, int tokens) const
    {
        struct nb_linear args = {};
        bind(&args, begin, tokens);
        for (int p = 0; p < PARTS; p++)
            args.part[p].y = nb_dptr_at(y[p].at, (uint64_t)begin * (uint64_t)outs[p] * 2);
        return args;
    }
    struct nb_linear_backward backward(int begin, int tokens) const
    {
        struct nb_linear_backward args = {};
        bind(&args, begin, tokens);
        args.dx = nb_dptr_at(dx.at, (uint64_t)begin * IN * 2), args.dx_stride = IN;
        for (int p = 0; p < PARTS; p++) {
            args.part[p].y = nb_dptr_at(dy.at, ((uint64_t)begin * DY + (p == 0 ? 0 : OUT)) * 2), args.part[p].y_stride = DY;
            args.part[p].lora.da = da[p].at, args.part[p].lora.db = db[p].at;
        }
        return args;
    }
    void set_slot(int begin, int tokens) const
    {
        struct nb_slot values = {};
        int left = VALID - begin;
        values.tokens = (uint32_t)(left < tokens ? left : tokens), values.token_offset = 1000 + (uint32_t)begin;
        slot.up(&values);
    }
    void enqueue(int begin, int tokens) const
    {
        struct nb_linear args = forward(begin, tokens);
        struct nb_linear_backward back = backward(begin, tokens);
        must(m.device->linear(m.device, m.stream, &args));
        must(m.device->linear_backward(m.device, m.stream, &back));
    }
    void run(int begin, int tokens) const
    {
        set_slot(begin, tokens);
        enqueue(begin, tokens);
        must(m.device->stream_wait(m.device, m.stream));
    }
};

struct results {
    std::vector<nb_bf16> y[PARTS], dx;
    explicit results(const bench &b) : dx(b.dx.down())
    {
        for (int p = 0; p < PARTS; p++)
            y[p] = b.y[p].down();
    }
};

void expect_rows(const char *path, const char *what, const results &want, const results &got, int begin, int end)
{
    bool same = memcmp(&want.dx[(size_t)begin * IN], &got.dx[(size_t)begin * IN], (size_t)(end - begin) * IN * 2) == 0;
    for (int p = 0; p < PARTS; p++) {
        size_t width = (size_t)outs[p], from = (size_t)begin * width;
        same = same && memcmp(&want.y[p][from], &got.y[p][from], (size_t)(end - begin) * width * 2) == 0;
    }
    if (!same) {
        failures++;
        printf("%s: rows %d to %d differ: %s\n", path, begin, end - 1, what);
    }
}

/* Against the first path's: the same but for the roundings of a library, which stay under 3 in 256 of the largest. */
void expect_near(const char *path, const std::vector<nb_bf16> &want, const std::vector<nb_bf16> &got, size_t count)
{
    float largest = 0, worst = 0;
    for (size_t i = 0; i < count; i++) {
        float wanted = nb_bf16_to_float(want[i]), off = nb_bf16_to_float(got[i]) - wanted;
        largest = wanted > largest ? wanted : -wanted > largest ? -wanted : largest;
        worst = !(off <= worst && -off <= worst) ? (off < 0 ? -off : off) : worst;
    }
    if (!(worst <= largest * (3.0f / 256))) {
        failures++;
        printf("%s: off by %g, the largest being %g\n", path, (double)worst, (double)largest);
    }
}

/* first: the results of the first path, or NULL, and then they are returned. */
std::unique_ptr<results> check_path(const char *name, const machine &m, float dropout, const results *first)
{
    state = 1;
    bench b(m, dropout, (size_t)8 << 20);
    struct nb_linear whole = b.forward(0, TOKENS);
    struct nb_linear_backward whole_back = b.backward(0, TOKENS);
    const struct nb_device_profile *profile = &m.device->profile;
    uint64_t need = m.device->linear_scratch_bytes(profile, &whole);
    uint64_t back_need = m.device->linear_backward_scratch_bytes(profile, &whole_back);
    if (need > b.scratch.bytes || back_need > b.scratch.bytes) {
        failures++;
        printf("%s: %zu and %zu bytes of scratch\n", name, (size_t)need, (size_t)back_need);
        return nullptr;
    }
    b.clear();
    b.run(0, TOKENS);
    const results want(b);
    if (first) {
        expect_near(name, first->dx, want.dx, (size_t)VALID * IN);
        for (int p = 0; p < PARTS; p++)
            expect_near(name, first->y[p], want.y[p], (size_t)VALID * (size_t)outs[p]);
    }
    b.clear();
    for (int begin = 0; begin < TOKENS; begin += CHUNK)
        b.run(begin, TOKENS - begin < CHUNK ? TOKENS - begin : CHUNK);
    expect_rows(name, "in chunks of tokens", want, results(b), 0, VALID);
    const int row = 77;
    b.clear();
    b.run(row, 1);
    expect_rows(name, "a row alone", want, results(b), row, row + 1);
    std::vector<nb_bf16> others = random_matrix((size_t)TOKENS * IN, 3);
    memcpy(&others[(size_t)row * IN], &b.x_host[(size_t)row * IN], IN * 2);
    b.x_host = others;
    others = random_matrix((size_t)TOKENS * DY, 3);
    memcpy(&others[(size_t)row * DY], &b.dy_host[(size_t)row * DY], DY * 2);
    b.dy_host = others;
    b.fill();
    b.clear();
    b.run(0, TOKENS);
    const results changed(b);
    expect_rows(name, "a row among others", want, changed, row, row + 1);
    if (memcmp(&want.dx[0], &changed.dx[0], IN * 2) == 0 || memcmp(&want.y[0][0], &changed.y[0][0], OUT * 2) == 0) {
        failures++;
        printf("%s: other rows gave the same results\n", name);
    }
    struct nb_graph *graph = NULL;
    b.clear();
    must(m.device->graph_begin(m.device, m.stream));
    b.enqueue(0, TOKENS);
    must(m.device->graph_end(m.device, m.stream, &graph));
    must(m.device->graph_launch(m.device, m.stream, graph));
    must(m.device->stream_wait(m.device, m.stream));
    expect_rows(name, "out of a graph", changed, results(b), 0, VALID);
    m.device->graph_destroy(m.device, &graph);
    return first ? nullptr : std::unique_ptr<results>(new results(want));
}

} /* namespace */

int main()
{
    /* One multiprocessor: its chunks of scratch are small, so that a product takes several. */
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    gpu.multiprocessors = 1;
    nb_emulator_gpu_set(&gpu);
    nb_emulator_seed(8);
    std::unique_ptr<results> first[2];
    for (int library = 0; library < 2; library++) {
        for (int path = NB_PRODUCT_FUSED; path <= NB_PRODUCT_OVERLAPPED; path++) {
            struct nb_cuda_options options = {};
            struct nb_device_profile profile;
            options.own_products = library == 0;
            must(nb_cuda_probe(&options, &profile));
            const struct nb_product_choice choice[] = {
                {OUT, IN, TOKENS, false, (enum nb_product_path)path},
                {OUT_TOO, IN, TOKENS, false, (enum nb_product_path)path},
                {OUT + OUT_TOO, IN, TOKENS, true, (enum nb_product_path)path},
            };
            struct nb_product_table table = {};
            table.cublaslt_version = profile.cublaslt_version, table.count = 3, table.choice = choice;
            snprintf(table.device, sizeof table.device, "%s", profile.name);
            options.products = &table;
            machine m(options);
            char name[80];
            for (int dropped = 0; dropped < 2; dropped++) {
                snprintf(name, sizeof name, "%s, %s%s", library ? "cuBLASLt" : "own kernels",
                    nb_product_path_name((enum nb_product_path)path), dropped ? ", dropout" : "");
                std::unique_ptr<results> kept = check_path(name, m, dropped ? 0.25f : 0.0f, first[dropped].get());
                if (kept)
                    first[dropped] = std::move(kept);
            }
        }
    }
    printf("%d failures\n", failures);
    return failures ? 1 : 0;
}
