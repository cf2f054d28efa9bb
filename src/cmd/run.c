/* llava run: one question about one or more pictures, as llava/eval/run_llava.py, or about each of a folder. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/ask.h"
#include "cmd/folder.h"

enum { K_IMAGE = CMD_KEY, K_QUERY, K_CONV, K_SEP, K_PROMPT, K_FOLDER, K_OUTPUT, K_PARALLEL, K_QUESTIONS };

struct run {
    struct llava_options model;
    struct llava_sampling sampling;
    struct ask_images images;
    const char *query, *prompt, *conv, *sep;
    const char *folder, *output, *questions;
    int parallel;
};

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Question:", 0 },
    { "image-file", K_IMAGE, "FILE[,FILE...]", 0,
      "Picture: a file or an http(s) address. Several are split at --sep, or given by repeating the option", 0 },
    { "query", K_QUERY, "TEXT", 0,
      "The question. <image-placeholder> says where a picture goes; without one, pictures come first", 0 },
    { "prompt", K_PROMPT, "TEXT", 0, "The whole prompt, with its <image>; no template is used", 0 },
    { "conv-mode", K_CONV, "NAME", 0, "Conversation template (default: the one that suits the model)", 0 },
    { "sep", K_SEP, "TEXT", 0, "Separates names in --image-file (default \",\")", 0 },
    { NULL, 0, NULL, 0, "A folder of pictures:", 0 },
    { "image-folder", K_FOLDER, "DIR", 0, "The question is asked about every picture in DIR and below", 0 },
    { "question-file", K_QUESTIONS, "FILE", 0,
      "Instead of one question those of FILE, a line of JSON each, as LLaVA's evaluations have them: {\"question_id\": "
      "1, \"image\": \"a.jpg\", \"text\": \"...\"}, image in DIR or absent",
      0 },
    { "output", K_OUTPUT, "FILE", 0,
      "Where the answers go, a line of JSON each. Pictures or questions that FILE has answers for are skipped, so that "
      "a run that was stopped goes on; those that failed are asked again. While some have failed the exit status is 1",
      0 },
    { "parallel", K_PARALLEL, "N", 0, "Pictures that are answered at once (default 16)", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct run *r = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &r->model;
        state->child_inputs[1] = &r->sampling;
        break;
    case K_IMAGE: ask_images_option(&r->images, arg, state); break;
    case K_QUERY: r->query = arg; break;
    case K_PROMPT: r->prompt = arg; break;
    case K_CONV: r->conv = cmd_conversation(state, arg); break;
    case K_SEP: r->sep = arg; break;
    case K_FOLDER: r->folder = arg; break;
    case K_OUTPUT: r->output = arg; break;
    case K_QUESTIONS: r->questions = arg; break;
    case K_PARALLEL: r->parallel = (int)cmd_int(state, "parallel", arg, 1, 256); break;
    case ARGP_KEY_ARG: argp_error(state, "unexpected argument '%s'", arg); break;
    case ARGP_KEY_END:
        if (!r->model.model_path) argp_error(state, "--model-path is needed");
        if (!!r->query + !!r->prompt + !!r->questions != 1)
            argp_error(state, "one of --query, --prompt and --question-file is needed");
        if (r->questions && !r->folder) argp_error(state, "--question-file needs --image-folder");
        if (!r->folder != !r->output) argp_error(state, "--image-folder and --output are needed together");
        if (r->folder && r->images.n_values) argp_error(state, "--image-file and --image-folder exclude each other");
        if (r->parallel && !r->folder) argp_error(state, "--parallel is for --image-folder");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

static const struct argp_child children[] = { { &cmd_model_argp, 0, "", 1 }, { &cmd_sampling_argp, 0, "", 2 }, { 0 } };
static const struct argp argp = {
    options, option, NULL,
    "Answers one question about one or more pictures, on standard output.\v"
    "Examples:\n"
    "  llava run --model-path models/demo \\\n"
    "      --image-file models/demo/pictures/dog.png --query \"What is this?\"\n"
    "  llava run --model-path liuhaotian/llava-v1.5-7b --temperature 0 \\\n"
    "      --image-file a.jpg,b.jpg \\\n"
    "      --query \"<image-placeholder>, <image-placeholder>: what differs?\"\n"
    "  llava run --model-path models/demo --image-folder photos \\\n"
    "      --query \"Describe the picture.\" --output photos.jsonl\n\n" CMD_EXIT_STATUS,
    children, NULL, NULL
};

/* The prompt about n pictures, valid as long as *conv, and what ends its answer. */
static int make_prompt(const struct run *r, int n, struct llava_conversation **conv, const char **prompt,
                       const char **stop, struct llava_engine *engine, struct llava_error *e)
{
    *prompt = r->prompt;
    *stop = NULL;
    if (r->prompt) return 0;
    int rc = llava_conversation_open(conv, engine, r->conv, e);
    if (rc >= 0) rc = llava_conversation_ask(*conv, r->query, n, e);
    if (rc >= 0) rc = llava_conversation_prompt(prompt, *conv, e);
    if (rc >= 0) *stop = llava_conversation_stop(*conv);
    return rc;
}

