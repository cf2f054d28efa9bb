/* The servers' log in LLaVA's form: "2026-01-31 12:00:00 | INFO | controller | text", to a file that is set aside every
 * day (NAME.YYYY-MM-DD, UTC) and to standard error. A full disk costs lines, not service. */
#pragma once
#include "base/err.h"

struct journal;
/* DIR/FILE, appended to; name as it stands in the lines. dir NULL: standard error only. */
int journal_open(struct journal **ret, const char *name, const char *dir, const char *file, struct err *e);
void journal_close(struct journal *j);
void journal_info(struct journal *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void journal_error(struct journal *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
