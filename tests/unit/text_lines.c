/* The text room as a line filter, driven by text_equal.py: no test of its own.
 *
 *   text_lines FOLDER|MODEL MODE      MODE: file, legacy, new or 431
 * One request a line on stdin, one answer a line on stdout; texts are hex.
 *   e TEXT     ids of tokenizer_encode          p TEXT   ids of tokenizer_encode_prompt
 *   r TEXT     ids of tokenizer_encode_text
 *   d IDS...   tokenizer_decode, all tokens     k IDS... the same, special tokens skipped
 *   s IDS...   what a stream gives for each id and at the end, separated by '|'
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "text/stream.h"
#include "text/tokenizer.h"

enum { LINE_MAX_BYTES = 1 << 20 };

static size_t from_hex(char *p, const char *hex)
{
    size_t n = 0;
    for (unsigned v; sscanf(hex + 2 * n, "%2x", &v) == 1; n++) p[n] = (char)v;
    return n;
}

static void put_hex(const struct buf *b)
{
    for (size_t i = 0; i < b->n; i++) printf("%02x", (unsigned char)b->p[i]);
}

static void put_ids(const struct ids *ids)
{
    for (size_t i = 0; i < ids->n; i++) printf("%s%d", i ? " " : "", ids->p[i]);
}

static void encode(const struct tokenizer *t, char what, const char *hex)
{
    struct err e = { 0 };
    struct ids ids = ids_make(IDS_MAX);
    char *text = malloc(LINE_MAX_BYTES);
    size_t n = from_hex(text, hex);
    int rc = what == 'e' ? tokenizer_encode(t, text, n, &ids, &e)
           : what == 'p' ? tokenizer_encode_prompt(t, text, n, &ids, &e)
                         : tokenizer_encode_text(t, text, n, &ids, &e);
    if (rc < 0) printf("error: %s", e.msg);
    put_ids(&ids);
    free(text);
    ids_free(&ids);
}

static void decode(const struct tokenizer *t, char what, const char *list)
{
    struct ids ids = ids_make(IDS_MAX);
    struct buf b = buf_make(LINE_MAX_BYTES);
    int used;
    for (int id; sscanf(list, "%d%n", &id, &used) == 1; list += used) ids_add(&ids, id);
    if (what == 's') {
        struct stream s;
        stream_init(&s, t);
        for (size_t i = 0; i <= ids.n; i++) {
            buf_reset(&b);
            if (i < ids.n) stream_push(&s, ids.p[i], &b);
            else stream_flush(&s, &b);
            put_hex(&b);
            putchar(i < ids.n ? '|' : ' ');
        }
        stream_fini(&s);
    } else {
        tokenizer_decode(t, ids.p, ids.n, what == 'k', &b);
        put_hex(&b);
    }
    buf_free(&b);
    ids_free(&ids);
}

int main(int argc, char **argv)
{
    static const char *const modes[] = { "legacy", "new", "431" };
    static char line[LINE_MAX_BYTES];
    struct tokenizer *t = NULL;
    struct err e = { 0 };
    struct stat st;
    if (argc != 3) {
        puts("1..0 # SKIP driven by text_equal.py");
        return 0;
    }
    int rc = stat(argv[1], &st) == 0 && S_ISDIR(st.st_mode)
                 ? tokenizer_open(&t, argv[1], &e)
                 : tokenizer_open_model(&t, argv[1], TOKENIZER_LEGACY, &e);
    if (rc < 0) {
        printf("error: %s: %s\n", err_name(e.code), e.msg);
        return 1;
    }
    for (int i = 0; i < 3; i++)
        if (strcmp(argv[2], modes[i]) == 0) tokenizer_set_mode(t, (enum tokenizer_mode)i);
    while (fgets(line, sizeof line, stdin)) {
        if (strchr("epr", line[0])) encode(t, line[0], line + 2);
        else decode(t, line[0], line + 2);
        putchar('\n');
    }
    tokenizer_close(t);
    return 0;
}
