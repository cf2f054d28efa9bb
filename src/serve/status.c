/* See status.h. */
#include "serve/status.h"

#include "base/plat.h"
#include "llava.h"
#include "serve/gen.h"

static void on_health(void *ctx, struct exchange *x)
{
    struct status *s = ctx;
    json_t *v = json_pack("{ss,ss}", "status", "ok", "version", llava_version());
    if (s->gen) json_object_set_new(v, "model", json_string(gen_info(s->gen)->name));
    exchange_json(x, 200, v);
}

static void on_metrics(void *ctx, struct exchange *x)
{
    struct status *s = ctx;
    struct buf out = buf_make(1 << 22);
    buf_fmt(&out, "# TYPE llava_info gauge\nllava_info{version=\"%s\"} 1\n", llava_version());
    buf_fmt(&out, "# TYPE process_resident_memory_max_bytes gauge\nprocess_resident_memory_max_bytes %zu\n",
            plat_memory_peak());
    server_metrics(s->server, &out);
    if (s->controller) controller_metrics(s->controller, &out);
    if (s->gen) gen_metrics(s->gen, &out);
    exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", out.p, out.n);
    buf_free(&out);
}

const struct route status_routes[] = {
    { "GET", "/health", on_health, ROUTE_OPEN | ROUTE_QUICK, 0, "alive" },
    { "GET", "/metrics", on_metrics, ROUTE_QUICK, 0, "counters for Prometheus" },
    { 0 },
};
