/* Asks a model about a picture: ask MODEL PICTURE QUESTION.  cc ask.c $(pkg-config --cflags --libs llava) -o ask */
#include <llava.h>
#include <stdio.h>

static bool print(void *ctx, const char *text, size_t n)
{
    return fwrite(text, 1, n, ctx) == n;
}

int main(int argc, char **argv)
{
    struct llava_options o = llava_options_default();
    struct llava_sampling how = llava_sampling_default();
    struct llava_engine *engine = NULL;
    struct llava_image *image = NULL;
    struct llava_conversation *talk = NULL;
    struct llava_session *session = NULL;
    struct llava_error e = { 0 };
    const char *prompt;
    o.model_path = argc == 4 ? argv[1] : "";
    bool ok = llava_open(&engine, &o, &e) >= 0 && llava_image_open(&image, engine, argv[2], &e) >= 0 &&
              llava_conversation_open(&talk, engine, NULL, &e) >= 0 &&
              llava_conversation_ask(talk, argv[3], 1, &e) >= 0 &&
              llava_conversation_prompt(&prompt, talk, &e) >= 0 && llava_session_open(&session, engine, &e) >= 0 &&
              llava_session_prompt(session, prompt, &image, 1, &e) >= 0 &&
              llava_session_generate(session, &how, print, stdout, NULL, &e) >= 0;
    if (ok) puts("");
    else fprintf(stderr, "ask: %s\n", e.message);
    llava_session_close(session);
    llava_conversation_close(talk);
    llava_image_close(image);
    llava_close(engine);
    return !ok;
}
