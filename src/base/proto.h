/* Writing protocol buffers (protobuf.dev/programming-guides/encoding): each function appends one field to a message. */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

void proto_int(struct buf *b, unsigned field, int64_t v); /* int32, int64, uint32, uint64, bool, enum */
void proto_float(struct buf *b, unsigned field, float v);
void proto_double(struct buf *b, unsigned field, double v);
void proto_bytes(struct buf *b, unsigned field, const void *p, size_t n);
void proto_text(struct buf *b, unsigned field, const char *s);
/* A message inside another; frees it, and b has failed if it had. */
void proto_message(struct buf *b, unsigned field, struct buf *m);

/* v's lowest bytes, the lowest first: what files around messages are made of. */
void proto_le(struct buf *b, uint64_t v, int bytes);
