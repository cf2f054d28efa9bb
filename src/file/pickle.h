/* The part of Python's pickle format that torch.save uses for tensors in dicts, read into a tree of values.
 *
 * Nothing is executed. A pickle is a program that may call any Python function; here the only names it may
 * mention are collections.OrderedDict, torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter,
 * torch.Size and torch.*Storage, and "calling" them makes a node of this tree. Any other name is an error
 * that quotes it. Protocols 2 to 5. Source: the comments of CPython's Lib/pickletools.py, which define the
 * opcodes.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum { PICKLE_MAX = 64 << 20, PICKLE_VALUES_MAX = 1 << 22 }; /* bytes; values, and links between them */

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,    /* i */
    PICKLE_INT,     /* i */
    PICKLE_REAL,    /* f */
    PICKLE_STR,     /* s, n: a view of the pickle, UTF-8 not checked */
    PICKLE_TUPLE,   /* links: the members */
    PICKLE_LIST,    /* links: the members */
    PICKLE_DICT,    /* links: key, value, key, value, ... */
    PICKLE_CALL,    /* a name that may be called; i: enum pickle_call */
    PICKLE_TYPE,    /* torch.*Storage; i: enum dtype */
    PICKLE_STORAGE, /* links: the persistent id ('storage', type, key, place, count) */
    PICKLE_TENSOR   /* links: the arguments of _rebuild_tensor_v2 (storage, offset, shape, strides, ...) */
};

struct pickle_value {
    enum pickle_kind kind;
    uint32_t n;           /* bytes of s, or number of links */
    uint32_t first, last; /* links */
    union {
        int64_t i;
        double f;
        const char *s;
    };
};

struct pickle_link {
    uint32_t value, next; /* index of a value; index of the next link, 0 at the end */
};

struct pickle {
    struct pickle_value *value; /* value[0] is not used */
    struct pickle_link *link;
    uint32_t root; /* index of the whole */
    size_t n_value, cap_value, n_link, cap_link;
};

/* Errors: FORMAT, LIMIT, NOMEM, UNSUPPORTED (another name or opcode: "refuses to call 'os.system'"). */
int pickle_open(struct pickle *t, const void *p, size_t n, const char *file, struct err *e);
void pickle_close(struct pickle *t); /* accepts a zeroed one */

/* The k-th member of a TUPLE, LIST, DICT, STORAGE or TENSOR; NULL past the end. O(k). */
const struct pickle_value *pickle_member(const struct pickle *t, const struct pickle_value *v, uint32_t k);
