/* See schema.h. */
#include "text/schema.h"

#include <ctype.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/number.h"
#include "text/regex.h"

enum { NEST_MAX = 64, RULES_MAX = SCHEMA_PARTS_MAX, REFS_MAX = 1024, RANGES_MAX = 64, COUNT_MAX = 4096,
       PREFIX_MAX = 256, TEXT_MAX = 1 << 24 };

struct writer {
    struct buf *out;
    const json_t *root;
    int n_rules, nest;
    struct { const json_t *schema; int rule; } ref[REFS_MAX]; /* what $ref has led to */
    int n_refs;
    struct { int64_t lo, hi, from, to; bool integer; int rule; } range[RANGES_MAX]; /* of numbers that were met */
    int n_ranges;
    struct err *e;
};

static const char common[] =
    "ws ::= \"\" | \" \" | \"\\n\" [ \\t]{0,20}\n"
    "char ::= [^\"\\\\\\x00-\\x1f\\x7f] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" code)\n"
    "code ::= [1-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2} | \"0\" ([1-9a-fA-F] hex{2} | \"0\" ([1-9a-fA-F] hex | \"0\" "
    "[1-9a-fA-F]))\n" /* no halves of pairs, which alone are no text, and not NUL */
    "hex ::= [0-9a-fA-F]\n"
    "string ::= \"\\\"\" char* \"\\\"\"\n"
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]{0,15})\n"
    "number ::= integer (\".\" [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?\n" /* 1e999 is no number to those who read it */
    "boolean ::= \"true\" | \"false\"\n"
    "null ::= \"null\"\n"
    "object ::= \"{\" ws (string ws \":\" ws value ws (\",\" ws string ws \":\" ws value ws)*)? \"}\"\n"
    "array ::= \"[\" ws (value ws (\",\" ws value ws)*)? \"]\"\n"
    "value ::= object | array | string | number | boolean | null\n";

/* Keywords that change what is valid and that no grammar here says. */
static const char *const refused[] = { "not",           "multipleOf",    "uniqueItems",       "patternProperties", "if",
                                       "contains",      "minProperties", "dependentRequired", "dependentSchemas",
                                       "maxProperties", "$dynamicRef",   "$recursiveRef",     "unevaluatedItems",
                                       "unevaluatedProperties" };

static int schema(struct writer *w, const json_t *s);

static int wrong(struct writer *w, const char *key, const char *what)
{
    return err_set(w->e, ERR_FORMAT, "schema: '%s' %s", key, what);
}

/* A new rule's number; its text is what the caller puts into `body`. */
static int rule_new(struct writer *w)
{
    if (w->n_rules == RULES_MAX) return err_set(w->e, ERR_LIMIT, "schema: more than %d parts", RULES_MAX);
    return w->n_rules++;
}

static void rule_write(struct writer *w, int rule, const struct buf *body)
{
    buf_fmt(w->out, "r%d ::= ", rule);
    buf_add(w->out, body->p ? body->p : "\"\"", body->p ? body->n : 2);
    buf_str(w->out, "\n");
}

/* Bytes as a literal of the grammar. */
static void literal(struct buf *b, const char *p, size_t n)
{
    buf_str(b, "\"");
    for (size_t i = 0; i < n; i++) {
        const unsigned char c = (unsigned char)p[i];
        if (c == '"' || c == '\\') buf_fmt(b, "\\%c", c);
        else if (c < 0x20 || c == 0x7f) buf_fmt(b, "\\x%02x", c);
        else buf_add(b, p + i, 1);
    }
    buf_str(b, "\"");
}

/* In as few digits as read back the same. */
static void put_real(struct buf *b, double v)
{
    char s[40];
    int digits = 0;
    do snprintf(s, sizeof s, "%.*e", digits, v);
    while (strtod(s, NULL) != v && ++digits < 17);
    const int power = (int)strtol(strchr(s, 'e') + 1, NULL, 10);
    if (power >= -5 && power < 16) snprintf(s, sizeof s, "%.*f", digits > power ? digits - power : 1, v);
    buf_str(b, s);
}

