/* Between the host and the device: what a step reads comes in, what it gives goes out. */
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

void op_output(struct op_ctx *o, float *host, struct tensor x)
{
    const size_t mark = arena_mark(o->act);
    struct tensor t = x;
    if (x.type != DT_F32) {
        t.type = DT_F32;
        t.p = arena_take(o->act, tensor_bytes(t));
        OP_RUN(o, cast, t, x);
    }
    if (!o->dry) dev_get(o->kc->dev, host, t.p, tensor_bytes(t));
    arena_rewind(o->act, mark);
}
