/* llava: one program, one command each job. See cmd.h. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/name.h"
#include "base/plat.h"
#include "cmd/cmd.h"

static const struct command {
    const char *name, *summary;
    int (*run)(int, char **);
} commands[] = {
    { "run", "answer one question about one or more pictures", cmd_run },
    { "chat", "talk about a picture on the terminal", cmd_chat },
    { "forward", "write ids, pixels, features and logits of one prompt to a file", cmd_forward },
    { "inspect", "what is in a checkpoint, what it binds to, the memory it takes", cmd_inspect },
    { "convert", "between naming schemes, to safetensors; extract the projector", cmd_convert },
    { "merge", "merge a LoRA adapter into its base model", cmd_merge },
    { "quantize", "write a model in 8 or 4 bits, as a folder that opens at once", cmd_quantize },
    { "train", "train the projector, the whole model, or adapters", cmd_train },
    { "bench", "measure speed and memory, one JSON object a line", cmd_bench },
    { "serve", "serve a model: web page, OpenAI API, LLaVA's protocol, on one port", cmd_serve },
    { "controller", "keep account of workers and say which one shall answer", cmd_controller },
    { "worker", "serve a model to LLaVA's controller and web server, and as an OpenAI API", cmd_worker },
    { "web", "the web page, with answers from workers that a controller knows", cmd_web },
    { "env", "what this machine has and what the environment says", cmd_env },
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void usage(FILE *f)
{
    fprintf(f, "Usage: llava COMMAND [OPTION...]\n\n"
               "LLaVA in one program: look at pictures and answer questions about them.\n\nCommands:\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(f, "  %-11s %s\n", commands[i].name, commands[i].summary);
    fprintf(f, "\n`llava COMMAND --help` explains each. Try:\n"
               "  llava run --model-path models/demo \\\n"
               "      --image-file models/demo/pictures/dog.png --query \"What is this?\"\n\n" CMD_EXIT_STATUS "\n");
}

static int unknown(const char *name)
{
    int best = 0;
    for (int i = 1; i < N_COMMANDS; i++)
        if (name_distance(name, commands[i].name) < name_distance(name, commands[best].name)) best = i;
    fprintf(stderr, "llava: no command '%s'", name);
    if (name_distance(name, commands[best].name) <= 2) fprintf(stderr, ", did you mean '%s'?", commands[best].name);
    fprintf(stderr, "\n");
    return 2;
}

int main(int argc, char **argv)
{
    plat_settle(argv);
    signal(SIGXFSZ, SIG_IGN); /* a file over the limit is then an error of write, with a message */
    if (argc < 2) {
        usage(stderr);
        return 2;
    }
    const char *name = argv[1];
    if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
        usage(stdout);
        return 0;
    }
    if (!strcmp(name, "--version") || !strcmp(name, "-V") || !strcmp(name, "version")) {
        printf("llava %s\n", llava_version());
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(name, commands[i].name) != 0) continue;
        static char full[64];
        snprintf(full, sizeof full, "llava %s", name);
        argv[1] = full;
        static char help[] = "--help";
        if (argc == 3 && !strcmp(argv[2], "-h")) argv[2] = help;
        int rc = commands[i].run(argc - 1, argv + 1);
        if ((fflush(stdout) != 0 || ferror(stdout)) && rc == 0) return cmd_fail("cannot write to standard output");
        return rc;
    }
    return unknown(name);
}
