/* llava chat: a conversation about a picture on the terminal; replaces llava/serve/cli.py. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/ask.h"

enum { K_IMAGE = CMD_KEY, K_CONV, K_DEBUG };

struct chat {
    struct llava_options model;
    struct llava_sampling sampling;
    const char *image, *conv;
    bool debug;
};

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Conversation:", 0 },
    { "image-file", K_IMAGE, "FILE", 0, "The picture: a file or an http(s) address", 0 },
    { "conv-mode", K_CONV, "NAME", 0, "Conversation template (default: the one that suits the model)", 0 },
    { "debug", K_DEBUG, NULL, 0, "After each answer, print the prompt and the answer as they were", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct chat *c = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &c->model;
        state->child_inputs[1] = &c->sampling;
        break;
    case K_IMAGE: c->image = arg; break;
    case K_CONV: c->conv = cmd_conversation(state, arg); break;
    case K_DEBUG: c->debug = true; break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!c->model.model_path) argp_error(state, "--model-path is needed");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &cmd_model_argp, 0, "", 1 }, { &cmd_sampling_argp, 0, "", 2 }, { 0 } };
static const struct argp argp = {
    options,
    option,
    NULL,
    "Talks about a picture: type a question after \"USER: \", read the answer, go on. An empty line or the "
    "end of input leaves. A further question costs only its own tokens: what was said and seen is kept.\v"
    "Example:\n"
    "  llava chat --model-path liuhaotian/llava-v1.5-7b --image-file cat.jpg\n\n" CMD_EXIT_STATUS,
    children,
    NULL,
    NULL
};

struct talk {
    struct llava_engine *engine;
    struct llava_session *session;
    struct llava_conversation *conv;
    struct llava_image *image;
    double ceiling; /* GB/s, measured at the first answer */
};

/* A string as Python's repr writes it. */
static void print_repr(const char *s)
{
    const char quote = strchr(s, '\'') && !strchr(s, '"') ? '"' : '\'';
    static const char escaped[] = "\n\r\t\\", letters[] = "nrt\\";
    putchar(quote);
    for (; *s; s++) {
        const char *at = strchr(escaped, *s);
        if (at) printf("\\%c", letters[at - escaped]);
        else if (*s == quote) printf("\\%c", quote);
        else if ((unsigned char)*s < 0x20 || *s == 0x7f) printf("\\x%02x", (unsigned char)*s);
        else putchar(*s);
    }
    putchar(quote);
}

/* print("\n", {"prompt": prompt, "outputs": outputs}, "\n") of llava.serve.cli */
static void print_debug(const char *prompt, const char *outputs)
{
    printf("\n {'prompt': ");
    print_repr(prompt);
    printf(", 'outputs': ");
    print_repr(outputs);
    printf("} \n\n");
}

/* One question and its answer. On an error the conversation is as it was before. */
static int one_turn(struct chat *c, struct talk *t, const char *question, bool first, struct llava_error *e)
{
    struct ask_text text = { .to = stdout };
    struct llava_result result;
    const char *stop = llava_conversation_stop(t->conv), *prompt = NULL;
    int rc = llava_conversation_ask(t->conv, question, first && t->image ? 1 : 0, e);
    if (rc < 0) return rc;
    rc = llava_conversation_prompt(&prompt, t->conv, e);
    if (rc >= 0) rc = llava_session_prompt(t->session, prompt, &t->image, t->image != NULL, e);
    c->sampling.stop = &stop;
    c->sampling.n_stop = stop != NULL;
    c->sampling.text = LLAVA_TEXT_LINES;
    if (rc >= 0) {
        printf("ASSISTANT: ");
        fflush(stdout);
        rc = llava_session_generate(t->session, &c->sampling, ask_on_text, &text, &result, e);
        ask_end(&text);
    }
    if (rc >= 0) {
        if (c->debug) print_debug(prompt, text.text ? text.text : "");
        rc = llava_conversation_answer(t->conv, text.text ? text.text : "", e);
        if (!c->model.quiet) ask_statistics(t->engine, &result, &t->ceiling);
    }
    if (rc < 0) llava_conversation_undo(t->conv);
    ask_free(&text);
    return rc;
}

/* Returns the exit code: a question that fails is said and left out, the conversation goes on. */
static int converse(struct chat *c, struct talk *t)
{
    char *line = NULL;
    size_t cap = 0;
    int code = 0;
    bool first = true;
    while (!ferror(stdout)) {
        struct llava_error e = { 0 };
        printf("USER: ");
        fflush(stdout);
        ssize_t n = getline(&line, &cap, stdin);
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (n <= 0) {
            printf("exit...\n");
            break;
        }
        if (one_turn(c, t, line, first, &e) < 0) code = cmd_fail(e.message);
        else first = false;
    }
    free(line);
    return code;
}

int cmd_chat(int argc, char **argv)
{
    struct chat c = { .model = llava_options_default(), .sampling = llava_sampling_default() };
    int rc = cmd_parse(&argp, argc, argv, &c);
    if (rc) return rc;
    struct llava_error e = { 0 };
    struct talk t = { 0 };
    struct llava_info info;
    int code = 0;
    rc = c.image ? ask_there(c.image, &e) : 0;
    if (rc >= 0) rc = llava_open(&t.engine, &c.model, &e);
    if (rc >= 0 && c.image) rc = ask_image_open(&t.image, t.engine, c.image, &e);
    if (rc >= 0) rc = llava_session_open(&t.session, t.engine, &e);
    if (rc >= 0) rc = llava_session_adapter(t.session, llava_adapter_name(t.engine, 0), &e);
    if (rc >= 0) rc = llava_conversation_open(&t.conv, t.engine, c.conv, &e);
    if (rc >= 0) {
        llava_engine_info(t.engine, &info);
        if (c.conv && strcmp(c.conv, info.conversation) != 0)
            printf("[WARNING] the auto inferred conversation mode is %s, while `--conv-mode` is %s, using %s\n",
                   info.conversation, c.conv, c.conv);
        code = converse(&c, &t);
    }
    llava_conversation_close(t.conv);
    llava_session_close(t.session);
    llava_image_close(t.image);
    llava_close(t.engine);
    return rc < 0 ? cmd_fail(e.message) : code;
}
