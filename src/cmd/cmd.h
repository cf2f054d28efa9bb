/* The commands of the program, and what their option parsers share.
 *
 * A command is a function over argc, argv (argv[0] is "llava NAME") that returns an exit code: 0 done, 1
 * failed with one line on stderr, 2 wrong usage. Options are glibc argp tables; --max_new_tokens and
 * --max-new-tokens are one, and unique prefixes are accepted as Python's argparse does.
 */
#pragma once
#include <argp.h>
#include <stdbool.h>

#include "base/err.h"
#include "llava.h"

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_forward(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_merge(int argc, char **argv);
int cmd_quantize(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_bench_train(int argc, char **argv); /* argv[0] is "llava bench train" */
int cmd_env(int argc, char **argv);
int cmd_controller(int argc, char **argv);
int cmd_worker(int argc, char **argv);
int cmd_web(int argc, char **argv);
int cmd_serve(int argc, char **argv);

/* Prints "llava: MESSAGE" and returns 1. */
int cmd_fail(const char *message);

/* Parses with the house's settings. 0, or the exit code to leave with (never returns for --help). */
int cmd_parse(const struct argp *argp, int argc, char **argv, void *input);

/* Whole and real numbers as option values; on nonsense they end the parse with a usage error that names the option. */
long cmd_int(struct argp_state *state, const char *option, const char *arg, long min, long max);
double cmd_real(struct argp_state *state, const char *option, const char *arg, double min, double max);
/* The name of a conversation template, else a usage error that lists them. */
const char *cmd_conversation(struct argp_state *state, const char *arg);

/* Options that open a model, shared by commands through argp's children; the child's input is a struct
 * llava_options. */
extern const struct argp cmd_model_argp;
/* Options that choose tokens: temperature, top-p, top-k, seed, new tokens, beams; input is a struct llava_sampling. */
extern const struct argp cmd_sampling_argp;
/* Keys of a command's own options start here, those of the shared tables lie above. */
enum {
    CMD_KEY = 1000,
    CMD_MODEL_KEY = 2000,
    CMD_SAMPLING_KEY = 3000,
    CMD_SERVER_KEY = 4000,
    CMD_BATCH_KEY = 5000,
    CMD_PAGE_KEY = 6000
};

/* Text that every command's help ends with. */
#define CMD_EXIT_STATUS "Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage."
