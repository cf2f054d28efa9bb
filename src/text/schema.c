/* See schema.h. */
#include "text/schema.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { NEST_MAX = 64, RULES_MAX = 4096, REFS_MAX = 256, COUNT_MAX = 4096 };

struct writer {
    struct buf *out;
    const json_t *root;
    int n_rules, nest;
    struct { const json_t *schema; int rule; } ref[REFS_MAX]; /* what $ref has led to */
    int n_refs;
    struct err *e;
};

static const char common[] =
    "ws ::= \"\" | \" \" | \"\\n\" [ \\t]{0,20}\n"
    "char ::= [^\"\\\\\\x00-\\x1f\\x7f] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" [0-9a-fA-F]{4})\n"
    "string ::= \"\\\"\" char* \"\\\"\"\n"
    "integer ::= \"-\"? (\"0\" | [1-9] [0-9]{0,15})\n"
    "number ::= integer (\".\" [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?\n"
    "boolean ::= \"true\" | \"false\"\n"
    "null ::= \"null\"\n"
    "object ::= \"{\" ws (string ws \":\" ws value ws (\",\" ws string ws \":\" ws value ws)*)? \"}\"\n"
    "array ::= \"[\" ws (value ws (\",\" ws value ws)*)? \"]\"\n"
    "value ::= object | array | string | number | boolean | null\n";

/* Keywords that change what is valid and that no grammar here says. */
static const char *const refused[] = { "pattern",      "minimum",          "maximum",       "exclusiveMinimum", "not",
                                       "multipleOf",   "exclusiveMaximum", "uniqueItems",   "patternProperties", "if",
                                       "contains",     "propertyNames",    "minProperties", "maxProperties",
                                       "dependentRequired", "dependentSchemas", "unevaluatedProperties",
                                       "unevaluatedItems", "$dynamicRef", "$recursiveRef" };

static int schema(struct writer *w, const json_t *s);

static int wrong(struct writer *w, const char *key, const char *what)
{
    return err_set(w->e, ERR_FORMAT, "schema: '%s' %s", key, what);
}

/* A new rule's number; its text is what the caller puts into `body`. */
static int rule_new(struct writer *w)
{
    if (w->n_rules == RULES_MAX) return err_set(w->e, ERR_LIMIT, "the schema is too large");
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

static int json_literal(struct writer *w, struct buf *b, const json_t *v)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    if (!text) return err_set(w->e, ERR_NOMEM, "no memory for a schema");
    literal(b, text, strlen(text));
    free(text);
    return 0;
}

/* A count such as minItems; -1 when it is not there. */
static int count_of(struct writer *w, const json_t *s, const char *key)
{
    const json_t *v = json_object_get(s, key);
    if (!v) return -1;
    if (!json_is_integer(v) || json_integer_value(v) < 0) return wrong(w, key, "is no count"), -2;
    if (json_integer_value(v) > COUNT_MAX) return err_set(w->e, ERR_LIMIT, "schema: '%s' is too large", key), -2;
    return (int)json_integer_value(v);
}

/* ---- kinds of value: each adds an expression to b */

static int strings(struct writer *w, struct buf *b, const json_t *s)
{
    int least = count_of(w, s, "minLength"), most = count_of(w, s, "maxLength");
    if (least < -1 || most < -1) return (int)w->e->code;
    if (least < 0 && most < 0) return buf_str(b, "string"), 0;
    if (most >= 0 && least > most) return wrong(w, "minLength", "is more than 'maxLength'");
    buf_fmt(b, "\"\\\"\" char{%d,", least > 0 ? least : 0);
    if (most >= 0) buf_fmt(b, "%d", most);
    buf_str(b, "} \"\\\"\"");
    return 0;
}

static bool is_required(const json_t *s, const char *name)
{
    size_t i;
    const json_t *v;
    json_array_foreach(json_object_get(s, "required"), i, v)
        if (json_is_string(v) && !strcmp(json_string_value(v), name)) return true;
    return false;
}

/* Members from the i-th on, two rules each: for when none stands before (first), and for when some do (rest). A rule is
 * "this one, then the rest" or, where it may be left out, the same of the next. */
static int members(struct writer *w, struct buf *b, const json_t *s, const json_t *properties)
{
    const char *name;
    json_t *member;
    int n = (int)json_object_size(properties), i = 0, base = w->n_rules, rc = 0;
    for (int k = 0; k < 2 * (n + 1); k++)
        if ((rc = rule_new(w)) < 0) return rc;
    json_object_foreach((json_t *)properties, name, member)
    {
        int value = schema(w, member);
        if (value < 0) return value;
        struct buf text = buf_make(1 << 20), key = buf_make(1 << 20);
        json_t *string = json_string(name);
        rc = string ? json_literal(w, &key, string) : err_set(w->e, ERR_NOMEM, "no memory for a schema");
        json_decref(string);
        for (int rest = 0; rest < 2 && rc >= 0; rest++) {
            buf_reset(&text);
            const int next = base + 2 * (i + 1);
            buf_fmt(&text, "%s%s ws \":\" ws r%d ws r%d", rest ? "\",\" ws " : "", key.p, value, next + 1);
            if (!is_required(s, name)) buf_fmt(&text, " | r%d", next + rest);
            rule_write(w, base + 2 * i + rest, &text);
        }
        buf_free(&text);
        buf_free(&key);
        if (rc < 0) return rc;
        i++;
    }
    for (int rest = 0; rest < 2; rest++) rule_write(w, base + 2 * n + rest, &(struct buf){ 0 });
    buf_fmt(b, "\"{\" ws r%d \"}\"", base);
    return 0;
}

