/* See plat.h. */
#define _GNU_SOURCE
#include "base/plat.h"

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

double plat_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void plat_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool plat_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, double until_s)
{
    const time_t s = (time_t)until_s;
    const struct timespec until = { s, (long)((until_s - (double)s) * 1e9) };
    return pthread_cond_timedwait(c, m, &until) == 0;
}

const char *env_get(enum env_name name)
{
    static const char *const names[] = {
#define XX(name, text) #name,
        ENV_MAP(XX)
#undef XX
    };
    const char *v = getenv(names[name]);
    return v && *v ? v : NULL;
}

bool env_flag(enum env_name name)
{
    const char *v = env_get(name);
    return v && (!strcmp(v, "1") || !strcasecmp(v, "true") || !strcasecmp(v, "yes") || !strcasecmp(v, "on"));
}

/* Cores that a cgroup v2 quota allows, rounded up; `most` where there is none. */
static int quota_cores(int most)
{
    long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!f) return most;
    int got = fscanf(f, "%ld %ld", &quota, &period);
    fclose(f);
    if (got != 2 || period <= 0) return most;
    long n = (quota + period - 1) / period;
    return n < 1 ? 1 : n < most ? (int)n : most;
}

static void *wait_on(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* RLIMIT_NPROC counts threads of all of a user's processes, so the only way to know is to try. */
int plat_threads_startable(int want)
{
    enum { MOST = 256 };
    if (want > MOST) want = MOST;
    pthread_t t[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&gate);
    int n = 1;
    while (n < want && !pthread_create(&t[n], NULL, wait_on, &gate)) n++;
    pthread_mutex_unlock(&gate);
    for (int i = 1; i < n; i++) pthread_join(t[i], NULL);
    return n == want ? n : n > 2 ? n / 2 : 1; /* cut short: leave the rest of the limit to others */
}

int plat_threads(void)
{
    static int cached;
    if (cached) return cached;
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    n = quota_cores(n);
    const char *omp = env_get(ENV_OMP_NUM_THREADS);
    long most = omp ? strtol(omp, NULL, 10) : 0;
    if (most > 0 && most < n) n = (int)most;
    return cached = plat_threads_startable(n);
}

void plat_settle(char **argv)
{
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "5000", 1) != 0) return;
    execv("/proc/self/exe", argv); /* comes back only where that is not allowed: then it is slower, that is all */
}

size_t plat_memory_total(void)
{
    size_t ram = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    unsigned long long limit;
    FILE *f = fopen("/sys/fs/cgroup/memory.max", "r");
    if (!f) return ram;
    if (fscanf(f, "%llu", &limit) == 1 && limit < ram) ram = (size_t)limit;
    fclose(f);
    return ram;
}

size_t plat_memory_available(void)
{
    const size_t total = plat_memory_total();
    unsigned long long kb;
    char line[128];
    size_t free = total;
    FILE *f = fopen("/proc/meminfo", "r");
    if (!f) return total;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu", &kb) == 1 && kb) free = (size_t)kb << 10;
    fclose(f);
    return free < total ? free : total;
}

size_t plat_memory_peak(void)
{
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) == 0 ? (size_t)u.ru_maxrss * 1024 : 0;
}

void plat_memory_frugal(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

void plat_memory_trim(void)
{
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}
