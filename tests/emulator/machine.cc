/* Blocks, fibers and what brings them together. */
#include "emulator/machine.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>

#include "emulator/workers.h"

__thread struct nb_machine *nb_machine_here __attribute__((tls_model("initial-exec")));

static const char *fault_names[] = {"no fault", "race", "out of bounds", "misaligned", "uninitialized", "deadlock",
    "divergent barrier", "bad launch", "bad instruction"};

static const char *operation_names[] = {"nothing", "shuffle_xor", "shuffle", "shuffle_up", "ballot", "warp_any",
    "warp_all", "warp_barrier", "block_barrier", "block_any", "named_barrier", "named_arrive", "ldmatrix_x2",
    "ldmatrix_x4", "ldmatrix_x2_trans", "ldmatrix_x4_trans", "mma"};

const char *nb_operation_name(int operation)
{
    return operation_names[operation];
}

static void format_block(const struct nb_machine *machine, char text[64])
{
    if (machine->grid->grid[1] == 1 && machine->grid->grid[2] == 1)
        snprintf(text, 64, "block %u", machine->block[0]);
    else
        snprintf(text, 64, "block (%u, %u, %u)", machine->block[0], machine->block[1], machine->block[2]);
}

void nb_machine_fault(
    struct nb_machine *machine, enum nb_emulator_fault_kind kind, const void *place, const char *format, ...)
{
    char what[768], where[512], block[64], message[1536];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof what, format, arguments);
    va_end(arguments);
    nb_fault_describe_place(place, where, sizeof where);
    format_block(machine, block);
    snprintf(message, sizeof message, "%s: kernel %s, %s, thread %u: %s%s; seed %llu", fault_names[kind],
        machine->grid->name, block, machine->lane->thread, what, where, (unsigned long long)nb_emulator_seed_value());
    nb_fault_record(kind, machine->order, message);
    nb_fiber_switch(&machine->lane->fiber, &machine->scheduler);
    abort(); /* nobody goes on with a fiber of a block that was given up */
}

/* ---- which fiber is next ---- */

static struct nb_lane *pick_lane(struct nb_machine *machine, const struct nb_warp *warp)
{
    unsigned r = warp->rotation;
    uint32_t turned = warp->runnable >> r | warp->runnable << ((32 - r) & 31);
    unsigned i = warp->descending ? 31u - (unsigned)__builtin_clz(turned) : (unsigned)__builtin_ctz(turned);
    return &machine->lanes[warp->index * NB_LANES + ((i + r) & 31)];
}

static void draw_order(struct nb_machine *machine, struct nb_warp *warp)
{
    uint64_t drawn = nb_machine_random(machine);
    warp->rotation = drawn & 31;
    warp->descending = drawn >> 5 & 1;
}

static struct nb_warp *pick_warp(struct nb_machine *machine)
{
    unsigned r = nb_machine_random(machine) & 31;
    uint32_t turned = machine->ready >> r | machine->ready << ((32 - r) & 31);
    return &machine->warp[((unsigned)__builtin_ctz(turned) + r) & 31];
}

static void go_on_with(struct nb_machine *machine, struct nb_lane *lane)
{
    struct nb_lane *from = machine->lane;
    machine->lane = lane;
    if (from != lane)
        nb_fiber_switch(&from->fiber, &lane->fiber);
}

static bool waits_at_block_barrier(const struct nb_warp *warp)
{
    return warp->arrived == UINT32_MAX &&
           (warp->operation == NB_OPERATION_BLOCK_BARRIER || warp->operation == NB_OPERATION_BLOCK_ANY);
}

/* Where warp `w` waits, in words; the source line for the first few warps (it takes a while). */
static void describe_warp(const struct nb_machine *machine, int w, char *text, size_t bytes)
{
    const struct nb_warp *warp = &machine->warp[w];
    const struct nb_lane *waiting = NULL;
    for (int l = NB_LANES - 1; l >= 0; l--) {
        const struct nb_lane *lane = &machine->lanes[w * NB_LANES + l];
        if (lane->waits_for || (warp->arrived >> l & 1))
            waiting = lane;
    }
    char where[256] = "";
    if (waiting && w < 4)
        nb_fault_describe_place(waiting->place, where, sizeof where);
    if (!waiting)
        snprintf(text, bytes, "warp %d has exited", w);
    else if (waiting->waits_for)
        snprintf(text, bytes, "warp %d waits for the mbarrier at shared byte %u, %d of its %d arrivals are missing%s",
            w, waiting->waits_for->offset, waiting->waits_for->pending, waiting->waits_for->arrivals, where);
    else if (warp->operation == NB_OPERATION_NAMED_BARRIER)
        snprintf(text, bytes, "warp %d waits at named barrier %d, %d of its %d threads are there%s", w, warp->barrier,
            machine->named[warp->barrier].arrived, machine->named[warp->barrier].threads, where);
    else
        snprintf(
            text, bytes, "warp %d: lanes %08x wait at %s%s", w, warp->arrived, operation_names[warp->operation], where);
}

