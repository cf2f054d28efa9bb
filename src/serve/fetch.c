/* See fetch.h. */
#include "serve/fetch.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* ---- addresses */

struct range4 { uint32_t net; int bits; };
static bool public4(uint32_t a)
{
    static const struct range4 kept[] = {
        { 0x00000000, 8 },  { 0x0a000000, 8 },  { 0x64400000, 10 }, { 0x7f000000, 8 },  { 0xa9fe0000, 16 },
        { 0xac100000, 12 }, { 0xc0000000, 24 }, { 0xc0000200, 24 }, { 0xc0a80000, 16 }, { 0xc6120000, 15 },
        { 0xc6336400, 24 }, { 0xcb007100, 24 }, { 0xe0000000, 3 }, /* multicast, reserved, broadcast */
    };
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++)
        if ((a ^ kept[i].net) >> (32 - kept[i].bits) == 0) return false;
    return true;
}

static uint32_t get4(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool public6(const unsigned char a[16])
{
    static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff }, zero[12] = { 0 };
    static const unsigned char nat64[12] = { 0, 0x64, 0xff, 0x9b };
    if (!memcmp(a, mapped, 12) || !memcmp(a, nat64, 12)) return public4(get4(a + 12));
    if (!memcmp(a, zero, 12)) return false;                             /* ::, ::1, ::a.b.c.d */
    if (a[0] == 0x20 && a[1] == 0x02) return public4(get4(a + 2));      /* 6to4 */
    if (a[0] == 0x20 && a[1] == 0x01 && !a[2] && !a[3]) return false;   /* Teredo */
    if (a[0] == 0x20 && a[1] == 0x01 && a[2] == 0x0d && a[3] == 0xb8) return false;
    return (a[0] & 0xe0) == 0x20; /* 2000::/3 is all that is given out */
}

bool fetch_is_public(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return public4(ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr));
    if (a->sa_family == AF_INET6) return public6(((const struct sockaddr_in6 *)a)->sin6_addr.s6_addr);
    return false;
}

/* ---- fetching */

struct transfer {
    struct buf *out;
    const struct fetch_limits *limits;
    bool refused;
};

static curl_socket_t on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *a)
{
    struct transfer *t = arg;
    if (purpose != CURLSOCKTYPE_IPCXN) return CURL_SOCKET_BAD;
    if (!t->limits->private_too && !fetch_is_public(&a->addr)) {
        t->refused = true;
        return CURL_SOCKET_BAD;
    }
    return socket(a->family, a->socktype | SOCK_CLOEXEC, a->protocol);
}

static size_t on_data(char *p, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    buf_add(t->out, p, size * n);
    return t->out->failed ? 0 : size * n;
}

static int outcome(CURL *c, CURLcode rc, const struct transfer *t, const char *url, struct err *e)
{
    long status = 0;
    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    if (t->refused) return err_set(e, ERR_USAGE, "'%.200s' leads to a private address, which is not allowed", url);
    if (t->out->failed) return err_set(e, ERR_LIMIT, "'%.200s' is larger than %zu bytes", url, t->out->max);
    if (rc) return err_set(e, ERR_IO, "cannot fetch '%.200s': %s", url, curl_easy_strerror(rc));
    if (status != 200) return err_set(e, ERR_IO, "cannot fetch '%.200s': status %ld", url, status);
    return 0;
}

int fetch(struct buf *out, const char *url, const struct fetch_limits *l, struct err *e)
{
    bool web = !strncasecmp(url, "http://", 7) || !strncasecmp(url, "https://", 8);
    if (!web) return err_set(e, ERR_USAGE, "'%.60s' is neither a data URI nor an http(s) address", url);
    if (!l->allowed) return err_set(e, ERR_UNSUPPORTED, "pictures behind addresses are not allowed on this server; "
                                                        "send them as data URIs");
    struct transfer t = { .out = out, .limits = l };
    CURL *c = curl_easy_init();
    if (!c) return err_set(e, ERR_NOMEM, "cannot start libcurl");
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, (long)FETCH_REDIRECTS);
    curl_easy_setopt(c, CURLOPT_PROXY, ""); /* through a proxy the address would be the proxy's */
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)((l->timeout_s > 0 ? l->timeout_s : 10) * 1000));
    curl_easy_setopt(c, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)out->max);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    curl_easy_setopt(c, CURLOPT_OPENSOCKETDATA, &t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &t);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "llava.c");
    CURLcode rc = curl_easy_perform(c);
    if (rc == CURLE_FILESIZE_EXCEEDED) out->failed = true;
    int r = outcome(c, rc, &t, url, e);
    curl_easy_cleanup(c);
    return r;
}