/* JSON as jansson writes it, whose numbers have 17 digits. */
static void tidy(struct buf *b, const char *at)
{
    for (bool in = false; *at;) {
        const bool number = !in && (*at == '-' || isdigit((unsigned char)*at));
        const size_t n = number ? strspn(at, "+-.0123456789eE") : in && *at == '\\' ? 2 : 1;
        if (number && strcspn(at, ".eE") < n) put_real(b, strtod(at, NULL));
        else buf_add(b, at, n);
        in ^= *at == '"';
        at += n;
    }
}

static int json_literal(struct writer *w, struct buf *b, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    struct buf short_ = buf_make(TEXT_MAX);
    if (!text) return err_set(w->e, ERR_NOMEM, "no memory for a schema");
    tidy(&short_, text);
    literal(b, short_.p ? short_.p : "", short_.n);
    buf_free(&short_);
    free(text);
    return 0;
}

/* A count such as minItems; -1 when it is not there. */
static int count_of(struct writer *w, const json_t *s, const char *key)
{
    const json_t *v = json_object_get(s, key);
    if (!v) return -1;
    if (!json_is_integer(v) || json_integer_value(v) < 0) return wrong(w, key, "is no count"), -2;
    if (json_integer_value(v) > COUNT_MAX)
        return err_set(w->e, ERR_LIMIT, "schema: '%s' is more than %d", key, COUNT_MAX), -2;
    return (int)json_integer_value(v);
}

/* ---- kinds of value: each adds an expression to b */

/* Formats that are held, where no pattern says more. */
static const char *pattern_of(const char *format)
{
    static const char date[] = "^[1-9]\\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])$",
                      time[] = "^([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,3})?Z$",
                      both[] = "^[1-9]\\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\\d|2[0-8])T([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d"
                               "(\\.\\d{1,3})?Z$",
                      email[] = "^\\w[\\w+-]{0,31}(\\.[\\w+-]{1,32}){0,4}@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
                                "\\.){1,4}[A-Za-z]{2,12}$",
                      span[] = "^P(\\d{1,3}[DWMY]|T\\d{1,3}[HMS])$",
                      uuid[] = "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
                      ipv4[] = "^((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)$";
    static const struct { const char *name, *pattern; } formats[] = {
        { "date", date },   { "time", time }, { "date-time", both }, { "duration", span },
        { "email", email }, { "uuid", uuid }, { "ipv4", ipv4 },
    };
    for (size_t i = 0; format && i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(format, formats[i].name)) return formats[i].pattern;
    return NULL;
}

/* A string by its pattern. One that looks around, beside a format, is how some write the format: that is held. */
static int patterned(struct writer *w, struct buf *b, const json_t *pattern, const char *format)
{
    struct buf text = buf_make(TEXT_MAX);
    int rc = 0;
    if (pattern && !json_is_string(pattern)) rc = wrong(w, "pattern", "is no string");
    else if (pattern) rc = regex_write(&text, json_string_value(pattern), json_string_length(pattern), true, w->e);
    if (pattern && rc == ERR_UNSUPPORTED && format) pattern = NULL;
    if (!pattern) {
        buf_reset(&text);
        rc = regex_write(&text, format, strlen(format), true, w->e);
    }
    if (rc >= 0) rc = buf_check(&text, "a pattern", w->e);
    if (rc >= 0) buf_fmt(b, "\"\\\"\" %s \"\\\"\"", text.p);
    buf_free(&text);
    return rc;
}

