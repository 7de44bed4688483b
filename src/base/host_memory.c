#include "base/host_memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/file.h"

/* ---- over text ---- */

/* What follows "KEY" and `separator` at the beginning of a line, or NULL. */
static const char *value_of(const char *text, const char *key, char separator)
{
    size_t bytes = strlen(key);
    for (const char *line = text; *line;) {
        if (strncmp(line, key, bytes) == 0 && line[bytes] == separator)
            return line + bytes + 1;
        const char *end = strchr(line, '\n');
        if (!end)
            return NULL;
        line = end + 1;
    }
    return NULL;
}

static const char *skip_spaces(const char *text)
{
    while (*text == ' ' || *text == '\t')
        text++;
    return text;
}

/* Decimal digits, at least one, no sign; beyond 64 bits UINT64_MAX. NULL if there is none. */
static const char *read_number(const char *text, uint64_t *value)
{
    const char *first = text;
    uint64_t sum = 0;
    for (; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        sum = sum > (UINT64_MAX - digit) / 10 ? UINT64_MAX : sum * 10 + digit;
    }
    *value = sum;
    return text > first ? text : NULL;
}

static bool ends_line(const char *text)
{
    text = skip_spaces(text);
    return *text == '\n' || *text == 0;
}

bool nb_host_kilobytes_of(const char *text, const char *key, uint64_t *bytes)
{
    const char *value = value_of(text, key, ':');
    uint64_t kilobytes;
    if (!value || !(value = read_number(skip_spaces(value), &kilobytes)))
        return false;
    value = skip_spaces(value);
    if (strncmp(value, "kB", 2) != 0 || !ends_line(value + 2))
        return false;
    *bytes = kilobytes > UINT64_MAX / 1024 ? UINT64_MAX : kilobytes * 1024;
    return true;
}

uint64_t nb_host_stat_of(const char *text, const char *key)
{
    const char *value = value_of(text, key, ' ');
    uint64_t number;
    return value && (value = read_number(value, &number)) && ends_line(value) ? number : 0;
}

bool nb_host_limit_of(const char *text, uint64_t *bytes)
{
    *bytes = UINT64_MAX;
    if (strncmp(text, "max", 3) == 0 && ends_line(text + 3))
        return true;
    const char *end = read_number(text, bytes);
    return end && ends_line(end);
}

bool nb_host_may_lock(const char *status)
{
    enum { CAP_IPC_LOCK = 14 }; /* linux/capability.h */
    const char *value = value_of(status, "CapEff", ':');
    char *end = NULL;
    unsigned long long set = value ? strtoull(value, &end, 16) : 0;
    return end && end != value && ends_line(end) && (set >> CAP_IPC_LOCK & 1);
}

/* Whether the word is in a list with commas. */
static bool lists(const char *list, size_t bytes, const char *word)
{
    size_t length = strlen(word);
    for (const char *end = list + bytes; list < end;) {
        const char *comma = memchr(list, ',', (size_t)(end - list));
        size_t here = (size_t)((comma ? comma : end) - list);
        if (here == length && memcmp(list, word, length) == 0)
            return true;
        list += here + 1;
    }
    return false;
}

/* The group's path in its hierarchy, from lines "ID:CONTROLLERS:PATH": version 2's is the one without controllers. */
static bool find_group(const char *cgroups, bool v1, const char **path, size_t *bytes)
{
    for (const char *line = cgroups; *line;) {
        size_t length = strcspn(line, "\n");
        const char *list = memchr(line, ':', length);
        const char *group = list ? memchr(list + 1, ':', length - (size_t)(list + 1 - line)) : NULL;
        if (group) {
            size_t listed = (size_t)(group - list - 1);
            *path = group + 1;
            *bytes = length - (size_t)(group + 1 - line);
            if (*bytes > 0 && **path == '/' && (v1 ? lists(list + 1, listed, "memory") : listed == 0))
                return true;
        }
        line += length;
        line += *line == '\n';
    }
    return false;
}

struct word {
    const char *at;
    size_t bytes;
};

static bool is_word(struct word word, const char *text)
{
    return word.bytes == strlen(text) && memcmp(word.at, text, word.bytes) == 0;
}

/* The words of a line, as many as fit; returns how many. */
static int split(const char *line, size_t bytes, struct word *words, int most)
{
    int count = 0;
    for (const char *end = line + bytes; line < end && count < most;) {
        const char *space = memchr(line, ' ', (size_t)(end - line));
        words[count++] = (struct word){line, (size_t)((space ? space : end) - line)};
        line = space ? space + 1 : end;
    }
    return count;
}