static int objects(struct writer *w, struct buf *b, const json_t *s)
{
    const json_t *properties = json_object_get(s, "properties"), *more = json_object_get(s, "additionalProperties"), *v;
    size_t i;
    if (properties && !json_is_object(properties)) return wrong(w, "properties", "is no object");
    json_array_foreach(json_object_get(s, "required"), i, v)
    {
        if (!json_is_string(v)) return wrong(w, "required", "holds what is no name");
        if (!json_object_get(properties, json_string_value(v)))
            return err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' is required, but not among the properties",
                           json_string_value(v));
    }
    if (json_object_size(properties) > 0) return members(w, b, s, properties);
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
    enum { PREFIX_MAX = 256 };
    const json_t *first = json_object_get(s, "prefixItems"), *more = json_object_get(s, "items"), *v;
    int prefix[PREFIX_MAX], n = 0, item = -1, least = count_of(w, s, "minItems"), most = count_of(w, s, "maxItems");
    size_t i;
    if (least < -1 || most < -1) return (int)w->e->code;
    if (most >= 0 && least > most) return wrong(w, "minItems", "is more than 'maxItems'");
    if (json_array_size(first) > PREFIX_MAX) return err_set(w->e, ERR_LIMIT, "schema: too many 'prefixItems'");
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
    static const char *const plain[] = { "integer", "number", "boolean", "null" };
    if (!strcmp(type, "object")) return objects(w, b, s);
    if (!strcmp(type, "array")) return arrays(w, b, s);
    if (!strcmp(type, "string")) return strings(w, b, s);
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (!strcmp(type, plain[i])) return buf_str(b, type), 0;
    return wrong(w, type, "is no type");
}

/* ---- schemas */

static int either(struct writer *w, struct buf *b, const char *key, const json_t *list)
{
    size_t i;
    const json_t *v;
    if (!json_is_array(list) || !json_array_size(list)) return wrong(w, key, "is no list of schemas");
    json_array_foreach(list, i, v)
    {
        int rule = schema(w, v);
        if (rule < 0) return rule;
        buf_fmt(b, "%sr%d", i ? " | " : "", rule);
    }
    return 0;
}

/* The schema that "#/a/b" means; NULL: there is none. */
static const json_t *pointed(const json_t *v, const char *at)
{
    while (*at == '/') {
        char key[256];
        size_t n = 0;
        for (at++; *at && *at != '/'; n++) {
            if (n == sizeof key - 1) return NULL;
            const bool tilde = at[0] == '~' && (at[1] == '0' || at[1] == '1');
            key[n] = tilde ? (at[1] == '0' ? '~' : '/') : *at;
            at += tilde ? 2 : 1;
        }
        key[n] = 0;
        v = json_object_get(v, key);
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
    if (w->n_refs == REFS_MAX) return err_set(w->e, ERR_LIMIT, "the schema has too many '$ref'");
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
enum { WHOLE = 5 };
static const char *const limits[] = { "const", "enum", "anyOf", "oneOf", "allOf", "type", "properties", "required",
                                      "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
                                      "minLength", "maxLength" };

/* Both what `key`, one of these, says and what stands beside it would have to hold: refused, except for a type that all
 * of a list's schemas name as well (values are held against it by is_typed). */
static int check_alone(struct writer *w, const json_t *s, const char *key)
{
    const json_t *list = json_object_get(s, key), *type = json_object_get(s, "type"), *one;
    const bool literal = !strcmp(key, "const") || !strcmp(key, "enum");
    bool same = json_is_array(list);
    size_t i;
    json_array_foreach(list, i, one)
    {
        const json_t *ref = json_object_get(one, "$ref");
        const char *at = json_is_string(ref) ? json_string_value(ref) : "";
        const json_t *to = *at == '#' ? pointed(w->root, at + 1) : one;
        same = same && json_equal(json_object_get(to, "type"), type);
    }
    for (i = 0; i < sizeof limits / sizeof *limits; i++) {
        if (!strcmp(limits[i], key) || !json_object_get(s, limits[i])) continue;
        if (!strcmp(limits[i], "type") && (literal || same)) continue;
        return err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' beside '%s' is not supported", limits[i], key);
    }
    return 0;
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
    for (i = 0; i < WHOLE; i++)
        if (json_object_get(s, limits[i]) && (rc = check_alone(w, s, limits[i])) < 0) return rc;
    for (i = 0; i < sizeof refused / sizeof *refused; i++)
        if (json_object_get(s, refused[i]))
            return err_set(w->e, ERR_UNSUPPORTED, "schema: '%s' is not supported", refused[i]);
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
    if (!type && json_object_get(s, "properties")) return objects(w, b, s);
    if (!type && json_object_get(s, "items")) return arrays(w, b, s);
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
    if (w->nest == NEST_MAX) return err_set(w->e, ERR_LIMIT, "the schema is nested too deep");
    const json_t *ref = json_object_get(s, "$ref");
    struct buf body = buf_make(1 << 20);
    int rc = 0, rule;
    w->nest++;
    if (ref) {
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

int schema_grammar(struct buf *out, const char *json, size_t n, struct err *e)
{
    json_error_t at;
    struct err spare;
    json_t *root = json_loadb(json, n, JSON_REJECT_DUPLICATES, &at);
    if (!root) return err_set(e, ERR_FORMAT, "schema: %s at line %d column %d", at.text, at.line, at.column);
    struct writer w = { .out = out, .root = root, .e = e ? e : &spare };
    buf_str(out, common);
    int rule = schema(&w, root);
    if (rule >= 0) buf_fmt(out, "root ::= ws r%d\n", rule);
    json_decref(root);
    return rule < 0 ? rule : buf_check(out, "the schema's grammar", e);
}
