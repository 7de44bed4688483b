/* Training on a GPU that is not ours alone, and a host that pins no more: what is told, that what fits goes on to its
 * end whatever others take, and that the bits stay.
 *
 *   test_faults MODELS      MODELS: the folder of tiny models, tests/golden/models */
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "emulator/cuda_runtime.h"

extern "C" {
#include "base/file.h"
#include "support/deep_model.h"
#include "train/checkpoint_state.h"
#include "train/device.h"
#include "train/evaluate.h"
#include "train/plan.h"
#include "train/step.h"
#include "train/trainer.h"
}

namespace
{

enum { LAYERS = 5, STEPS = 4, ROWS = 8, LONGEST = 24 };

int failures = 0;

#define CHECK(condition)                                                                                    \
    do {                                                                                                    \
        if (!(condition)) {                                                                                 \
            fprintf(stderr, "%s:%d: %s fails (%s)\n", __FILE__, __LINE__, #condition, nb_status_message()); \
            failures++;                                                                                     \
        }                                                                                                   \
    } while (0)

void check_says(const std::string &said, std::initializer_list<const char *> words)
{
    for (const char *word : words)
        if (said.find(word) == std::string::npos) {
            fprintf(stderr, "  \"%s\" is not in: %s\n", word, said.c_str());
            failures++;
        }
}

std::string folder, model;

/* The last row is the longest, and comes late. */
void write_rows()
{
    FILE *file = fopen((folder + "/rows.jsonl").c_str(), "w");
    for (int r = 0; r < ROWS; r++) {
        fputs("{\"input_ids\": [", file);
        for (int i = 0, length = r == ROWS - 1 ? LONGEST : 6 + r; i < length; i++)
            fprintf(file, "%s%d", i ? ", " : "", 3 + (r * 31 + i * 17) % 200);
        fputs("]}\n", file);
    }
    fclose(file);
}

std::string yaml_of(const std::string &out, const std::string &more)
{
    return "base_model: " + model +
           "\nadapter: qlora\nlora_r: 8\nlora_target_linear: true\nlearning_rate: 1e-3\nsequence_len: " +
           std::to_string(LONGEST) +
           "\nmicro_batch_size: 2\nval_set_size: 2\ngradient_checkpointing: true\ndevice: cuda\n" +
           "datasets: [{path: " + folder + "/rows.jsonl, type: tokens}]\noutput_dir: " + folder + "/" + out + "\n" +
           more;
}

const char everything_leaves[] =
    "optimizer: paged_adamw_8bit\nresident_optimizer_bytes: 0\nactivation_offloading: true\n"
    "resident_layers: 0\n";

/* What else runs on the GPU, and how much the host pins beside what it has pinned. */
void set_machine(size_t others_bytes, size_t pinned_bytes)
{
    struct nb_emulator_gpu gpu = nb_emulator_gpu_default();
    gpu.others_bytes = others_bytes;
    gpu.pinned_bytes = pinned_bytes;
    nb_emulator_gpu_set(&gpu);
}

/* ---- a run up to its session ---- */

struct opened {
    struct nb_config config = {};
    struct nb_run *run = nullptr;
    struct nb_plan plan = {};
    struct nb_session *session = nullptr;
    struct nb_stepper *stepper = nullptr;

    explicit opened(const std::string &yaml)
    {
        struct nb_run_args args = {};
        args.config = &config;
        args.purpose = NB_PURPOSE_TRAIN;
        CHECK(nb_config_parse(yaml.c_str(), yaml.size(), "test.yml", nullptr, 0, &config) == NB_OK);
        CHECK(nb_config_validate_train(&config) == NB_OK);
        CHECK(nb_run_open(&args, &run) == NB_OK);
        CHECK(nb_plan_make(run, &plan) == NB_OK);
        CHECK(nb_run_open_device(run, plan.site, plan.sites) == NB_OK);
    }
    opened(const opened &) = delete;
    opened &operator=(const opened &) = delete;
    ~opened()
    {
        nb_stepper_destroy(&stepper);
        nb_session_close(&session);
        nb_plan_destroy(&plan);
        nb_run_destroy(&run);
        nb_config_destroy(&config);
    }
    nb_status open_session()
    {
        struct nb_session_args args = {};
        args.capacity = plan.peak_bytes;
        args.pinned_capacity = plan.pinned_bytes;
        args.host = &plan.host;
        args.positions_max = run->sequence_len;
        return nb_session_open(run, &args, &session);
    }
    void make_stepper()
    {
        struct nb_stepper_options options = nb_stepper_options_of(run);
        CHECK(nb_stepper_create(session, &options, &stepper) == NB_OK);
    }
    double step(int number)
    {
        struct nb_step_rows rows;
        struct nb_step_result result = {};
        int64_t per_epoch = run->length.steps_per_epoch;
        CHECK(nb_batch_plan_step(run->batches, (uint64_t)((number - 1) / per_epoch),
                  (uint32_t)((number - 1) % per_epoch), &rows) == NB_OK);
        CHECK(nb_stepper_run(stepper, run->data, &rows, number, run->config->learning_rate, &result) == NB_OK);
        return result.loss;
    }
    double evaluate()
    {
        struct nb_evaluation evaluation = {};
        struct nb_evaluate_args args = {};
        args.session = session;
        args.dataset = run->eval_data;
        args.rows = run->eval_rows;
        args.row_count = run->eval_count;
        nb_stepper_destroy(&stepper);
        CHECK(nb_evaluate(&args, &evaluation) == NB_OK);
        double loss = evaluation.loss_sum;
        nb_evaluation_free(&evaluation);
        make_stepper();
        return loss;
    }
    void check_plan() const
    {
        CHECK(nb_arena_high_water(session->arena) == plan.peak_bytes);
        CHECK(nb_arena_high_water(session->pinned) == plan.pinned_bytes);
    }
};

/* ---- the card is shared ---- */

/* Between the plan and the arena: what was free then and is now, and what to do; nothing stays taken. */
void memory_that_another_process_took_is_told()
{
    set_machine(0, SIZE_MAX);
    opened o(yaml_of("out", everything_leaves));
    set_machine(nb_emulator_gpu_default().memory_bytes - ((size_t)300 << 20), SIZE_MAX);
    uint64_t now = 0;
    CHECK(o.run->device->memory_available(o.run->device, &now) == NB_OK);
    o.plan.peak_bytes = (uint64_t)1 << 30;
    CHECK(o.open_session() == NB_MEMORY);
    char then_text[32], now_text[32];
    snprintf(then_text, sizeof then_text, "%.1f MiB could be taken", 0x1p-20 * (double)o.run->free_bytes);
    snprintf(now_text, sizeof now_text, "now it is %.1f", 0x1p-20 * (double)now);
    check_says(nb_status_message(), {"emulated GPU", "the plan of 1024.0 MiB", then_text, now_text, "another process",
                                        "nvidia-smi", "memory_budget"});
    set_machine(0, SIZE_MAX);
    CHECK(o.open_session() == NB_OK);
}

/* After the first step others take all the rest: what is trained, evaluated and saved is the same. */
void a_process_that_grows_does_no_harm()
{
    std::vector<double> losses[2];
    for (int full = 0; full < 2; full++) {
        set_machine(0, SIZE_MAX);
        opened o(yaml_of(full ? "full" : "alone", everything_leaves));
        struct nb_run_folder *at = nullptr;
        struct nb_trainer_state state = {};
        CHECK(o.open_session() == NB_OK);
        o.make_stepper();
        CHECK(nb_run_folder_open(o.config.output_dir, false, &at) == NB_OK);
        losses[full].push_back(o.step(1));
        int allocations = nb_emulator_calls("cudaMalloc");
        set_machine(full ? nb_emulator_gpu_default().memory_bytes : 0, SIZE_MAX);
        for (int step = 2; step <= STEPS; step++) {
            losses[full].push_back(o.step(step));
            losses[full].push_back(o.evaluate());
            state.step = step;
            CHECK(nb_checkpoint_state_save(o.session, at, &state) == NB_OK);
        }
        CHECK(nb_emulator_calls("cudaMalloc") == allocations);
        o.check_plan();
        nb_run_folder_close(&at);
    }
    CHECK(losses[0] == losses[1]);
}

/* The program's own loop: as many allocations for one step as for all of them with evaluation and checkpoints. */
void nothing_is_taken_after_the_first_step()
{
    int taken[2];
    for (int many = 0; many < 2; many++) {
        set_machine(0, SIZE_MAX);
        std::string yaml = yaml_of(
            many ? "many" : "one", std::string(everything_leaves) +
                                       (many ? "max_steps: 5\neval_steps: 1\nsave_steps: 1\n" : "max_steps: 1\n"));
        struct nb_config config = {};
        struct nb_train_options options = {};
        int before = nb_emulator_calls("cudaMalloc");
        CHECK(nb_config_parse(yaml.c_str(), yaml.size(), "test.yml", nullptr, 0, &config) == NB_OK);
        CHECK(nb_config_validate_train(&config) == NB_OK);
        CHECK(nb_train(&config, &options) == NB_OK);
        nb_config_destroy(&config);
        taken[many] = nb_emulator_calls("cudaMalloc") - before;
    }
    CHECK(taken[0] >= 1 && taken[0] == taken[1]);
}

/* ---- the host pins no more ---- */

void refused_pinned_memory_changes_no_bit()
{
    std::vector<double> losses[3];
    static const char *const pinned[3] = {"auto", "auto", "false"};
    for (int way = 0; way < 3; way++) {
        set_machine(0, SIZE_MAX);
        opened o(yaml_of("out", std::string(everything_leaves) + "pinned: " + pinned[way] + "\n"));
        if (way == 1)
            set_machine(0, o.plan.pinned_bytes); /* some is taken already */
        CHECK(o.open_session() == NB_OK);
        CHECK(o.session->host.pageable == (way > 0));
        o.make_stepper();
        for (int step = 1; step <= STEPS; step++) {
            losses[way].push_back(o.step(step));
            losses[way].push_back(o.evaluate());
        }
        o.check_plan();
        CHECK(losses[way] == losses[0]);
    }
    opened o(yaml_of("out", std::string(everything_leaves) + "pinned: true\n"));
    set_machine(0, o.plan.pinned_bytes);
    CHECK(o.open_session() == NB_MEMORY);
    check_says(
        nb_status_message(), {"cannot pin", "MiB of pinned host memory", "leaves", "pinned: auto", "resident_layers"});
    set_machine(0, SIZE_MAX);
}

/* Nothing is kept off the device, but batches, losses and weights that are loaded pass through host memory as well. */
void copies_do_without_pinned_memory()
{
    std::vector<double> losses[3];
    static const char *const pinned[3] = {"auto", "auto", "false"};
    for (int way = 0; way < 3; way++) {
        set_machine(0, SIZE_MAX);
        opened o(yaml_of("out", std::string("pinned: ") + pinned[way] + "\n"));
        CHECK(o.plan.pinned_bytes == 0);
        set_machine(0, way ? 0 : SIZE_MAX);
        CHECK(o.open_session() == NB_OK);
        CHECK((o.run->device->host_memory == NB_HOST_PAGEABLE) == (way > 0));
        o.make_stepper();
        for (int step = 1; step <= STEPS; step++) {
            losses[way].push_back(o.step(step));
            losses[way].push_back(o.evaluate());
        }
        CHECK(losses[way] == losses[0]);
    }
    set_machine(0, SIZE_MAX);
    opened o(yaml_of("out", "pinned: true\n"));
    set_machine(0, 0);
    CHECK(o.open_session() == NB_MEMORY);
    check_says(nb_status_message(), {"cannot pin"});
    set_machine(0, SIZE_MAX);
}

} /* namespace */

int main(int argc, char **argv)
{
    char name[] = "/tmp/nibble-faults-XXXXXX";
    if (argc < 2 || !mkdtemp(name))
        return 2;
    folder = name;
    model = folder + "/deep";
    CHECK(nb_test_write_deep_model((std::string(argv[1]) + "/llama").c_str(), LAYERS, model.c_str()) == NB_OK);
    write_rows();
    nb_emulator_seed(3);
    memory_that_another_process_took_is_told();
    a_process_that_grows_does_no_harm();
    nothing_is_taken_after_the_first_step();
    refused_pinned_memory_changes_no_bit();
    copies_do_without_pinned_memory();
    struct nb_emulator_left left = nb_emulator_left();
    CHECK(left.device + left.pinned + left.streams + left.events + left.graphs == 0);
    CHECK(nb_remove_folder(name) == NB_OK);
    printf("%d failures\n", failures);
    return failures ? 1 : 0;
}