/* What ends the answer to any question. */
static int question_stop(const struct run *r, struct llava_conversation **conv, const char **stop,
                         struct llava_engine *engine, struct llava_error *e)
{
    int rc = llava_conversation_open(conv, engine, r->conv, e);
    *stop = rc >= 0 ? llava_conversation_stop(*conv) : NULL;
    return rc;
}

static int answer_folder(struct run *r, struct llava_engine *engine, struct llava_error *e)
{
    struct llava_conversation *conv = NULL;
    const char *stop;
    struct err err = { 0 };
    struct folder f = { .dir = r->folder, .output = r->output, .sampling = r->sampling, .parallel = r->parallel,
                        .question = r->query ? r->query : r->prompt, .questions = r->questions, .conv = r->conv,
                        .adapter = llava_adapter_name(engine, 0) };
    int rc = r->questions ? question_stop(r, &conv, &stop, engine, e)
                          : make_prompt(r, 1, &conv, &f.prompt, &stop, engine, e);
    f.sampling.stop = &stop;
    f.sampling.n_stop = stop != NULL;
    if (rc >= 0 && (rc = folder_run(&f, engine, &err)) < 0) {
        e->code = rc;
        snprintf(e->message, sizeof e->message, "%s", err.msg);
    }
    llava_conversation_close(conv);
    return rc;
}

static int answer(struct run *r, struct llava_engine *engine, struct llava_error *e)
{
    struct llava_conversation *conv = NULL;
    struct llava_session *session = NULL;
    struct llava_result result;
    struct ask_text text = { .to = stdout };
    const char *prompt, *stop;
    int rc = llava_session_open(&session, engine, e);
    if (rc >= 0) rc = llava_session_adapter(session, llava_adapter_name(engine, 0), e);
    if (rc >= 0) rc = make_prompt(r, r->images.n, &conv, &prompt, &stop, engine, e);
    r->sampling.stop = &stop;
    r->sampling.n_stop = rc >= 0 && stop != NULL;
    if (rc >= 0) rc = llava_session_prompt(session, prompt, r->images.image, r->images.n, e);
    if (rc >= 0) rc = llava_session_generate(session, &r->sampling, ask_on_text, &text, &result, e);
    if (rc >= 0) {
        ask_end(&text);
        if (!r->model.quiet) ask_statistics(engine, &result, &(double){ 0 });
    } else if (text.n) {
        ask_end(&text); /* what was printed ends its line before the message */
    }
    ask_free(&text);
    llava_session_close(session);
    llava_conversation_close(conv);
    return rc;
}

int cmd_run(int argc, char **argv)
{
    struct run r = { .model = llava_options_default(), .sampling = llava_sampling_default(), .sep = "," };
    int rc = cmd_parse(&argp, argc, argv, &r);
    if (rc) return rc;
    struct llava_error e = { 0 };
    struct llava_engine *engine = NULL;
    rc = r.folder ? ask_there(r.folder, &e) : ask_images_find(&r.images, r.sep, &e);
    if (rc >= 0 && r.questions) rc = ask_there(r.questions, &e);
    if (rc >= 0) rc = llava_open(&engine, &r.model, &e);
    if (rc >= 0) rc = ask_images_open(&r.images, engine, &e);
    if (rc >= 0) rc = r.folder ? answer_folder(&r, engine, &e) : answer(&r, engine, &e);
    ask_images_close(&r.images);
    llava_close(engine);
    return rc < 0 ? cmd_fail(e.message) : 0;
}
