#include "train/run_folder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"

struct nb_run_folder {
    char *path;
    bool made;      /* by this process; goes again if nothing was written to it */
    int descriptor; /* of the folder, which carries the lock: the kernel drops it with the process, however that ends */
};

static const char checkpoint_prefix[] = "checkpoint-", unfinished_suffix[] = ".tmp";

/* "checkpoint-12" -> 12; -1 for anything else. */
static int64_t step_of(const char *name)
{
    if (strncmp(name, checkpoint_prefix, sizeof checkpoint_prefix - 1) != 0)
        return -1;
    const char *digits = name + sizeof checkpoint_prefix - 1;
    char *end;
    if (*digits < '1' || *digits > '9')
        return -1;
    errno = 0;
    long long step = strtoll(digits, &end, 10);
    return *end == 0 && errno == 0 ? step : -1;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t length = strlen(name), wanted = strlen(suffix);
    return length >= wanted && strcmp(name + length - wanted, suffix) == 0;
}

/* "checkpoint-12.tmp", and what nb_writer leaves when it is killed: "metrics.jsonl.tmp-4711". */
static bool is_leftover(const char *name)
{
    if (strncmp(name, checkpoint_prefix, sizeof checkpoint_prefix - 1) == 0 && ends_with(name, unfinished_suffix))
        return true;
    const char *mark = strstr(name, ".tmp-");
    return mark && mark[5] && strspn(mark + 5, "0123456789") == strlen(mark + 5);
}

static bool is_of_a_run(const char *name)
{
    return step_of(name) > 0 || strcmp(name, "config.yml") == 0 || strcmp(name, "metrics.jsonl") == 0 ||
           strcmp(name, "adapter_model.safetensors") == 0;
}