static int strings(struct writer *w, struct buf *b, const json_t *s)
{
    const json_t *pattern = json_object_get(s, "pattern");
    const char *format = pattern_of(json_string_value(json_object_get(s, "format")));
    int least = count_of(w, s, "minLength"), most = count_of(w, s, "maxLength");
    if (least < -1 || most < -1) return (int)w->e->code;
    if (pattern && (least >= 0 || most >= 0))
        return err_set(w->e, ERR_UNSUPPORTED, "schema: 'pattern' beside a length is not supported");
    if (least < 0 && most < 0 && (pattern || format)) return patterned(w, b, pattern, format);
    if (least < 0 && most < 0) return buf_str(b, "string"), 0;
    if (most >= 0 && least > most) return wrong(w, "minLength", "is more than 'maxLength'");
    buf_fmt(b, "\"\\\"\" char{%d,", least > 0 ? least : 0);
    if (most >= 0) buf_fmt(b, "%d", most);
    buf_str(b, "} \"\\\"\"");
    return 0;
}

/* A bound of numbers: *v, and whether it is one of them; -1: it is wrong, 0: there is none. */
static int bound(struct writer *w, const json_t *s, const char *key, const char *beyond, double *v, bool *open)
{
    const json_t *at = json_object_get(s, key), *past = json_object_get(s, beyond);
    if (at && !json_is_number(at)) return wrong(w, key, "is no number"), -1;
    if (past && !json_is_number(past) && !json_is_boolean(past)) return wrong(w, beyond, "is no number"), -1;
    if (json_is_number(at)) *v = json_number_value(at), *open = json_is_true(past);
    const bool nearer = !json_is_number(at) || (*key == 'm' && key[1] == 'i' ? json_number_value(past) >= *v
                                                                           : json_number_value(past) <= *v);
    if (json_is_number(past) && nearer) *v = json_number_value(past), *open = true;
    return json_is_number(at) || json_is_number(past);
}

/* The rule of a range, which is written once: some write the same around every number. */
static int range(struct writer *w, int64_t lo, int64_t hi, bool integer, int64_t from, int64_t to)
{
    for (int i = 0; i < w->n_ranges; i++)
        if (w->range[i].lo == lo && w->range[i].hi == hi && w->range[i].integer == integer &&
            w->range[i].from == from && w->range[i].to == to)
            return w->range[i].rule;
    struct buf body = buf_make(TEXT_MAX);
    const bool any = number_write(&body, lo, hi, !integer, from, to);
    const int rule = any ? rule_new(w) : wrong(w, "minimum", "and 'maximum' leave no number");
    if (rule >= 0) rule_write(w, rule, &body);
    buf_free(&body);
    if (rule < 0 || w->n_ranges == RANGES_MAX) return rule;
    w->range[w->n_ranges].lo = lo;
    w->range[w->n_ranges].hi = hi;
    w->range[w->n_ranges].integer = integer;
    w->range[w->n_ranges].from = from;
    w->range[w->n_ranges].to = to;
    w->range[w->n_ranges++].rule = rule;
    return rule;
}

static int numbers(struct writer *w, struct buf *b, const json_t *s, bool integer)
{
    const double most = (double)NUMBER_MOST;
    double low = -most, high = most;
    bool above = false, below = false;
    const int from = bound(w, s, "minimum", "exclusiveMinimum", &low, &above);
    const int to = from < 0 ? from : bound(w, s, "maximum", "exclusiveMaximum", &high, &below);
    if (to < 0) return (int)w->e->code;
    if (!from && !to) return buf_str(b, integer ? "integer" : "number"), 0;
    if (!integer && (floor(low) < low || floor(high) < high))
        return err_set(w->e, ERR_UNSUPPORTED, "schema: a bound of numbers that is not whole is not supported");
    if (low > most - 2 || high < 2 - most) /* neighbours of doubles are 2 apart there */
        return err_set(w->e, ERR_UNSUPPORTED, "schema: a bound of numbers with more than 16 digits is not supported");
    low = fmax(-most, fmin(low, most));
    high = fmax(-most, fmin(high, most));
    const int64_t lo = (int64_t)(above ? floor(low) + 1 : ceil(low));
    const int64_t hi = (int64_t)(below ? ceil(high) - 1 : floor(high));
    const int rule = range(w, lo, hi, integer, (int64_t)low, (int64_t)high);
    if (rule >= 0) buf_fmt(b, "r%d", rule);
    return rule < 0 ? rule : 0;
}

