/* The barriers of less than a block: warps', named ones, mbarriers; and what a thread learns of others' work at
 * each. */
#include <algorithm>

#include "emulator/machine.h"

#define NB_PLACE __builtin_return_address(0)

/* How far `reader` has acquired of `thread`. */
static uint32_t knowledge(const struct nb_machine *machine, unsigned reader, unsigned thread)
{
    uint32_t known = std::max(machine->floor, machine->known[reader / NB_LANES][thread / NB_LANES]);
    return machine->threads_known ? std::max(known, machine->thread_known[(size_t)reader * machine->threads + thread])
                                  : known;
}

static uint32_t *row_of(struct nb_machine *machine, unsigned thread)
{
    return machine->thread_known.data() + (size_t)thread * machine->threads;
}

/* From now on single threads know more than their warps. */
static void use_rows(struct nb_machine *machine)
{
    if (machine->threads_known)
        return;
    machine->thread_known.assign((size_t)machine->threads * machine->threads, 0);
    machine->threads_known = true;
}

static void join(uint32_t *into, const uint32_t *from, int count)
{
    for (int i = 0; i < count; i++)
        into[i] = std::max(into[i], from[i]);
}

/* The lanes of a warp learn from each other what each alone had acquired. */
static void join_lanes(struct nb_machine *machine, const struct nb_warp *warp)
{
    if (!machine->threads_known)
        return;
    uint32_t *first = row_of(machine, warp->index * NB_LANES);
    for (int l = 1; l < NB_LANES; l++)
        join(first, first + (size_t)l * machine->threads, machine->threads);
    for (int l = 1; l < NB_LANES; l++)
        std::copy(first, first + machine->threads, first + (size_t)l * machine->threads);
}

extern "C" void nb_emulator_warp_barrier(void)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_warp *warp = machine->lane->warp;
    if (!nb_machine_arrive(machine, NB_OPERATION_WARP_BARRIER, NB_PLACE))
        return;
    machine->known[warp->index][warp->index] = machine->now++;
    join_lanes(machine, warp);
    nb_machine_release(machine);
}

/* ---- named barriers ---- */

static void release_named(struct nb_machine *machine, struct nb_named_barrier *named)
{
    for (int w = 0; w < machine->warps; w++) {
        if (!(named->waiting >> w & 1))
            continue;
        struct nb_warp *warp = &machine->warp[w];
        join(machine->known[w], named->known, machine->warps);
        if (machine->threads_known && !named->thread_known.empty()) {
            for (unsigned l = 0; l < NB_LANES; l++)
                join(row_of(machine, (unsigned)w * NB_LANES + l), named->thread_known.data(), machine->threads);
        }
        machine->known[w][w] = machine->now;
        warp->arrived = 0;
        warp->turn ^= 1;
        nb_machine_wake(machine, warp, UINT32_MAX);
    }
    machine->now++;
    named->waiting = 0;
    named->threads = named->arrived = 0;
}

/* The running lane's warp, all there, joins. */
static void join_named(struct nb_machine *machine, struct nb_named_barrier *named)
{
    struct nb_warp *warp = machine->lane->warp;
    if (!named->arrived) {
        std::fill(named->known, named->known + NB_WARPS_MAX, 0u);
        named->thread_known.clear();
    }
    join_lanes(machine, warp);
    join(named->known, machine->known[warp->index], machine->warps);
    if (machine->threads_known) {
        named->thread_known.resize((size_t)machine->threads, 0);
        join(named->thread_known.data(), row_of(machine, warp->index * NB_LANES), machine->threads);
    }
    named->known[warp->index] = machine->now++;
    named->arrived += NB_LANES;
}

extern "C" void nb_emulator_named_barrier(int id, int threads, bool wait)
{
    struct nb_machine *machine = nb_machine_here;
    struct nb_warp *warp = machine->lane->warp;
    if (id < 1 || id >= NB_NAMED_BARRIERS || threads < NB_LANES || threads % NB_LANES || threads > machine->threads)
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, NB_PLACE,
            "names barrier %d for %d threads: 1 to 15, and a multiple of 32 of the block's %d", id, threads,
            machine->threads);
    if (warp->arrived && (warp->barrier != id || warp->barrier_threads != threads))
        nb_machine_fault(machine, NB_EMULATOR_DIVERGENT_BARRIER, NB_PLACE,
            "is at named barrier %d (%d threads), its warp at %d (%d threads)", id, threads, warp->barrier,
            warp->barrier_threads);
    warp->barrier = (uint8_t)id;
    warp->barrier_threads = threads;
    if (!nb_machine_arrive(machine, wait ? NB_OPERATION_NAMED_BARRIER : NB_OPERATION_NAMED_ARRIVE, NB_PLACE))
        return;
    struct nb_named_barrier *named = &machine->named[id];
    if (named->arrived && named->threads != threads)
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, NB_PLACE,
            "names barrier %d for %d threads, others for %d", id, threads, named->threads);
    join_named(machine, named);
    named->threads = threads;
    if (wait)
        named->waiting |= 1u << warp->index;
    bool complete = named->arrived == threads;
    if (complete)
        release_named(machine, named);
    if (!wait)
        nb_machine_release(machine);
    else if (!complete)
        nb_machine_suspend(machine);
}

