/* What a step reads comes from the host to the device. */
#include "op/op.h"

struct tensor op_input(struct op_ctx *o, struct tensor host)
{
    struct tensor t = host;
    t.id = 0;
    if (dtype_is_float((enum dtype)host.type)) t.type = (int8_t)o->type;
    t.p = arena_take(o->act, tensor_bytes(t));
    const size_t mark = arena_mark(o->act);
    struct tensor raw = t;
    if (t.type != host.type) {
        raw = host;
        raw.p = arena_take(o->act, tensor_bytes(host));
    }
    if (!o->dry) dev_put(o->kc->dev, raw.p, host.p, tensor_bytes(host));
    if (raw.p != t.p) OP_RUN(o, cast, t, raw);
    arena_rewind(o->act, mark);
    return t;
}
