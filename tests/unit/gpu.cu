/* The language that kernels are written in (dev/gpu.h), on the GPU of the build: warps, barriers, shared memory, grids,
 * numbers of 16 bits, captured launches. Under the emulator also what it must find: memory touched from outside, and
 * past the end. */
#include "dev/gpu.h"

#include "llava.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 256 };

static struct dev *d;
static int n_tests, n_failed;

static void report(bool right, const char *what)
{
    n_failed += !right;
    printf("%s %d - %s\n", right ? "ok" : "not ok", ++n_tests, what);
}

template <class T> struct mirror { /* n values on the host and on the device */
    T *host, *p;
    size_t n;
    explicit mirror(size_t count) : host((T *)calloc(count, sizeof(T))), p(NULL), n(count)
    {
        struct err e;
        if (dev_alloc((void **)&p, d, n * sizeof(T), &e) < 0) BUG("%s", e.msg);
    }
    ~mirror()
    {
        free(host);
        dev_free(d, p, n * sizeof(T));
    }
    void put() { dev_put(d, p, host, n * sizeof(T)); }
    void get() { dev_get(d, host, p, n * sizeof(T)); }
};

/* ---- warps */

__launch_bounds__(BLOCK) __global__ void lanes(int *xor_sum, int *down, int *first, int *count)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    int s = i;
    for (int m = GPU_WARP / 2; m > 0; m /= 2) s += gpu_shfl_xor(s, m);
    xor_sum[i] = s;
    down[i] = gpu_shfl_down(i, 3);
    first[i] = gpu_shfl(i, 5);
    int bits = 0;
    for (uint64_t b = gpu_ballot(i % 3 == 0); b; b &= b - 1) bits++;
    count[i] = bits;
}

static void warps(void)
{
    enum { N = 2 * BLOCK };
    mirror<int> sum(N), down(N), first(N), count(N);
    gpu_launch(lanes, N / BLOCK, BLOCK, 0, gpu_stream_of(d), sum.p, down.p, first.p, count.p);
    sum.get(), down.get(), first.get(), count.get();
    bool right = true;
    for (int i = 0; i < N; i++) {
        const int w = i / GPU_WARP * GPU_WARP, lane = i % GPU_WARP;
        int thirds = 0;
        for (int k = w; k < w + GPU_WARP; k++) thirds += k % 3 == 0;
        right &= sum.host[i] == GPU_WARP * w + GPU_WARP * (GPU_WARP - 1) / 2 && first.host[i] == w + 5;
        right &= down.host[i] == (lane + 3 < GPU_WARP ? i + 3 : i) && count.host[i] == thirds;
    }
    report(right, "lanes of a warp exchange values");
}

/* ---- blocks: each reverses its part through shared memory, sums it in a tree; half of the warps leave early */

__launch_bounds__(BLOCK) __global__ void reverse(float *y, float *sum, const float *x, int n)
{
    GPU_SHARED(float, part);
    const int t = (int)threadIdx.x;
    const size_t base = ((size_t)blockIdx.y * gridDim.x + blockIdx.x) * (size_t)n;
    for (int i = t; i < n; i += (int)blockDim.x) part[i] = x[base + (size_t)i];
    __syncthreads();
    for (int i = t; i < n; i += (int)blockDim.x) y[base + (size_t)i] = part[n - 1 - i];
    for (int half = n / 2; half > 0; half /= 2) {
        __syncthreads();
        for (int i = t; i < half; i += (int)blockDim.x) part[i] += part[i + half];
    }
    __syncthreads();
    if (t / GPU_WARP % 2) return;
    __syncthreads();
    if (t == 0) sum[blockIdx.y * gridDim.x + blockIdx.x] = part[0];
}

static void blocks(int n)
{
    const dim3 grid(3, 2);
    mirror<float> x((size_t)n * 6), y((size_t)n * 6), sum(6);
    for (size_t i = 0; i < x.n; i++) x.host[i] = (float)(i % 97);
    x.put();
    gpu_launch(reverse, grid, BLOCK, (size_t)n * sizeof(float), gpu_stream_of(d), y.p, sum.p, x.p, n);
    y.get(), sum.get();
    bool right = true;
    for (int b = 0; b < 6; b++) {
        float s = 0;
        for (int i = 0; i < n; i++) {
            s += x.host[b * n + i];
            right &= y.host[b * n + i] == x.host[b * n + n - 1 - i];
        }
        right &= s == sum.host[b];
    }
    report(right, n > 1024 ? "shared memory beyond 48 KB" : "barriers, shared memory, a grid of two dimensions");
}

/* ---- numbers */

template <class T> __launch_bounds__(BLOCK) __global__ void convert(float *f, T *t, const T *all, const float *x)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    f[i] = gpu_float(all[i]);
    t[i] = gpu_from<T>(x[i]);
}