/* The rule of `"name": value`. */
static int pair(struct writer *w, const char *name, const json_t *s)
{
    const int value = schema(w, s), rule = value < 0 ? value : rule_new(w);
    if (rule < 0) return rule;
    struct buf text = buf_make(TEXT_MAX);
    json_t *key = json_string(name);
    int rc = key ? json_literal(w, &text, key) : err_set(w->e, ERR_NOMEM, "no memory for a schema");
    buf_fmt(&text, " ws \":\" ws r%d", value);
    rule_write(w, rule, &text);
    json_decref(key);
    buf_free(&text);
    return rc < 0 ? rc : rule;
}

/* Members from the i-th on, two rules each: for when none stands before (first), and for when some do (rest). A rule is
 * "this one, then the rest" or, where it is not among the `needed`, the same of the next. */
static int members(struct writer *w, struct buf *b, const json_t *properties, const json_t *needed)
{
    const char *name;
    json_t *member;
    int n = (int)json_object_size(properties), next = w->n_rules, rc = 0;
    for (int k = 0; k < 2 * (n + 1) && rc >= 0; k++) rc = rule_new(w);
    if (rc < 0) return rc;
    buf_fmt(b, "\"{\" ws r%d \"}\"", next);
    json_object_foreach((json_t *)properties, name, member)
    {
        const int one = pair(w, name, member);
        if (one < 0) return one;
        next += 2;
        for (int rest = 0; rest < 2; rest++) {
            buf_fmt(w->out, "r%d ::= %sr%d ws r%d", next - 2 + rest, rest ? "\",\" ws " : "", one, next + 1);
            if (!json_object_get(needed, name)) buf_fmt(w->out, " | r%d", next + rest);
            buf_str(w->out, "\n");
        }
    }
    for (int rest = 0; rest < 2; rest++) rule_write(w, next + rest, &(struct buf){ 0 });
    return 0;
}

/* The names in `required`, each of a property, as an object's. NULL: w->e says why. */
static json_t *needed_names(struct writer *w, const json_t *required, const json_t *properties)
{
    json_t *needed = json_object();
    const json_t *v;
    size_t i;
    if (!needed) err_set(w->e, ERR_NOMEM, "no memory for a schema");
    json_array_foreach(required, i, v)
    {
        const char *name = json_string_value(v);
        if (name && json_object_get(properties, name) && !json_object_set_new(needed, name, json_true())) continue;
        if (!name) wrong(w, "required", "holds what is no name");
        else err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' is required, but not among the properties", name);
        json_decref(needed);
        return NULL;
    }
    return needed;
}

static int objects(struct writer *w, struct buf *b, const json_t *s)
{
    const json_t *properties = json_object_get(s, "properties"), *required = json_object_get(s, "required");
    const json_t *more = json_object_get(s, "additionalProperties"), *names = json_object_get(s, "propertyNames");
    if (properties && !json_is_object(properties)) return wrong(w, "properties", "is no object");
    if (required && !json_is_array(required)) return wrong(w, "required", "is no list of names");
    const char *of = json_string_value(json_object_get(names, "type"));
    if (names && (json_object_size(names) != 1 || !of || strcmp(of, "string") != 0))
        return err_set(w->e, ERR_UNSUPPORTED, "schema: 'propertyNames' is not supported but as {\"type\": \"string\"}");
    if (more && !json_is_object(more) && !json_is_boolean(more))
        return wrong(w, "additionalProperties", "is no schema");
    json_t *needed = needed_names(w, required, properties);
    int rc = needed ? 0 : (int)w->e->code;
    if (needed && json_object_size(properties) > 0) rc = members(w, b, properties, needed);
    json_decref(needed);
    if (rc < 0 || json_object_size(properties) > 0) return rc;
    if (json_is_false(more)) return buf_str(b, "\"{\" ws \"}\""), 0;
    if (!json_is_object(more)) return buf_str(b, "object"), 0;
    int value = schema(w, more);
    if (value < 0) return value;
    buf_fmt(b, "\"{\" ws (string ws \":\" ws r%d ws (\",\" ws string ws \":\" ws r%d ws)*)? \"}\"", value, value);
    return 0;
}

