/* TensorBoard's event files: records of TFRecord (length and data, each with a masked CRC-32C) that hold the protobuf
 * messages of tensorflow/core/util/event.proto. Each function appends one whole record to b; write it in one piece.
 * Source: tensorflow/core/lib/io/record_writer.cc, core/util/event.proto, core/framework/{summary,tensor}.proto.
 */
#pragma once
#include <stdint.h>

#include "base/buf.h"
#include "train/standing.h"

/* time_s: seconds since 1970, on every event. */
void event_version(struct buf *b, double time_s);                                   /* must come first in a file */
void event_restart(struct buf *b, double time_s, int64_t step);                     /* forget what is from step on */
void event_scalars(struct buf *b, double time_s, int64_t step, const struct scalar *v, int n);
void event_text(struct buf *b, double time_s, int64_t step, const char *tag, const char *markdown);
