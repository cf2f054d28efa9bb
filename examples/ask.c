/* Asks a model one question about a picture:  ask MODEL PICTURE QUESTION
 *
 * All of it is in llava.h. With the library installed: cc ask.c $(pkg-config --cflags --libs llava) -o ask */
#include <llava.h>
#include <stdio.h>

static bool print(void *ctx, const char *text, size_t n)
{
    (void)ctx;
    return fwrite(text, 1, n, stdout) == n;
}

int main(int argc, char **argv)
{
    struct llava_options o = llava_options_default();
    struct llava_sampling how = llava_sampling_default();
    struct llava_engine *engine = NULL;
    struct llava_image *image = NULL;
    struct llava_conversation *talk = NULL;
    struct llava_session *session = NULL;
    const char *prompt = NULL;
    struct llava_error e;
    if (argc != 4) return fprintf(stderr, "usage: ask MODEL PICTURE QUESTION\n"), 2;
    o.model_path = argv[1];
    int rc = llava_open(&engine, &o, &e);
    if (rc >= 0) rc = llava_image_open(&image, engine, argv[2], &e);
    if (rc >= 0) rc = llava_conversation_open(&talk, engine, NULL, &e);
    if (rc >= 0) rc = llava_conversation_ask(talk, argv[3], 1, &e);
    if (rc >= 0) rc = llava_session_open(&session, engine, &e);
    if (rc >= 0) rc = llava_conversation_prompt(&prompt, talk, &e);
    if (rc >= 0) rc = llava_session_prompt(session, prompt, &image, 1, &e);
    if (rc >= 0) {
        const char *stop = llava_conversation_stop(talk);
        how.stop = &stop;
        how.n_stop = 1;
        rc = llava_session_generate(session, &how, print, NULL, NULL, &e);
    }
    puts("");
    if (rc < 0) fprintf(stderr, "ask: %s\n", e.message);
    llava_session_close(session);
    llava_conversation_close(talk);
    llava_image_close(image);
    llava_close(engine);
    return rc < 0;
}
