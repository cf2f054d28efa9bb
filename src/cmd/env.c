/* llava env: what the program found, to be pasted into a bug report. */
#include <curl/curl.h>
#include <jansson.h>
#include <jpeglib.h>
#include <png.h>
#include <stdio.h>
#include <string.h>
#include <webp/decode.h>

#include "base/plat.h"
#include "cmd/cmd.h"
#include "dev/dev.h"
#include "kern/cpu/cpu.h"

static const struct argp argp = { NULL, NULL, NULL,
                                  "Prints the version, the processor and what its memory reads, the GPUs that this "
                                  "build can use, the libraries, and the environment names that mean something."
                                  "\v" CMD_EXIT_STATUS,
                                  NULL, NULL, NULL };

static void print_processor(void)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10)) {
            char *v = strchr(line, ':');
            printf("processor     %s", v ? v + 2 : "?\n");
            break;
        }
    if (f) fclose(f);
}

/* Each card, or why there is none. */
static void print_devices(void)
{
    const char *kind = strstr(dev_kinds(), ", ");
    for (int i = 0, more = kind != NULL; more; i++) {
        char name[24];
        struct dev *d;
        struct err e = { 0 };
        snprintf(name, sizeof name, "%s:%d", kind + 2, i);
        more = dev_open(&d, name, &e) >= 0;
        const struct dev_memory m = more ? dev_memory_now(d) : (struct dev_memory){ 0 };
        if (more)
            printf("device        %s, %s, %.1f GB, %.1f GB free\n", name, dev_model(d), 1e-9 * (double)m.total,
                   1e-9 * (double)m.free);
        else if (!i || e.code != ERR_USAGE) /* past the last */
            printf("device        none: %s\n", e.msg);
        dev_close(d);
    }
}

int cmd_env(int argc, char **argv)
{
    int rc = cmd_parse(&argp, argc, argv, NULL);
    if (rc) return rc;
    struct kern k;
    int webp = WebPGetDecoderVersion();
    printf("llava         %s\n", llava_version());
    print_processor();
    printf("kernels       %s\n", kern_init_cpu(&k, env_get(ENV_LLAVA_CPU)));
    printf("threads       %d\n", plat_threads());
    printf("memory        %.1f GB, reads %.1f GB/s\n", (double)plat_memory_total() * 1e-9,
           cpu_read_ceiling(plat_threads()));
    print_devices();
    printf("libjpeg       %d\nlibpng        %s\nlibwebp       %d.%d.%d\n", JPEG_LIB_VERSION,
           png_get_libpng_ver(NULL), webp >> 16, webp >> 8 & 255, webp & 255);
    printf("libcurl       %s\njansson       %s\n\nenvironment\n", curl_version(), jansson_version_str());
    static const struct { enum env_name name; const char *text, *help; } names[] = {
#define XX(name, text) { ENV_##name, #name, text },
        ENV_MAP(XX)
#undef XX
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *v = env_get(names[i].name);
        bool secret = names[i].name == ENV_HF_TOKEN || names[i].name == ENV_LLAVA_API_KEY ||
                      names[i].name == ENV_OPENAI_API_KEY;
        printf("  %-16s %-12s %s\n", names[i].text, v ? (secret ? "(set)" : v) : "-", names[i].help);
    }
    return 0;
}