/* Items of an array: those of prefixItems, then `least` to `most` (-1: any number) of the rule `item` (-1: none). */
static void items(struct buf *b, const int *prefix, int n, int item, int least, int most)
{
    buf_str(b, "\"[\" ws ");
    for (int i = 0; i < n; i++) buf_fmt(b, "%sr%d ws ", i ? "\",\" ws " : "", prefix[i]);
    if (item >= 0 && most != 0) {
        const char *end = least > 0 ? "" : ")?";
        int left = n ? most : most - 1, needed = n ? least : least > 0 ? least - 1 : 0;
        if (!n) buf_fmt(b, "%sr%d ws ", least > 0 ? "" : "(", item);
        buf_fmt(b, "(\",\" ws r%d ws){%d,", item, needed > 0 ? needed : 0);
        if (most >= 0) buf_fmt(b, "%d", left);
        buf_fmt(b, "} %s", n ? "" : end);
    }
    buf_str(b, "\"]\"");
}

static int arrays(struct writer *w, struct buf *b, const json_t *s)
{
    const json_t *first = json_object_get(s, "prefixItems"), *more = json_object_get(s, "items"), *v;
    if (!first && json_is_array(more)) { /* as drafts before 2020-12 write it */
        first = more;
        more = json_object_get(s, "additionalItems");
    }
    int prefix[PREFIX_MAX], n = 0, item = -1, least = count_of(w, s, "minItems"), most = count_of(w, s, "maxItems");
    size_t i;
    if (least < -1 || most < -1) return (int)w->e->code;
    if (most >= 0 && least > most) return wrong(w, "minItems", "is more than 'maxItems'");
    if (first && !json_is_array(first)) return wrong(w, "prefixItems", "is no list of schemas");
    if (json_is_array(more)) return wrong(w, "items", "is a list beside 'prefixItems'");
    if (json_array_size(first) > PREFIX_MAX)
        return err_set(w->e, ERR_LIMIT, "schema: more than %d 'prefixItems'", PREFIX_MAX);
    json_array_foreach(first, i, v)
        if ((prefix[n++] = schema(w, v)) < 0) return prefix[n - 1];
    if (most >= 0 && most < n) n = most;
    if (!json_is_false(more) && (item = more ? schema(w, more) : schema(w, json_true())) < 0) return item;
    if (item < 0 && least > n) return wrong(w, "minItems", "is more than there can be");
    items(b, prefix, n, item, least - n, most < 0 ? -1 : most - n);
    return 0;
}

static int typed(struct writer *w, struct buf *b, const json_t *s, const char *type)
{
    static const char *const plain[] = { "boolean", "null" };
    if (!strcmp(type, "object")) return objects(w, b, s);
    if (!strcmp(type, "array")) return arrays(w, b, s);
    if (!strcmp(type, "string")) return strings(w, b, s);
    if (!strcmp(type, "integer") || !strcmp(type, "number")) return numbers(w, b, s, *type == 'i');
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(type, plain[i])) return buf_str(b, type), 0;
    return wrong(w, type, "is no type");
}

/* What type a schema without one is about: it is taken to be of that. NULL: any. */
static const char *implied(const json_t *s)
{
    static const struct { const char *key, *type; } keys[] = {
        { "properties", "object" }, { "required", "object" },   { "additionalProperties", "object" },
        { "items", "array" },       { "prefixItems", "array" }, { "minItems", "array" },
        { "maxItems", "array" },    { "pattern", "string" },    { "minLength", "string" },
        { "maxLength", "string" },  { "minimum", "number" },    { "exclusiveMinimum", "number" },
        { "maximum", "number" },    { "exclusiveMaximum", "number" }, { "propertyNames", "object" },
    };
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (json_object_get(s, keys[i].key)) return keys[i].type;
    return NULL;
}

