// Put before the C library by LD_PRELOAD: makes writes and syncs of one process fail, or write less than they
// were asked to, as a kernel may. What is to happen is one line in the file named by KV_FAULT:
//
//   short PART    every write to a file whose path has PART in it writes only some of its bytes
//   full PART     the next one finds no room, the ones after it do
//   sync PART     the next sync of such a file fails, the ones after it succeed
//
// Without the file nothing happens. Who makes a fault that happens once removes the file first, so it happens
// once in the whole process. A byte is added to KV_FAULT.hits for each fault.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define TEXT_BYTES_MAX 4096

static const char *control(void) {
    static const char *path;
    if (!path) path = getenv("KV_FAULT");
    return path;
}

// System calls are made directly: the functions of the C library are those below.
static void note_hit(void) {
    char path[TEXT_BYTES_MAX];
    snprintf(path, sizeof path, "%s.hits", control());
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0) return;
    syscall(SYS_write, fd, ".", 1);
    syscall(SYS_close, fd);
}

// True if `what` is to happen to this file now.
static int is_due(const char *what, int fd) {
    if (!control()) return 0;
    int saved = errno, due = 0;
    char rule[TEXT_BYTES_MAX], name[64], path[TEXT_BYTES_MAX];
    long file = syscall(SYS_openat, AT_FDCWD, control(), O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        long length = syscall(SYS_read, file, rule, sizeof rule - 1);
        syscall(SYS_close, file);
        size_t word = strlen(what);
        if (length > (long)word && !memcmp(rule, what, word) && rule[word] == ' ') {
            rule[length] = 0;
            rule[strcspn(rule, "\n")] = 0;
            snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
            long known = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
            if (known > 0) {
                path[known] = 0;
                // Regular files have a path; sockets and pipes are no concern of ours.
                due = path[0] == '/' && strstr(path, rule + word + 1) != NULL;
            }
        }
    }
    errno = saved;
    return due;
}

static int is_due_once(const char *what, int fd) {
    if (!is_due(what, fd)) return 0;
    int saved = errno;
    int first = syscall(SYS_unlinkat, AT_FDCWD, control(), 0) == 0;
    if (first) note_hit();
    errno = saved;
    return first;
}

// How much of a write is done: something from one unit to all but one. Past the page cache, the kernel
// does whole blocks or nothing.
static size_t shortened(size_t count, int fd) {
    static uint32_t chance = 1;
    if (!is_due("short", fd)) return count;
    size_t unit = fcntl(fd, F_GETFL) & O_DIRECT ? 4096 : 1;
    size_t units = count / unit;
    if (units < 2) return count;
    note_hit();
    // Threads may overwrite each other's; it is chance all the same.
    chance = chance * 1664525u + 1013904223u;
    return unit * (1 + (chance >> 8) % (units - 1));
}

static ssize_t no_room(void) {
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (is_due_once("full", fd)) return no_room();
    return syscall(SYS_write, fd, bytes, shortened(count, fd));
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    if (is_due_once("full", fd)) return no_room();
    return syscall(SYS_pwrite64, fd, bytes, shortened(count, fd), offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    return pwrite64(fd, bytes, count, offset);
}

static int no_sync(void) {
    errno = EIO;
    return -1;
}

int fsync(int fd) {
    if (is_due_once("sync", fd)) return no_sync();
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    if (is_due_once("sync", fd)) return no_sync();
    return (int)syscall(SYS_fdatasync, fd);
}