/* ---- mbarriers ---- */

static struct nb_mbarrier *find_mbarrier(struct nb_machine *machine, uint64_t *barrier, bool create, const void *place)
{
    uint32_t offset;
    if (!nb_shared_offset(machine, barrier, &offset) || offset + 8 > machine->shared_bytes)
        nb_machine_fault(
            machine, NB_EMULATOR_OUT_OF_BOUNDS, place, "uses an mbarrier at %p, not in shared memory", (void *)barrier);
    if (offset % 8)
        nb_machine_fault(machine, NB_EMULATOR_MISALIGNED, place, "uses an mbarrier at shared byte %u", offset);
    if (create) {
        nb_shared_write(machine, offset, 8, place);
        struct nb_mbarrier *made = &machine->mbarriers[offset];
        made->offset = offset;
        return made;
    }
    auto found = machine->mbarriers.find(offset);
    if (found == machine->mbarriers.end())
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, place,
            "uses the mbarrier at shared byte %u before it is initialized", offset);
    nb_shared_read(machine, offset, 8, place);
    return &found->second;
}

extern "C" void nb_emulator_mbarrier_init(uint64_t *barrier, int arrivals)
{
    struct nb_machine *machine = nb_machine_here;
    nb_machine_burn(machine);
    struct nb_mbarrier *made = find_mbarrier(machine, barrier, true, NB_PLACE);
    if (arrivals < 1 || arrivals >= 1 << 20)
        nb_machine_fault(
            machine, NB_EMULATOR_BAD_INSTRUCTION, NB_PLACE, "initializes an mbarrier for %d arrivals", arrivals);
    use_rows(machine);
    made->arrivals = made->pending = arrivals;
    made->phases = 0;
    made->known.assign((size_t)machine->threads, 0);
    *barrier = (uint64_t)(unsigned)arrivals;
}

/* One arrival: what the thread knows, and what it did itself up to `time`, is handed on. */
static void arrive(struct nb_machine *machine, struct nb_mbarrier *barrier, unsigned thread, uint32_t time)
{
    for (unsigned u = 0; u < (unsigned)machine->threads; u++)
        barrier->known[u] = std::max(barrier->known[u], knowledge(machine, thread, u));
    barrier->known[thread] = std::max(barrier->known[thread], time);
    if (--barrier->pending > 0)
        return;
    barrier->pending = barrier->arrivals;
    barrier->phases++;
    for (int t = 0; t < machine->threads; t++) {
        struct nb_lane *lane = &machine->lanes[t];
        if (lane->waits_for == barrier && lane->waits_parity != (barrier->phases & 1)) {
            lane->waits_for = NULL;
            nb_machine_wake(machine, lane->warp, 1u << lane->index);
        }
    }
}

extern "C" void nb_emulator_mbarrier_arrive(uint64_t *barrier)
{
    struct nb_machine *machine = nb_machine_here;
    nb_machine_burn(machine);
    struct nb_mbarrier *found = find_mbarrier(machine, barrier, false, NB_PLACE);
    arrive(machine, found, machine->lane->thread, machine->now++);
}

extern "C" void nb_emulator_mbarrier_wait(uint64_t *barrier, int parity)
{
    struct nb_machine *machine = nb_machine_here;
    nb_machine_burn(machine);
    struct nb_lane *lane = machine->lane;
    struct nb_mbarrier *found = find_mbarrier(machine, barrier, false, NB_PLACE);
    if (parity != 0 && parity != 1)
        nb_machine_fault(machine, NB_EMULATOR_BAD_INSTRUCTION, NB_PLACE, "waits for parity %d of an mbarrier", parity);
    if ((found->phases & 1) == (uint32_t)parity) {
        lane->waits_for = found;
        lane->waits_parity = (uint32_t)parity;
        lane->place = NB_PLACE;
        nb_machine_suspend(machine);
    }
    join(row_of(machine, lane->thread), found->known.data(), machine->threads);
}

extern "C" void nb_emulator_copy_async_arrive(uint64_t *barrier)
{
    struct nb_machine *machine = nb_machine_here;
    nb_machine_burn(machine);
    struct nb_mbarrier *found = find_mbarrier(machine, barrier, false, NB_PLACE);
    struct nb_lane *lane = machine->lane;
    machine->late.push_back({lane, found, (uint32_t)lane->copies.size(), machine->now++});
}

/* As late as can be: when no thread can go on without. One arrival, drawn by chance. */
bool nb_copies_land_late(struct nb_machine *machine)
{
    if (machine->late.empty())
        return false;
    size_t drawn = nb_machine_random(machine) % machine->late.size();
    /* A thread's arrivals come in its order. */
    for (size_t i = 0; i < drawn; i++)
        if (machine->late[i].lane == machine->late[drawn].lane)
            drawn = i;
    struct nb_late_arrival late = machine->late[drawn];
    machine->late.erase(machine->late.begin() + (long)drawn);
    nb_copies_land(machine, late.lane, late.copies, late.time);
    arrive(machine, late.barrier, late.lane->thread, late.time);
    return true;
}