/* Where a hierarchy is mounted, and which of its groups stands there. A line of mountinfo (proc(5)): ID, parent,
 * device, root, mount point, options, any optional fields, "-", type, source, the file system's own options. */
static bool find_mount(const char *mounts, bool v1, struct word *root, struct word *point)
{
    enum { ROOT = 3, POINT = 4, OPTIONAL = 6, WORDS = 64 };
    for (const char *line = mounts; *line;) {
        struct word word[WORDS];
        size_t length = strcspn(line, "\n");
        int count = split(line, length, word, WORDS), dash = OPTIONAL;
        while (dash < count && !is_word(word[dash], "-"))
            dash++;
        bool found = dash + 3 < count && is_word(word[dash + 1], v1 ? "cgroup" : "cgroup2");
        if (found && (!v1 || lists(word[dash + 3].at, word[dash + 3].bytes, "memory"))) {
            *root = word[ROOT];
            *point = word[POINT];
            return root->bytes > 0 && point->bytes > 0 && *point->at == '/';
        }
        line += length;
        line += *line == '\n';
    }
    return false;
}

static bool is_octal(const char *text)
{
    return text[0] >= '0' && text[0] <= '3' && text[1] >= '0' && text[1] <= '7' && text[2] >= '0' && text[2] <= '7';
}

/* A path of mountinfo, in which blanks and backslashes are three octal digits behind a backslash. */
static bool unescape(struct word from, char *to, size_t size, size_t *bytes)
{
    size_t used = 0;
    for (size_t i = 0; i < from.bytes; i++) {
        char c = from.at[i];
        if (c == '\\' && from.bytes - i > 3 && is_octal(from.at + i + 1)) {
            const char *digit = from.at + i + 1;
            c = (char)((digit[0] - '0') * 64 + (digit[1] - '0') * 8 + (digit[2] - '0'));
            i += 3;
        }
        if (used + 1 >= size)
            return false;
        to[used++] = c;
    }
    to[used] = 0;
    *bytes = used;
    return true;
}

/* A group that is not below the mounted one lies outside of what this mount shows (a container without a name space
 * of its own); the mounted one is its nearest that can be seen. */
bool nb_host_cgroup_folder(
    const char *cgroups, const char *mounts, bool v1, char *folder, size_t size, size_t *root_bytes)
{
    struct word root, point;
    const char *group;
    size_t bytes, above;
    if (!find_group(cgroups, v1, &group, &bytes) || !find_mount(mounts, v1, &root, &point) ||
        !unescape(root, folder, size, &above))
        return false;
    above = above == 1 ? 0 : above; /* of "/" nothing is left out */
    bool below = bytes >= above && memcmp(group, folder, above) == 0 && (bytes == above || group[above] == '/');
    group += below ? above : 0;
    bytes = below && bytes > above + 1 ? bytes - above : 0;
    if (!unescape(point, folder, size, root_bytes))
        return false;
    if (memmem(group, bytes, "/..", 3)) /* of a group outside the process's own name space */
        bytes = 0;
    if (*root_bytes + bytes >= size)
        return false;
    memcpy(folder + *root_bytes, group, bytes);
    folder[*root_bytes + bytes] = 0;
    return true;
}

/* ---- reading ---- */

enum { PATH_BYTES = 4096, TEXT_BYTES = 4 << 20 };

/* The text of a file, or an empty one. The caller frees it; NULL when memory is out. */
static char *read_text(const char *path)
{
    char *text;
    size_t bytes;
    return nb_file_read(path, TEXT_BYTES, false, &text, &bytes) == NB_OK ? text : strdup("");
}

static bool read_limit(const char *folder, const char *name, uint64_t *bytes)
{
    char *path = nb_path_join(folder, name), *text = path ? read_text(path) : NULL;
    bool known = text && nb_host_limit_of(text, bytes);
    free(text);
    free(path);
    return known;
}

/* Clean and dirty page cache that the group may lose before anything of it is killed. */
static uint64_t read_reclaimable(const char *folder, bool v1)
{
    char *path = nb_path_join(folder, "memory.stat"), *text = path ? read_text(path) : NULL;
    uint64_t bytes = 0;
    if (text)
        bytes = nb_host_stat_of(text, v1 ? "total_inactive_file" : "inactive_file") +
                nb_host_stat_of(text, v1 ? "total_active_file" : "active_file");
    free(text);
    free(path);
    return bytes;
}

