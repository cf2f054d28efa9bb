/* What the web server keeps, in LLaVA's places: DIR/YYYY-MM-DD-conv.json, a line for each answer and vote, and
 * DIR/serve_images/YYYY-MM-DD/MD5.jpg, each picture once. A thread of its own writes, so that no answer waits for a
 * disk; what a full disk does not take is lost, which is said once, and counted when it closes. */
#pragma once
#include <stdint.h>

#include "base/err.h"
#include "image/picture.h"

struct keep;
int keep_open(struct keep **ret, const char *dir, struct err *e);
void keep_close(struct keep *k); /* writes what is waiting; accepts NULL */
/* Takes a line (malloc, without its end; NULL is lost) for the day that it is now. */
void keep_line(struct keep *k, char *line);
/* md5: of the pixels, as LLaVA names a picture. */
void keep_picture_name(const struct picture *p, char md5[65]);
/* Takes p's pixels, and leaves it empty. */
void keep_picture(struct keep *k, struct picture *p, const char md5[65]);