/* Nobody can run. Says who waits where. */
[[noreturn]] static void report_stuck(struct nb_machine *machine)
{
    char text[640] = "";
    size_t used = 0;
    bool divergent = false, at_barrier = false, exited = false;
    for (int w = 0; w < machine->warps; w++) {
        const struct nb_warp *warp = &machine->warp[w];
        divergent |= warp->arrived && warp->arrived != UINT32_MAX;
        at_barrier |= waits_at_block_barrier(warp);
        exited |= warp->exited == UINT32_MAX;
        char here[384];
        describe_warp(machine, w, here, sizeof here);
        if (used < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", w ? "; " : "", here);
    }
    nb_machine_fault(machine,
        divergent || (at_barrier && exited) ? NB_EMULATOR_DIVERGENT_BARRIER : NB_EMULATOR_DEADLOCK, NULL,
        "no thread can go on: %s", text);
}

static void next_fiber(struct nb_machine *machine)
{
    while (!machine->ready)
        if (!nb_copies_land_late(machine))
            report_stuck(machine);
    go_on_with(machine, pick_lane(machine, pick_warp(machine)));
}

void nb_machine_suspend(struct nb_machine *machine)
{
    struct nb_lane *lane = machine->lane;
    struct nb_warp *warp = lane->warp;
    warp->runnable &= ~(1u << lane->index);
    if (warp->runnable) {
        go_on_with(machine, pick_lane(machine, warp));
        return;
    }
    machine->ready &= ~(1u << warp->index);
    next_fiber(machine);
}

void nb_machine_yield(struct nb_machine *machine)
{
    uint64_t drawn = nb_machine_random(machine);
    machine->fuse = 1 + (drawn & 255);
    if (drawn >> 8 & 1) {
        draw_order(machine, machine->lane->warp);
        go_on_with(machine, pick_lane(machine, machine->lane->warp));
    } else {
        next_fiber(machine);
    }
}

void nb_machine_wake(struct nb_machine *machine, struct nb_warp *warp, uint32_t lanes)
{
    warp->runnable |= lanes;
    machine->ready |= 1u << warp->index;
}

/* ---- warps ---- */

bool nb_machine_arrive(struct nb_machine *machine, enum nb_operation operation, const void *place)
{
    struct nb_lane *lane = machine->lane;
    lane->place = place;
    struct nb_warp *warp = lane->warp;
    if (warp->exited)
        nb_machine_fault(machine, NB_EMULATOR_DIVERGENT_BARRIER, place,
            "is at %s, but lanes %08x of its warp have exited", operation_names[operation], warp->exited);
    if (!warp->arrived)
        warp->operation = (uint8_t)operation;
    else if (warp->operation != operation)
        nb_machine_fault(machine, NB_EMULATOR_DIVERGENT_BARRIER, place,
            "is at %s, but lanes %08x of its warp are at %s", operation_names[operation], warp->arrived,
            operation_names[warp->operation]);
    warp->arrived |= 1u << lane->index;
    if (warp->arrived == UINT32_MAX)
        return true;
    nb_machine_suspend(machine);
    return false;
}

void nb_machine_release(struct nb_machine *machine)
{
    struct nb_warp *warp = machine->lane->warp;
    warp->arrived = 0;
    warp->turn ^= 1;
    nb_machine_wake(machine, warp, UINT32_MAX);
    draw_order(machine, warp);
    nb_machine_burn(machine);
}

/* ---- barriers of the block ---- */

static void release_block(struct nb_machine *machine)
{
    machine->floor = machine->now++;
    machine->at_block_barrier = 0;
    for (int w = 0; w < machine->warps; w++) {
        struct nb_warp *warp = &machine->warp[w];
        warp->arrived = 0;
        warp->any = machine->any;
        nb_machine_wake(machine, warp, UINT32_MAX);
        draw_order(machine, warp);
    }
    machine->any = false;
    next_fiber(machine);
}

static void arrive_at_block(struct nb_machine *machine, enum nb_operation operation, const void *place)
{
    if (!nb_machine_arrive(machine, operation, place))
        return;
    int first = machine->lane->warp->index ? 0 : machine->warps - 1;
    const struct nb_warp *other = &machine->warp[first];
    if (machine->at_block_barrier && other->arrived == UINT32_MAX && other->operation != operation &&
        (other->operation == NB_OPERATION_BLOCK_BARRIER || other->operation == NB_OPERATION_BLOCK_ANY))
        nb_machine_fault(machine, NB_EMULATOR_DIVERGENT_BARRIER, place, "is at %s, but warp %d is at %s",
            operation_names[operation], first, operation_names[other->operation]);
    if (++machine->at_block_barrier == machine->warps)
        release_block(machine);
    else
        nb_machine_suspend(machine);
}

extern "C" void nb_emulator_block_barrier(void)
{
    arrive_at_block(nb_machine_here, NB_OPERATION_BLOCK_BARRIER, __builtin_return_address(0));
}

extern "C" bool nb_emulator_block_any(bool condition)
{
    struct nb_machine *machine = nb_machine_here;
    machine->any |= condition;
    const struct nb_warp *warp = machine->lane->warp;
    arrive_at_block(machine, NB_OPERATION_BLOCK_ANY, __builtin_return_address(0));
    return warp->any;
}

/* ---- a block's life ---- */

static void exit_lane(struct nb_machine *machine)
{
    struct nb_lane *lane = machine->lane;
    struct nb_warp *warp = lane->warp;
    if (lane->landed < lane->copies.size())
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, NULL,
            "exits with %zu asynchronous copies under way: wait for them", lane->copies.size() - lane->landed);
    if (warp->arrived)
        nb_machine_fault(machine, NB_EMULATOR_DIVERGENT_BARRIER, NULL, "exits, but lanes %08x of its warp are at %s",
            warp->arrived, operation_names[warp->operation]);
    warp->exited |= 1u << lane->index;
    if (--machine->living == 0)
        nb_fiber_switch(&lane->fiber, &machine->scheduler);
    else
        nb_machine_suspend(machine);
    abort(); /* an exited fiber does not go on */
}