/* Calls `visit` for each name in the folder until it fails. */
static nb_status each_name(const char *path, nb_status (*visit)(void *context, const char *name), void *context)
{
    DIR *directory = opendir(path);
    struct dirent *entry;
    nb_status status = NB_OK;
    if (!directory)
        return nb_fail_errno("%s: cannot read the folder", path);
    while (status == NB_OK && (entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = visit(context, entry->d_name);
    closedir(directory);
    return status;
}

static nb_status note_run(void *context, const char *name)
{
    if (is_of_a_run(name))
        *(bool *)context = true;
    return NB_OK;
}

static nb_status remove_leftover(void *context, const char *name)
{
    if (!is_leftover(name))
        return NB_OK;
    char *path = nb_path_join(context, name);
    nb_status status = NB_OK;
    if (nb_path_is_folder(path))
        status = nb_remove_folder(path);
    else if (unlink(path) != 0 && errno != ENOENT)
        status = nb_fail_errno("%s: cannot remove what an interrupted run left", path);
    free(path);
    return status;
}

static nb_status lock(struct nb_run_folder *folder)
{
    folder->descriptor = open(folder->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder->descriptor < 0)
        return nb_fail_errno("%s: cannot open the folder", folder->path);
    if (flock(folder->descriptor, LOCK_EX | LOCK_NB) == 0)
        return NB_OK;
    if (errno == EWOULDBLOCK)
        return nb_fail(NB_USAGE, "%s: another run is writing to this folder; wait for it, or choose another output_dir",
            folder->path);
    return NB_OK; /* a file system without locks */
}

static nb_status open_folder(struct nb_run_folder *folder, bool resume)
{
    bool holds_run = false;
    folder->made = !nb_path_exists(folder->path);
    NB_TRY(nb_make_folder(folder->path));
    NB_TRY(lock(folder));
    if (access(folder->path, W_OK | X_OK) != 0)
        return nb_fail_errno("%s: cannot write to the folder; choose another output_dir", folder->path);
    NB_TRY(each_name(folder->path, note_run, &holds_run));
    if (holds_run && !resume)
        return nb_fail(
            NB_USAGE, "%s: already holds a run; go on with it by --resume, or choose another output_dir", folder->path);
    if (!holds_run && resume)
        nb_log("note: %s holds no run yet; starting from the beginning", folder->path);
    return each_name(folder->path, remove_leftover, folder->path);
}

nb_status nb_run_folder_open(const char *path, bool resume, struct nb_run_folder **folder)
{
    struct nb_run_folder *f = calloc(1, sizeof *f);
    *folder = NULL;
    if (!f)
        return nb_fail(NB_MEMORY, "%s: no memory to open it", path);
    f->path = nb_format("%s", path);
    f->descriptor = -1;
    nb_status status = open_folder(f, resume);
    if (status != NB_OK)
        nb_run_folder_close(&f);
    *folder = f;
    return status;
}

void nb_run_folder_close(struct nb_run_folder **folder)
{
    struct nb_run_folder *f = *folder;
    if (!f)
        return;
    if (f->descriptor >= 0)
        close(f->descriptor);
    if (f->made)
        rmdir(f->path); /* fails, as it should, when there is something in it */
    free(f->path);
    free(f);
    *folder = NULL;
}

const char *nb_run_folder_path(const struct nb_run_folder *folder)
{
    return folder->path;
}

struct step_list {
    int64_t *steps;
    int count;
};

static nb_status collect_step(void *context, const char *name)
{
    struct step_list *list = context;
    int64_t step = step_of(name);
    if (step <= 0)
        return NB_OK;
    int64_t *grown = realloc(list->steps, ((size_t)list->count + 1) * sizeof *grown);
    if (!grown)
        return nb_fail(NB_MEMORY, "no memory for a list of checkpoints");
    list->steps = grown;
    grown[list->count++] = step;
    return NB_OK;
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

nb_status nb_run_folder_checkpoints(const struct nb_run_folder *folder, int64_t **steps, int *count)
{
    return nb_run_checkpoints_in(folder->path, steps, count);
}

nb_status nb_run_checkpoints_in(const char *path, int64_t **steps, int *count)
{
    struct step_list list = {0};
    nb_status status = each_name(path, collect_step, &list);
    if (status != NB_OK) {
        free(list.steps);
        list = (struct step_list){0};
    }
    if (list.count > 1)
        qsort(list.steps, (size_t)list.count, sizeof *list.steps, ascending);
    *steps = list.steps;
    *count = list.count;
    return status;
}

char *nb_run_folder_checkpoint(const struct nb_run_folder *folder, int64_t step)
{
    return nb_run_checkpoint_in(folder->path, step);
}

char *nb_run_checkpoint_in(const char *path, int64_t step)
{
    return nb_format("%s/%s%" PRId64, path, checkpoint_prefix, step);
}

char *nb_run_folder_unfinished(const struct nb_run_folder *folder, int64_t step)
{
    return nb_format("%s/%s%" PRId64 "%s", folder->path, checkpoint_prefix, step, unfinished_suffix);
}

/* Renames before removing, so that a process killed in between leaves no half a checkpoint under a checkpoint's name. */
static nb_status remove_checkpoint(const struct nb_run_folder *folder, int64_t step)
{
    char *path = nb_run_folder_checkpoint(folder, step);
    char *aside = nb_format("%s/%s%" PRId64 ".old%s", folder->path, checkpoint_prefix, step, unfinished_suffix);
    nb_status status = NB_OK;
    if (rename(path, aside) != 0)
        status = errno == ENOENT ? NB_OK : nb_fail_errno("%s: cannot remove the checkpoint", path);
    else
        status = nb_remove_folder(aside);
    free(path);
    free(aside);
    return status;
}

nb_status nb_run_folder_publish(const struct nb_run_folder *folder, int64_t step)
{
    char *unfinished = nb_run_folder_unfinished(folder, step), *path = nb_run_folder_checkpoint(folder, step);
    nb_status status = nb_sync_folder(unfinished);
    if (status == NB_OK && nb_path_exists(path))
        status = remove_checkpoint(folder, step);
    if (status == NB_OK && rename(unfinished, path) != 0)
        status = nb_fail_errno("%s: cannot rename it to %s", unfinished, path);
    if (status == NB_OK)
        status = nb_sync_folder(folder->path);
    free(unfinished);
    free(path);
    return status;
}

nb_status nb_run_folder_prune(const struct nb_run_folder *folder, int64_t keep, int64_t best_step)
{
    int64_t *steps = NULL;
    int count = 0;
    if (keep <= 0)
        return NB_OK;
    nb_status status = nb_run_folder_checkpoints(folder, &steps, &count);
    for (int i = 0; status == NB_OK && i < count - keep; i++)
        if (steps[i] != best_step)
            status = remove_checkpoint(folder, steps[i]);
    free(steps);
    return status;
}
