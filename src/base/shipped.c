#include "base/shipped.h"

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/nearest.h"

enum { NAMES_MAX = 256 };

/* What is looked for, and what was seen on the way. */
struct search {
    const char *kind, *name, *extension;
    char *found;
    char *names[NAMES_MAX]; /* of the files of this kind, without their extension; owned */
    int count;
};

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Notes the names in a folder, for the message. A folder that is not there has none. */
static void note_names(struct search *search, const char *folder)
{
    DIR *listing = opendir(folder);
    if (!listing)
        return;
    for (struct dirent *entry; (entry = readdir(listing)) && search->count < NAMES_MAX;) {
        if (!ends_with(entry->d_name, search->extension))
            continue;
        char *name = strndup(entry->d_name, strlen(entry->d_name) - strlen(search->extension));
        if (name)
            search->names[search->count++] = name;
    }
    closedir(listing);
}

/* Takes `folder`, which it frees. */
static void look_in(struct search *search, char *folder)
{
    char *path = nb_format("%s/%s%s", folder, search->name, search->extension);
    if (!search->found && nb_path_exists(path))
        search->found = path;
    else
        free(path);
    if (!search->found)
        note_names(search, folder);
    free(folder);
}

static void look_above_program(struct search *search)
{
    char folder[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    folder[length < 0 ? 0 : length] = 0;
    for (char *slash; !search->found && (slash = strrchr(folder, '/'));) {
        *slash = 0;
        look_in(search, nb_format("%s/configs/%s", folder, search->kind));
        look_in(search, nb_format("%s/share/nibble/%s", folder, search->kind));
    }
}

static nb_status not_found(struct search *search)
{
    char list[1024] = "none is installed";
    size_t used = 0;
    struct nb_nearest nearest = nb_nearest_start(search->name);
    qsort(search->names, (size_t)search->count, sizeof *search->names, compare_names);
    for (int i = 0; i < search->count; i++) {
        bool repeated = i > 0 && strcmp(search->names[i], search->names[i - 1]) == 0;
        if (repeated || used >= sizeof list - 1)
            continue;
        nb_nearest_offer(&nearest, search->names[i]);
        int written = snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", search->names[i]);
        used += (size_t)(written < 0 ? 0 : written);
    }
    const char *near = nb_nearest_found(&nearest);
    if (near)
        return nb_fail(NB_USAGE,
            "%s/%.64s: there is no such file; did you mean %s? There are: %s. A path with a slash names a file of "
            "your own",
            search->kind, search->name, near, list);
    return nb_fail(NB_USAGE,
        "%s/%.64s: there is no such file. There are: %s. A path with a slash names a file of your own", search->kind,
        search->name, list);
}

nb_status nb_shipped_file(const char *kind, const char *name, const char *extension, char **path)
{
    *path = NULL;
    if (strchr(name, '/') || ends_with(name, extension)) {
        *path = strdup(name);
        return *path ? NB_OK : nb_fail(NB_MEMORY, "no memory for the name of a file");
    }
    struct search search = {.kind = kind, .name = name, .extension = extension};
    look_above_program(&search);
    if (!search.found)
        look_in(&search, nb_format("%s/%s", NB_DATA_FOLDER, kind));
    nb_status status = search.found ? NB_OK : not_found(&search);
    for (int i = 0; i < search.count; i++)
        free(search.names[i]);
    *path = search.found;
    return status;
}
