/* A training sample to token ids and labels (LLaVA's llava/train/train.py, preprocess and
 * preprocess_multimodal).
 *
 * A label is the id itself where the model is to learn it, IDS_IGNORE elsewhere. The reference finds the
 * answers by counting the tokens of pieces of text, and throws a sample's labels away where its sums don't
 * come out; here the answers' places in the prompt are known, so that can't happen. Where the reference keeps
 * a sample the labels are equal (but for texts that hold the template's own marks, where it cuts in the wrong
 * place; for models that squeeze spaces, where it learns one token too many; and for samples longer than the
 * limit, which it keeps though its sums don't come out).
 * What is learned, by the template:
 *   TWO, LLAMA_2, MPT   each answer with what ends it (</s>; for LLAMA_2 the space before it too; <|im_end|>)
 *   PLAIN               everything after the picture: the answer and the line break after it
 *   SINGLE              LLaVA's first format, "### Human: ...": masked by token counts exactly as the
 *                       reference does it, which also learns the first tokens of each question and drifts
 *                       by a token a turn
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "text/conv.h"
#include "text/ids.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

/* One entry of a sample's "conversations": from is "human" or "gpt". */
struct turn { struct span from, value; };

struct supervise {
    const struct tokenizer *tokenizer;
    const struct conv_template *tpl;
    bool im_start_end; /* mm_use_im_start_end: a picture is "<im_start><image><im_end>" */
    size_t max_length; /* both lists are cut to it (model_max_length); 0: not cut */
};

/* preprocess_multimodal for one turn of a sample with pictures. With one picture "<image>" moves to the front, once;
 * with several, which the reference does not know, each stays where it is. Adds to `out`. */
void supervise_picture(const struct supervise *s, struct span value, size_t n_images, struct buf *out);

/* ids and labels must be empty; they end up with the same length. n_images: pictures of the sample; with any,
 * supervise_picture is applied to every turn, and "<image>" becomes IDS_IMAGE (the caller checks that there are
 * not more of them than pictures). Returns in how many places (answers; 1 for PLAIN and SINGLE) max_length takes away
 * what would be learned. Errors: ERR_FORMAT for turns that don't alternate, or are of nobody known, or (PLAIN) aren't
 * two with "<image>" in the first; ERR_LIMIT. A text of megabytes costs no more than max_length needs of it. */
int supervise(const struct supervise *s, const struct turn *turn, size_t n, size_t n_images, struct ids *ids,
              struct ids *labels, struct err *e);