template <class T> static void numbers(float (*widen)(uint16_t), uint16_t (*narrow)(float), const char *what)
{
    enum { N = 1 << 16 };
    mirror<T> all(N), t(N);
    mirror<float> f(N), x(N);
    for (int i = 0; i < N; i++) {
        all.host[i].bits = (uint16_t)i;
        const float at = widen((uint16_t)i), next = widen((uint16_t)(i + 1));
        x.host[i] = at + (next - at) * (i % 3 == 0 ? 0 : i % 3 == 1 ? 0.5f : 0.7f); /* exact, tie, between */
    }
    all.put(), x.put();
    gpu_launch(convert<T>, N / BLOCK, BLOCK, 0, gpu_stream_of(d), f.p, t.p, all.p, x.p);
    f.get(), t.get();
    bool right = true;
    for (int i = 0; i < N; i++) {
        const float want = widen((uint16_t)i);
        right &= want != want ? f.host[i] != f.host[i] : f.host[i] == want;
        right &= x.host[i] != x.host[i] ? isnan(widen(t.host[i].bits)) : t.host[i].bits == narrow(x.host[i]);
    }
    report(right, what);
}

/* ---- capture */

__launch_bounds__(BLOCK) __global__ void step(int *x) { x[threadIdx.x] = 3 * x[threadIdx.x] + 1; }

static void capture(void)
{
    mirror<int> x(BLOCK);
    struct dev_graph *g = NULL;
    struct err e;
    for (int i = 0; i < BLOCK; i++) x.host[i] = i;
    x.put();
    bool right = dev_capture_begin(d, &e) == 0;
    for (int i = 0; i < 4; i++) gpu_launch(step, 1, BLOCK, 0, gpu_stream_of(d), x.p);
    right = right && dev_capture_end(&g, d, &e) == 0 && dev_graph_launches(g) == 4;
    for (int i = 0; i < 2 && right; i++) dev_graph_run(d, g);
    x.get();
    for (int i = 0; i < BLOCK; i++) right &= x.host[i] == 6561 * i + 3280;
    dev_graph_free(g);
    report(right, "launches are recorded and repeated");
}

/* ---- what the emulator finds: each of these ends the process that does it */

#if defined(GPU_EMU)
__global__ void past_the_end(char *p, int at) { p[at] = 1; }
__global__ void odd_barrier() { if (threadIdx.x % 2) __syncthreads(); else gpu_sync_warp(); }
__global__ void lost_lane() { if (threadIdx.x) (void)gpu_shfl((int)threadIdx.x, 0); }

static void dies(void (*what)(void), const char *name)
{
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        what();
        _exit(0);
    }
    waitpid(child, &status, 0);
    report(!(WIFEXITED(status) && WEXITSTATUS(status) == 0), name);
}

static void *block_of(size_t n)
{
    void *p;
    struct err e;
    if (dev_alloc(&p, d, n, &e) < 0) BUG("%s", e.msg);
    return p;
}

static void findings(void)
{
    dies([] { *(volatile char *)block_of(100) = 1; }, "memory touched by the host is found");
    dies([] { gpu_launch(past_the_end, 1, 1, 0, gpu_stream_of(d), (char *)block_of(128), 128); },
         "writing past the end is found");
    dies([] { gpu_launch(odd_barrier, 1, BLOCK, 0, gpu_stream_of(d)); }, "threads that wait for each other are found");
    dies([] { gpu_launch(lost_lane, 1, GPU_WARP, 0, gpu_stream_of(d)); }, "reading a lane that has left is found");
}

/* ---- what a machine may do to us */