static void lane_entry(void)
{
    nb_machine_here->grid->body();
    exit_lane(nb_machine_here);
}

static uint64_t mixed(uint64_t x)
{
    /* splitmix64's finalizer */
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void reset_lane(struct nb_machine *machine, int thread)
{
    struct nb_lane *lane = &machine->lanes[thread];
    lane->thread = (uint16_t)thread;
    lane->index = (uint8_t)(thread % NB_LANES);
    lane->warp = &machine->warp[thread / NB_LANES];
    lane->stack = nb_fiber_stack(&machine->stacks, thread);
    lane->copies.clear();
    lane->landed = lane->groups = 0;
    lane->waits_for = NULL;
    /* Tops at different lines of the cache, for all stacks are in use at once. */
    nb_fiber_start(&lane->fiber, lane->stack, NB_FIBER_STACK_BYTES - (size_t)(thread * 5 % 61) * 64, lane_entry);
}

static void reset_block(
    struct nb_machine *machine, const struct nb_emulator_grid *grid, uint64_t block, uint64_t order, uint64_t seed)
{
    machine->grid = grid;
    machine->threads = grid->threads, machine->warps = grid->threads / NB_LANES;
    machine->block_linear = block, machine->order = order;
    machine->block[0] = (unsigned)(block % grid->grid[0]);
    machine->block[1] = (unsigned)(block / grid->grid[0] % grid->grid[1]);
    machine->block[2] = (unsigned)(block / grid->grid[0] / grid->grid[1]);
    machine->random = mixed(seed ^ mixed(block)) | 1;
    machine->fuse = 1 + (nb_machine_random(machine) & 255);
    machine->ready = machine->warps == 32 ? UINT32_MAX : (1u << machine->warps) - 1;
    machine->living = machine->threads;
    machine->at_block_barrier = 0;
    machine->any = false;
    machine->mma_order = (unsigned)(mixed(nb_emulator_seed_value() / 8) & 31);
    machine->threads_known = false;
    machine->mbarriers.clear();
    machine->late.clear();
    for (struct nb_named_barrier &named : machine->named)
        named.threads = named.arrived = 0, named.waiting = 0;
    for (int w = 0; w < machine->warps; w++) {
        struct nb_warp *warp = &machine->warp[w];
        warp->runnable = UINT32_MAX, warp->arrived = warp->exited = 0;
        warp->operation = NB_OPERATION_NONE, warp->turn = 0, warp->index = (uint8_t)w;
        draw_order(machine, warp);
    }
    for (int t = 0; t < machine->threads; t++)
        reset_lane(machine, t);
    nb_shared_reset(machine);
    nb_memory_block(machine);
}

static void machine_delete(struct nb_machine *machine)
{
    nb_fiber_stacks_destroy(&machine->stacks);
    nb_shared_destroy(machine);
    delete machine;
}

static struct nb_machine *machine_of_this_thread(void)
{
    struct deleter {
        void operator()(struct nb_machine *machine) const
        {
            machine_delete(machine);
        }
    };
    static thread_local std::unique_ptr<struct nb_machine, deleter> kept;
    if (!kept) {
        kept.reset(new struct nb_machine());
        nb_fiber_stacks_create(&kept->stacks, NB_THREADS_MAX);
        nb_shared_create(kept.get());
    }
    return kept.get();
}

/* ---- a launch ---- */

struct launch {
    const struct nb_emulator_grid *grid;
    uint64_t blocks, seed, step, start; /* the order of blocks: start + i * step modulo their number */
    std::atomic<uint64_t> next;
};

static void run_blocks(void *argument)
{
    struct launch *launch = (struct launch *)argument;
    struct nb_machine *machine = machine_of_this_thread();
    memset(machine->cache, 0, sizeof machine->cache);
    nb_machine_here = machine;
    for (;;) {
        uint64_t order = launch->next.fetch_add(1);
        if (order >= launch->blocks || order + 1 > nb_fault_order())
            break;
        uint64_t block = (uint64_t)((launch->start + (unsigned __int128)order * launch->step) % launch->blocks);
        reset_block(machine, launch->grid, block, order + 1, launch->seed);
        machine->lane = pick_lane(machine, pick_warp(machine));
        nb_fiber_switch(&machine->scheduler, &machine->lane->fiber);
    }
    nb_machine_here = NULL;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

static bool launch_is_possible(const struct nb_emulator_grid &grid)
{
    const char *why = NULL;
    if (grid.threads < 1 || grid.threads > NB_THREADS_MAX || grid.threads % NB_LANES)
        why = "threads must be a multiple of 32, at most 1,024";
    else if (grid.shared_bytes < 0 || grid.shared_bytes > NB_SHARED_MAX)
        why = "a block has at most 227 KiB of shared memory";
    else if (grid.grid[0] < 1 || grid.grid[1] < 1 || grid.grid[2] < 1)
        why = "the grid is empty";
    else if (grid.grid[0] > INT32_MAX || grid.grid[1] > 65535 || grid.grid[2] > 65535)
        why = "a grid has at most 2^31 - 1 blocks in x, 65,535 in y and z";
    if (why)
        nb_emulator_fail(NB_EMULATOR_BAD_LAUNCH,
            "bad launch: kernel %s, grid (%u, %u, %u), %d threads, %d bytes of shared memory: %s", grid.name,
            grid.grid[0], grid.grid[1], grid.grid[2], grid.threads, grid.shared_bytes, why);
    return !why;
}

bool nb_emulator_run(const struct nb_emulator_grid &grid)
{
    static std::mutex one_at_a_time;
    std::lock_guard<std::mutex> lock(one_at_a_time);
    if (nb_emulator_fault() != NB_EMULATOR_NO_FAULT || !launch_is_possible(grid))
        return false;
    struct launch launch;
    launch.grid = &grid;
    launch.blocks = (uint64_t)grid.grid[0] * grid.grid[1] * grid.grid[2];
    launch.seed = mixed(nb_emulator_seed_value() ^ mixed(nb_emulator_launch_number()));
    launch.start = launch.seed % launch.blocks;
    launch.step = mixed(launch.seed) % launch.blocks + 1;
    while (common_divisor(launch.step, launch.blocks) != 1)
        launch.step = launch.step % launch.blocks + 1;
    launch.next = 0;
    nb_fault_launch();
    nb_memory_launch(launch.blocks);
    nb_workers_run(run_blocks, &launch, launch.blocks);
    return nb_emulator_fault() == NB_EMULATOR_NO_FAULT;
}

/* ---- where a thread stands ---- */

extern "C" unsigned nb_emulator_thread_index(void)
{
    return nb_machine_here->lane->thread;
}
extern "C" unsigned nb_emulator_block_index(int axis)
{
    return nb_machine_here->block[axis];
}
extern "C" unsigned nb_emulator_block_threads(void)
{
    return (unsigned)nb_machine_here->threads;
}
extern "C" unsigned nb_emulator_grid_blocks(int axis)
{
    return nb_machine_here->grid->grid[axis];
}
extern "C" unsigned char *nb_emulator_shared(void)
{
    return nb_machine_here->shared;
}
