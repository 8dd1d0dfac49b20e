/* Stands in for a power cut. Preloaded into a process, it keeps in the folder $POWER_CUT_KEEPS what a disk would
 * hold: each file as it was at its last successful sync, and no file that was removed. Killing the process and
 * going on in that folder is what a power cut does; killing alone loses nothing, since the kernel has it all.
 * With $POWER_CUT_FAILS=n, every sync after the nth fails with EIO.
 * A copy for each sync: for small files only. Renames are not followed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long syncs;

/* The place of a file in the folder; 0 if there is no folder. */
static int kept_path(const char *path, char *kept)
{
    const char *folder = getenv("POWER_CUT_KEEPS");
    const char *slash = strrchr(path, '/');
    if (!folder)
        return 0;
    int length = snprintf(kept, PATH_MAX, "%s/%s", folder, slash ? slash + 1 : path);
    return length > 0 && length < PATH_MAX - 8;
}

static void copy_file(int from, const char *kept)
{
    char part[PATH_MAX + 8], buffer[65536];
    off_t place = 0;
    ssize_t count;
    snprintf(part, sizeof part, "%s.part", kept);
    int to = open(part, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
    if (to < 0)
        abort();
    while ((count = pread(from, buffer, sizeof buffer, place)) > 0) {
        if (write(to, buffer, count) != count)
            abort();
        place += count;
    }
    close(to);
    if (count < 0 || rename(part, kept) != 0)
        abort();
}

static void keep(int fd)
{
    char link[64], path[PATH_MAX], kept[PATH_MAX], probe;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0)
        return;
    path[length] = 0;
    /* A folder has no bytes to keep. The file is read through the caller's own descriptor: closing another one
     * would drop the locks that SQLite has on it. */
    if (pread(fd, &probe, 1, 0) >= 0 && kept_path(path, kept))
        copy_file(fd, kept);
}

static int sync_with(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *fails = getenv("POWER_CUT_FAILS");
    pthread_mutex_lock(&lock);
    int result;
    if (fails && syncs >= atol(fails)) {
        errno = EIO;
        result = -1;
    } else {
        result = real(fd);
        if (result == 0) {
            syncs++;
            keep(fd);
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd)
{
    return sync_with("fsync", fd);
}

int fdatasync(int fd)
{
    return sync_with("fdatasync", fd);
}

int unlink(const char *path)
{
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    char kept[PATH_MAX];
    int result = real(path);
    if (result == 0 && kept_path(path, kept))
        real(kept);
    return result;
}
