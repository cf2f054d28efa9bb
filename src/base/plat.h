/* The machine: clock, cores, memory, environment. The only file that reads the environment. */
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

double plat_now_s(void); /* monotonic, seconds */
/* A condition that is waited for by that clock: who sets the one on the wall changes nothing. */
void plat_cond_init(pthread_cond_t *c);
bool plat_cond_wait(pthread_cond_t *c, pthread_mutex_t *m, double until_s); /* false: it is until_s */

/* Threads that kernels should use: the cores this process may run on, less where a container's CPU quota or
 * the limit on processes (RLIMIT_NPROC, 64 on some clusters) leaves fewer, or where OMP_NUM_THREADS asks for
 * fewer. At least 1. */
int plat_threads(void);
/* As many threads as can be started, at most `want`. */
int plat_threads_startable(int want);

/* Called first thing in main: has OpenMP's threads wait at barriers by spinning for some 0.1 ms only, before they
 * sleep. The default of several ms starves a machine that others use too. OpenMP reads the setting when it is
 * loaded, so the program starts itself once more, unless the user has set it; returns when nothing is to do. */
void plat_settle(char **argv);

size_t plat_memory_total(void); /* bytes of RAM, or the container's limit where that is smaller */
size_t plat_memory_available(void); /* of that, what nobody else holds; the total if that is not known */
size_t plat_memory_peak(void);  /* high-water resident bytes of this process */

/* For a server, some of whose requests are large: from here on what is large is given back to the system when it is
 * freed (left to itself, malloc learns to keep tens of megabytes for each thread). */
void plat_memory_frugal(void);
void plat_memory_trim(void); /* and what was small, but much, now */

/* The environment names that mean something to this program; `llava env` prints them. */
#define ENV_MAP(XX)                                                                        \
    XX(HF_HOME, "folder of the Hugging Face cache (default ~/.cache/huggingface)")         \
    XX(HF_ENDPOINT, "address of the hub or of a mirror (default https://huggingface.co)")  \
    XX(HF_TOKEN, "access token for gated models")                                          \
    XX(HF_HUB_OFFLINE, "1: never touch the network")                                       \
    XX(OMP_NUM_THREADS, "most threads that kernels use")                                   \
    XX(LLAVA_CPU, "best instruction set that kernels may use: ref, avx2 or avx512")        \
    XX(LLAVA_API_KEY, "key that the servers ask for, beside those of --api-key-file")       \
    XX(OPENAI_API_KEY, "key of the moderation service that `web --moderate` asks")         \
    XX(HOME, "where ~ is")
enum env_name {
#define XX(name, text) ENV_##name,
    ENV_MAP(XX)
#undef XX
    N_ENV
};
const char *env_get(enum env_name name); /* NULL when not set or empty; valid for the life of the process */
bool env_flag(enum env_name name);       /* 1, true, yes, on */
