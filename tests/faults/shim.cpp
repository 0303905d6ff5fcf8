// Counts what a process does to the files below one directory, and ends it before one such
// operation: loaded by LD_PRELOAD, armed by `faults_arm`. Operations are calls of libc that create,
// write, flush, rename or remove files and directories; what C's FILE writes by itself is not seen.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[PATH_MAX];
static size_t length = 0;
static long *count = nullptr;  // shared with the parent
static long last = -1;
static const int FILES = 4096;
static bool written[FILES];

extern "C" void faults_arm(const char *directory, long *counter, long number) {
    count = counter;
    last = number;
    strncpy(below, directory, sizeof below - 1);
    length = strlen(below);
}

static bool inside(int directory, const char *path) {
    if (!length || !path) return false;
    char whole[2 * PATH_MAX] = "";
    if (path[0] != '/') {
        if (directory == AT_FDCWD) {
            if (!getcwd(whole, PATH_MAX)) return false;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t size = readlink(link, whole, PATH_MAX - 1);
            if (size < 0) return false;
            whole[size] = 0;
        }
        strcat(whole, "/");
    }
    strncat(whole, path, PATH_MAX - 1);
    return strncmp(whole, below, length) == 0;
}

static void operation(bool ours) {
    if (ours && (*count)++ == last) kill(getpid(), SIGKILL);
}

static bool ours(int file) { return length && file >= 0 && file < FILES && written[file]; }

template <typename F> static F real(F, const char *name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}
#define REAL(name) static auto call = real(name, #name)

static int opened(int file, bool is_ours) {
    if (file >= 0 && file < FILES) written[file] = is_ours;
    return file;
}

#define OPEN(name)                                                                   \
    extern "C" int name(const char *path, int flags, ...) {                          \
        REAL(name);                                                                  \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = va_arg(rest, mode_t);                                          \
        va_end(rest);                                                                \
        bool is_ours = (flags & O_ACCMODE) != O_RDONLY && inside(AT_FDCWD, path);    \
        operation(is_ours);                                                          \
        return opened(call(path, flags, mode), is_ours);                             \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                 \
    extern "C" int name(int directory, const char *path, int flags, ...) {           \
        REAL(name);                                                                  \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        mode_t mode = va_arg(rest, mode_t);                                          \
        va_end(rest);                                                                \
        bool is_ours = (flags & O_ACCMODE) != O_RDONLY && inside(directory, path);   \
        operation(is_ours);                                                          \
        return opened(call(directory, path, flags, mode), is_ours);                  \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                  \
    extern "C" FILE *name(const char *path, const char *mode) {                      \
        REAL(name);                                                                  \
        operation(strpbrk(mode, "wa+") && inside(AT_FDCWD, path));                   \
        return call(path, mode);                                                     \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define OF_FILE(type, name, parameters, arguments)                                   \
    extern "C" type name parameters {                                                \
        REAL(name);                                                                  \
        operation(ours(file));                                                       \
        return call arguments;                                                       \
    }
OF_FILE(ssize_t, write, (int file, const void *from, size_t size), (file, from, size))
OF_FILE(ssize_t, pwrite, (int file, const void *from, size_t size, off_t at), (file, from, size, at))
OF_FILE(ssize_t, pwrite64, (int file, const void *from, size_t size, off64_t at), (file, from, size, at))
OF_FILE(ssize_t, writev, (int file, const iovec *parts, int number), (file, parts, number))
OF_FILE(int, fsync, (int file), (file))
OF_FILE(int, fdatasync, (int file), (file))
OF_FILE(int, ftruncate, (int file, off_t size), (file, size))
OF_FILE(int, ftruncate64, (int file, off64_t size), (file, size))

#define OF_PATH(name, parameters, directory, path, arguments)                        \
    extern "C" int name parameters noexcept {                                        \
        REAL(name);                                                                  \
        operation(inside(directory, path));                                          \
        return call arguments;                                                       \
    }
OF_PATH(rename, (const char *from, const char *to), AT_FDCWD, to, (from, to))
OF_PATH(renameat, (int d, const char *from, int e, const char *to), e, to, (d, from, e, to))
OF_PATH(unlink, (const char *path), AT_FDCWD, path, (path))
OF_PATH(unlinkat, (int d, const char *path, int flags), d, path, (d, path, flags))
OF_PATH(mkdir, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))
OF_PATH(mkdirat, (int d, const char *path, mode_t mode), d, path, (d, path, mode))
OF_PATH(rmdir, (const char *path), AT_FDCWD, path, (path))
OF_PATH(link, (const char *from, const char *to), AT_FDCWD, to, (from, to))
OF_PATH(symlink, (const char *from, const char *to), AT_FDCWD, to, (from, to))
OF_PATH(chmod, (const char *path, mode_t mode), AT_FDCWD, path, (path, mode))

extern "C" int close(int file) {
    REAL(close);
    if (file >= 0 && file < FILES) written[file] = false;
    return call(file);
}