/* Runs it in a process of its own; its exit status, and what it said on stderr. */
static int ends(void (*what)(void), char *said, size_t size)
{
    int pipes[2], status = 0;
    if (pipe(pipes)) BUG("no pipe");
    fflush(stdout);
    const pid_t child = fork();
    if (!child) {
        dup2(pipes[1], 2);
        what();
        _exit(0);
    }
    close(pipes[1]);
    size_t n = 0;
    for (ssize_t k; n + 1 < size && (k = read(pipes[0], said + n, size - 1 - n)) > 0;) n += (size_t)k;
    said[n] = 0;
    close(pipes[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void lose_card(void)
{
    struct llava_options o = llava_options_default();
    struct llava_engine *engine;
    struct llava_session *session;
    struct llava_error e;
    o.model_path = "tests/golden/models/llava-liuhaotian";
    o.device = GPU_KIND;
    o.quiet = true;
    if (llava_open(&engine, &o, &e) < 0 || llava_session_open(&session, engine, &e) < 0) _exit(1);
    emu.fails_in = 8, emu.fails_with = emuErrorLaunchFailure; /* in the middle of a prompt */
    llava_session_prompt(session, "What is this?", NULL, 0, &e);
}

static bool refuses(int count_rc, int driver, const char *want)
{
    struct err e = {};
    struct dev *other = NULL;
    emu.count_rc = count_rc, emu.driver = driver;
    const int rc = dev_open(&other, GPU_KIND, &e);
    emu.count_rc = 0, emu.driver = 1000;
    return rc < 0 && !other && strstr(e.msg, want);
}

/* Every call that opening a card makes, or every one that takes memory, fails once: each is said, and what was taken is
 * given back. */
static bool opening_fails(int with, int code, int least)
{
    const size_t blocks = emu.memory.size();
    int n = 0;
    for (struct dev *other = NULL; !other; n++) {
        struct err e = {};
        emu.fails_in = n + 1, emu.fails_with = with;
        const int rc = dev_open(&other, GPU_KIND, &e);
        if (!other && (rc != code || !strstr(e.msg, "'" GPU_KIND ":0'") || !strstr(e.msg, " cannot be used: "))) break;
        emu.fails_in = n + 1;
        struct dev *any = NULL;
        if (!other && (dev_open(&any, "auto", &e) < 0 || any)) break; /* the processor */
        if (other && rc >= 0 && n >= least && emu.memory.size() == blocks) {
            emu.fails_in = 0;
            dev_close(other);
            return true;
        }
    }
    emu.fails_in = 0;
    return false;
}

/* Opens a model, asks about a picture and closes all, where the nth taking of memory fails. A question that failed so
 * can be asked again. < 0: it was said that there is none; 1: something else; 0: nothing failed. */
static int ask_without(int nth, bool quantised)
{
    struct llava_options o = llava_options_default();
    struct llava_engine *engine = NULL;
    struct llava_session *session = NULL;
    struct llava_image *image = NULL;
    struct llava_error e = {};
    static const char question[] = "<image> What is this?";
    o.model_path = "tests/golden/models/llava-liuhaotian";
    o.device = GPU_KIND;
    o.quiet = true;
    o.load_4bit = quantised;
    emu.fails_in = nth, emu.fails_with = emuErrorMemoryAllocation;
    int rc = llava_open(&engine, &o, &e);
    if (rc >= 0) rc = llava_session_open(&session, engine, &e);
    if (rc >= 0) rc = llava_image_open(&image, engine, "tests/golden/pictures/wide-37x23.png", &e);
    if (rc >= 0 && (rc = llava_session_prompt(session, question, &image, 1, &e)) < 0) {
        struct llava_error none = {};
        if (llava_session_prompt(session, question, &image, 1, &none) < 0) rc = 1;
    }
    if (rc < 0 && (rc != ERR_NOMEM || !*e.message)) rc = 1;
    emu.fails_in = 0;
    llava_image_close(image);
    llava_session_close(session);
    llava_close(engine);
    return rc;
}

static bool memory_ends(bool quantised)
{
    const size_t blocks = emu.memory.size();
    for (int n = 1; n < 100; n++) {
        const int rc = ask_without(n, quantised);
        if (rc > 0 || emu.memory.size() != blocks) return false;
        if (rc == 0) return n > 15;
    }
    return false;
}

static void faults(void)
{
    char said[1024];
    const int status = ends(lose_card, said, sizeof said);
    const char *line = strstr(said, "llava: the " GPU_KIND " device has failed: ");
    report(status == 70 && line == said && strchr(said, '\n') == said + strlen(said) - 1,
           "a card that is lost in mid-step ends the program with 70 and one line");
    report(opening_fails(emuErrorMemoryAllocation, ERR_NOMEM, 2), "a card whose memory is full cannot be opened");
    report(opening_fails(emuErrorLaunchFailure, ERR_UNSUPPORTED, 6), "nor one that fails");
    report(memory_ends(false), "no memory, wherever a model that answers takes some, is said");
    report(memory_ends(true), "the same in 4 bits");
    report(refuses(emuErrorNoDevice, 1000, "no " GPU_KIND " device on this machine"), "no card is said");
    report(refuses(emuErrorInsufficientDriver, 0, "no driver for " GPU_KIND " on this machine"), "no driver is said");
    report(refuses(emuErrorInsufficientDriver, 900, "is version 0.90, this build needs 1.0"),
           "a driver that is older than the build is said");
}
#endif

int main(void)
{
    struct err e;
    if (dev_open(&d, GPU_KIND, &e) < 0) {
        printf("1..0 # skip %s\n", e.msg);
        return 0;
    }
    warps();
    blocks(512);
    blocks(1 << 14);
    numbers<gpu_bf16>(bf16_to_f32, f32_to_bf16, "bf16 to f32 and back");
    numbers<gpu_f16>(f16_to_f32, f32_to_f16, "f16 to f32 and back");
    capture();
#if defined(GPU_EMU)
    findings();
    faults();
#endif
    dev_close(d);
    printf("1..%d\n", n_tests);
    return n_failed != 0;
}