/* What one group may still take. Beyond memory.high nothing is killed, but everything slowed down. */
static uint64_t room_of_group(const char *folder, bool v1)
{
    uint64_t limit = UINT64_MAX, high, used;
    if (!read_limit(folder, v1 ? "memory.limit_in_bytes" : "memory.max", &limit))
        limit = UINT64_MAX;
    if (!v1 && read_limit(folder, "memory.high", &high) && high < limit)
        limit = high;
    if (limit == UINT64_MAX || !read_limit(folder, v1 ? "memory.usage_in_bytes" : "memory.current", &used))
        return UINT64_MAX;
    uint64_t reclaimable = read_reclaimable(folder, v1);
    used -= reclaimable < used ? reclaimable : used;
    return limit > used ? limit - used : 0;
}

/* The least room of the group and those around it: each one's limit counts for all below it. */
static uint64_t room_of_groups(const char *cgroups, const char *mounts, bool v1)
{
    char folder[PATH_BYTES];
    size_t root;
    uint64_t least = UINT64_MAX;
    if (!nb_host_cgroup_folder(cgroups, mounts, v1, folder, sizeof folder, &root))
        return least;
    for (;;) {
        uint64_t room = room_of_group(folder, v1);
        least = room < least ? room : least;
        char *last = strrchr(folder + root, '/');
        if (!last)
            return least;
        *last = 0;
    }
}

static uint64_t room_in_cgroups(void)
{
    char *cgroups = read_text("/proc/self/cgroup"), *mounts = read_text("/proc/self/mountinfo");
    uint64_t room = UINT64_MAX;
    for (int v1 = 0; cgroups && mounts && v1 < 2; v1++) {
        uint64_t bytes = room_of_groups(cgroups, mounts, v1);
        room = bytes < room ? bytes : room;
    }
    free(cgroups);
    free(mounts);
    return room;
}

static uint64_t room_in_machine(void)
{
    char *text = read_text("/proc/meminfo");
    uint64_t bytes = UINT64_MAX;
    if (!text || !nb_host_kilobytes_of(text, "MemAvailable", &bytes)) {
        long pages = sysconf(_SC_AVPHYS_PAGES), page = sysconf(_SC_PAGESIZE);
        bytes = pages >= 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : UINT64_MAX;
    }
    free(text);
    return bytes;
}

/* What a resource limit leaves beside what `key` of the status says is used. */
static uint64_t room_in_limit(int resource, const char *status, const char *key)
{
    struct rlimit limit;
    uint64_t used;
    if (getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
        return UINT64_MAX;
    if (!nb_host_kilobytes_of(status, key, &used))
        used = 0;
    return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

uint64_t nb_host_memory_available(enum nb_host_limit *limit)
{
    char *status = read_text("/proc/self/status");
    const char *text = status ? status : "";
    const uint64_t room[] = {
        [NB_HOST_LIMIT_NONE] = UINT64_MAX,
        [NB_HOST_LIMIT_MACHINE] = room_in_machine(),
        [NB_HOST_LIMIT_CGROUP] = room_in_cgroups(),
        [NB_HOST_LIMIT_ADDRESS_SPACE] = room_in_limit(RLIMIT_AS, text, "VmSize"),
        [NB_HOST_LIMIT_DATA] = room_in_limit(RLIMIT_DATA, text, "VmData"),
    };
    size_t least = NB_HOST_LIMIT_NONE;
    for (size_t i = 0; i < sizeof room / sizeof *room; i++)
        least = room[i] < room[least] ? i : least;
    free(status);
    if (limit)
        *limit = (enum nb_host_limit)least;
    return room[least];
}

const char *nb_host_limit_name(enum nb_host_limit limit)
{
    static const char *const names[] = {
        [NB_HOST_LIMIT_NONE] = "no limit that is known",
        [NB_HOST_LIMIT_MACHINE] = "the machine's free memory",
        [NB_HOST_LIMIT_CGROUP] = "the memory limit of this container or job (its cgroup's memory.max)",
        [NB_HOST_LIMIT_ADDRESS_SPACE] = "the limit of address space (`ulimit -v`)",
        [NB_HOST_LIMIT_DATA] = "the limit of data (`ulimit -d`)",
    };
    return names[limit];
}

uint64_t nb_host_memory_lockable(void)
{
    char *status = read_text("/proc/self/status");
    const char *text = status ? status : "";
    uint64_t bytes = nb_host_may_lock(text) ? UINT64_MAX : room_in_limit(RLIMIT_MEMLOCK, text, "VmLck");
    free(status);
    return bytes;
}
