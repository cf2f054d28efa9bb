/* Options of the page, shared by the commands that show it; input is a struct paging. */
#pragma once
#include "cmd/cmd.h"
#include "serve/web.h"

struct paging {
    struct web_options web;
    bool moderate;
};
extern const struct argp paging_argp;
/* After parsing: what the environment adds. Refuses --moderate without a key. */
int paging_check(struct paging *p, const char *log_dir, struct err *e);