/* ---- schemas */

/* Is there nothing that it allows? So some write what may be left out: {"not": {}}. */
static bool is_nothing(const json_t *s)
{
    const json_t *not = json_object_get(s, "not");
    return json_is_false(s) || json_is_true(not) || (json_is_object(not) && !json_object_size(not));
}

static int either(struct writer *w, struct buf *b, const char *key, const json_t *list)
{
    size_t i;
    const json_t *v;
    bool any = false;
    if (!json_is_array(list) || !json_array_size(list)) return wrong(w, key, "is no list of schemas");
    json_array_foreach(list, i, v)
    {
        int rule = is_nothing(v) ? 0 : schema(w, v);
        if (rule < 0) return rule;
        if (is_nothing(v)) continue;
        buf_fmt(b, "%sr%d", any ? " | " : "", rule);
        any = true;
    }
    return any ? 0 : err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' of parts that allow nothing", key);
}

/* The bytes that a URI's %41 stands for. False: they are none, or too many. */
static bool unescape(char *to, size_t size, const char *from)
{
    size_t n = 0;
    for (; *from; from++, n++) {
        const char hex[3] = { from[0] == '%' ? from[1] : 0, from[0] == '%' && from[1] ? from[2] : 0, 0 };
        char *end;
        if (n == size - 1) return false;
        to[n] = *from;
        if (*from != '%') continue;
        to[n] = (char)strtol(hex, &end, 16);
        if (!to[n] || end != hex + 2 || !isxdigit((unsigned char)hex[0])) return false;
        from += 2;
    }
    to[n] = 0;
    return true;
}

/* What "/a/0/b", as it stands behind a "#", means in v; NULL: nothing. */
static const json_t *pointed(const json_t *v, const char *fragment)
{
    char plain[1024], *at = plain;
    if (!unescape(plain, sizeof plain, fragment)) return NULL;
    while (*at == '/') {
        char *key = ++at, *to = at;
        for (; *at && *at != '/'; at++, to++) {
            const bool tilde = at[0] == '~' && (at[1] == '0' || at[1] == '1');
            *to = tilde ? (at[1] == '0' ? '~' : '/') : *at;
            at += tilde;
        }
        const char next = *at;
        *to = 0;
        const bool index = json_is_array(v) && *key && strspn(key, "0123456789") == strlen(key) && strlen(key) < 10;
        v = index ? json_array_get(v, strtoul(key, NULL, 10)) : json_object_get(v, key);
        if (!next) return v;
        *at = next; /* which the key's end may have stood on */
    }
    return *at ? NULL : v;
}

/* The rule of what a $ref points to, written once: schemas may contain themselves. */
static int reference(struct writer *w, const char *where)
{
    const json_t *to = where[0] == '#' ? pointed(w->root, where + 1) : NULL;
    if (!to) return err_set(w->e, ERR_UNSUPPORTED, "schema: '$ref' to '%s' leads nowhere in it", where);
    for (int i = 0; i < w->n_refs; i++)
        if (w->ref[i].schema == to) return w->ref[i].rule;
    if (w->n_refs == REFS_MAX) return err_set(w->e, ERR_LIMIT, "schema: '$ref' to more than %d places", REFS_MAX);
    int rule = rule_new(w);
    if (rule < 0) return rule;
    w->ref[w->n_refs].schema = to;
    w->ref[w->n_refs++].rule = rule;
    int body = schema(w, to);
    if (body >= 0) buf_fmt(w->out, "r%d ::= r%d\n", rule, body);
    return body < 0 ? body : rule;
}

