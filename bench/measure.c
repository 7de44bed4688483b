/* Runs a command and says what it took: measure TEXT COMMAND [ARGUMENT]...
 *
 * The command's stderr passes through. Afterwards one JSON line on stdout: "seconds" from start to end, "first_seconds"
 * from start to the first line of stderr that begins with TEXT, "peak_bytes" of resident memory, "status". The
 * command's own stdout goes to file descriptor 3 if that is open, else to stderr. Exit status: the command's. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void run(char **command, const int pipe_ends[2])
{
    dup2(fcntl(3, F_GETFD) < 0 ? STDERR_FILENO : 3, STDOUT_FILENO);
    dup2(pipe_ends[1], STDERR_FILENO);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    execvp(command[0], command);
    fprintf(stderr, "%s: %s\n", command[0], strerror(errno));
    _exit(127);
}

int main(int argc, char **argv)
{
    int ends[2], status = 0;
    struct rusage usage;
    if (argc < 3) {
        fprintf(stderr, "usage: measure TEXT COMMAND [ARGUMENT]...\n");
        return 2;
    }
    if (pipe(ends) != 0) {
        perror("pipe");
        return 1;
    }
    double start = seconds(), first = 0;
    pid_t child = fork();
    if (child == 0)
        run(argv + 2, ends);
    close(ends[1]);
    FILE *lines = child > 0 ? fdopen(ends[0], "r") : NULL;
    char *line = NULL;
    size_t capacity = 0;
    while (lines && getline(&line, &capacity, lines) >= 0) {
        if (first <= 0 && strncmp(line, argv[1], strlen(argv[1])) == 0)
            first = seconds() - start;
        fputs(line, stderr);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) < 0) {
        perror("measure");
        return 1;
    }
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    printf("{\"seconds\": %.3f, \"first_seconds\": %.3f, \"peak_bytes\": %lld, \"status\": %d}\n", seconds() - start,
           first, 1024LL * usage.ru_maxrss, code);
    free(line);
    return code;
}
