/* SentencePiece through a C door (spm.cc): the only file that talks to the C++ library.
 *
 * It holds no policy: models come as bytes, text goes in, ids come out. Special tokens, prefixes and joining
 * pieces to text are tokenizer.c's and detok.c's work. A handle is read-only after spm_open: any number of
 * threads may use it.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct spm;
enum spm_kind { SPM_NORMAL, SPM_UNKNOWN, SPM_CONTROL, SPM_UNUSED, SPM_BYTE };

/* `model` is a serialized ModelProto, not kept. 0, or -1 with one line in msg. */
int spm_open(struct spm **ret, const void *model, size_t n, char *msg, size_t msg_cap);
void spm_close(struct spm *s); /* accepts NULL */

int32_t spm_size(const struct spm *s);   /* pieces: ids are [0, size) */
int32_t spm_unk(const struct spm *s);    /* the id of the unknown piece */
enum spm_kind spm_kind(const struct spm *s, int32_t id);
float spm_score(const struct spm *s, int32_t id); /* of BPE: of two merges the one with the higher goes first */
/* The piece's text, with U+2581 for a space; valid as long as s; may hold no NUL inside. id in [0, size). */
const char *spm_piece(const struct spm *s, int32_t id, size_t *n);
/* The id of a piece, spm_unk where there is none. */
int32_t spm_find(const struct spm *s, const char *piece, size_t n);
/* The string that the unknown piece decodes to (SentencePiece's unk_surface). Valid as long as s. */
const char *spm_unk_text(const struct spm *s);

/* Calls put(ctx, id) for each id of text[0..n). 0, or -1 without memory. */
int spm_encode(const struct spm *s, const char *text, size_t n, void (*put)(void *ctx, int32_t id),
               void *ctx);

#ifdef __cplusplus
}
#endif