static bool is_of(const json_t *v, const char *type)
{
    static const struct { const char *name; int types; } names[] = {
        { "object", 1 << JSON_OBJECT }, { "array", 1 << JSON_ARRAY }, { "string", 1 << JSON_STRING },
        { "integer", 1 << JSON_INTEGER }, { "number", 1 << JSON_INTEGER | 1 << JSON_REAL },
        { "boolean", 1 << JSON_TRUE | 1 << JSON_FALSE }, { "null", 1 << JSON_NULL },
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(type, names[i].name)) return names[i].types >> json_typeof(v) & 1;
    return false;
}

/* Is v of the type, or of one of the types, that its schema names, if it names any? */
static bool is_typed(const json_t *v, const json_t *type)
{
    const json_t *one;
    size_t i;
    if (!json_is_array(type)) return !json_is_string(type) || is_of(v, json_string_value(type));
    json_array_foreach(type, i, one)
        if (json_is_string(one) && is_of(v, json_string_value(one))) return true;
    return false;
}

/* The first WHOLE say all that a value may be. */
enum { WHOLE = 6 };
static const char *const limits[] = { "$ref", "const", "enum", "anyOf", "oneOf", "allOf", "type", "properties",
                                      "required", "additionalProperties", "items", "prefixItems", "minItems",
                                      "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum",
                                      "exclusiveMinimum", "exclusiveMaximum", "propertyNames" };

/* Does s, or what its $ref leads to, name that type? */
static bool names_type(const struct writer *w, const json_t *s, const json_t *type)
{
    const json_t *ref = json_object_get(s, "$ref");
    const char *at = json_is_string(ref) ? json_string_value(ref) : "";
    return json_equal(json_object_get(*at == '#' ? pointed(w->root, at + 1) : s, "type"), type);
}

/* Both what `key`, one of these, says and what stands beside it would have to hold: refused, except for a type that all
 * of a list's schemas name as well (values are held against it by is_typed). */
static int check_alone(struct writer *w, const json_t *s, const char *key)
{
    const json_t *list = json_object_get(s, key), *type = json_object_get(s, "type"), *one;
    bool same = !strcmp(key, "const") || !strcmp(key, "enum");
    size_t i;
    if (!strcmp(key, "$ref")) same = names_type(w, s, type);
    else if (!same && json_is_array(list)) {
        same = true;
        json_array_foreach(list, i, one) same = same && names_type(w, one, type);
    }
    for (i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (!strcmp(limits[i], key) || !json_object_get(s, limits[i]) || (same && !strcmp(limits[i], "type"))) continue;
        return err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' beside '%s' is not supported", limits[i], key);
    }
    return 0;
}

/* That what limits a value in s is what can be held. */
static int check_limits(struct writer *w, const json_t *s)
{
    int rc = 0;
    for (size_t i = 0; i < WHOLE && rc >= 0; i++)
        if (json_object_get(s, limits[i])) rc = check_alone(w, s, limits[i]);
    for (size_t i = 0; i < sizeof refused / sizeof *refused && rc >= 0; i++)
        if (json_object_get(s, refused[i]))
            rc = err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' is not supported", refused[i]);
    return rc;
}

/* One of the values, as far as they are of the type that stands beside them. */
static int values(struct writer *w, struct buf *b, const json_t *list, const json_t *type)
{
    const json_t *one;
    size_t i, n = 0;
    json_array_foreach(list, i, one)
    {
        if (!is_typed(one, type)) continue;
        if (n++) buf_str(b, " | ");
        int rc = json_literal(w, b, one);
        if (rc < 0) return rc;
    }
    return n ? 0 : wrong(w, "enum", "has no value of the 'type' beside it");
}

