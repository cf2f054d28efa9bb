/* What the files that implement include/llava*.h share. */
#pragma once
#include "llava_batch.h"
#include "run/image.h"

struct llava_engine { struct engine *g; };
struct llava_image { struct image *im; struct engine *g; };

/* Every public function ends with this: the inner error becomes the caller's. Returns rc. */
int api_done(int rc, const struct err *from, struct llava_error *e);
/* An object of n zeroed bytes; NULL and an error when there is no memory. */
void *api_object(size_t n, struct err *e);
/* The inner pictures of an array of outer ones; the caller frees it, also after an error. */
int api_images(struct image ***ret, const struct engine *g, struct llava_image *const *images, int n, struct err *e);