static int expression(struct writer *w, struct buf *b, const json_t *s)
{
    const json_t *v, *type = json_object_get(s, "type");
    size_t i;
    int rc = 0;
    if ((v = json_object_get(s, "const")))
        return is_typed(v, type) ? json_literal(w, b, v) : wrong(w, "const", "is not of the 'type' beside it");
    if ((v = json_object_get(s, "enum"))) {
        if (!json_is_array(v) || !json_array_size(v)) return wrong(w, "enum", "is no list of values");
        return values(w, b, v, type);
    }
    if ((v = json_object_get(s, "anyOf"))) return either(w, b, "anyOf", v);
    if ((v = json_object_get(s, "oneOf"))) return either(w, b, "oneOf", v);
    if ((v = json_object_get(s, "allOf"))) {
        if (json_array_size(v) != 1)
            return err_set(w->e, ERR_UNSUPPORTED, "schema: 'allOf' of several is not supported");
        return either(w, b, "allOf", v);
    }
    if (json_is_string(type)) return typed(w, b, s, json_string_value(type));
    if (!type && implied(s)) return typed(w, b, s, implied(s));
    if (!type) return buf_str(b, "value"), 0;
    if (!json_is_array(type) || !json_array_size(type)) return wrong(w, "type", "is no name and no list of names");
    json_array_foreach(type, i, v)
    {
        if (i) buf_str(b, " | ");
        if (!json_is_string(v)) return wrong(w, "type", "holds what is no name");
        if ((rc = typed(w, b, s, json_string_value(v))) < 0) return rc;
    }
    return 0;
}

/* The number of a rule for the values that s allows. */
static int schema(struct writer *w, const json_t *s)
{
    if (json_is_false(s)) return err_set(w->e, ERR_UNSUPPORTED, "schema: a part that allows nothing");
    if (!json_is_object(s) && !json_is_true(s)) return err_set(w->e, ERR_FORMAT, "schema: a part is no object");
    if (w->nest == NEST_MAX) return err_set(w->e, ERR_LIMIT, "schema: nested deeper than %d", NEST_MAX);
    const json_t *ref = json_object_get(s, "$ref");
    struct buf body = buf_make(TEXT_MAX);
    int rc = check_limits(w, s), rule = rc;
    w->nest++;
    if (rc < 0) {
    } else if (ref) {
        rule = json_is_string(ref) ? reference(w, json_string_value(ref)) : wrong(w, "$ref", "is no string");
    } else if ((rule = rule_new(w)) >= 0) {
        rc = expression(w, &body, s);
        if (rc >= 0) rc = buf_check(&body, "the schema", w->e);
        if (rc >= 0) rule_write(w, rule, &body);
    }
    w->nest--;
    buf_free(&body);
    return rc < 0 ? rc : rule;
}

static int schema_grammar(struct buf *out, const char *json, size_t n, struct err *e)
{
    json_error_t at;
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &at);
    if (!root) return err_set(e, ERR_FORMAT, "schema: %s at line %d column %d", at.text, at.line, at.column);
    struct writer w = { .out = out, .root = root, .e = e };
    buf_str(out, common);
    int rule = schema(&w, root);
    if (rule >= 0) buf_fmt(out, "root ::= r%d\n", rule);
    json_decref(root);
    return rule < 0 ? rule : buf_check(out, "the schema's grammar", e);
}

int schema_parse(struct grammar **ret, const char *json, size_t n, struct err *e)
{
    struct buf text = buf_make(TEXT_MAX);
    struct err spare;
    if (!e) e = &spare;
    *ret = NULL;
    int rc = schema_grammar(&text, json, n, e);
    if (rc >= 0) {
        rc = grammar_parse(ret, text.p, text.n, e);
        /* What is written above is no bad grammar but for these two things. */
        if (rc == ERR_FORMAT)
            rc = err_set(e, ERR_UNSUPPORTED,
                         "schema: a '$ref' leads back to where it stands, or a pattern repeats what may be nothing");
        if (rc == ERR_LIMIT)
            rc = err_set(e, ERR_LIMIT, "schema: more than %d bytes of names and values, with all repetitions",
                         GRAMMAR_MAX);
    }
    buf_free(&text);
    return rc;
}
