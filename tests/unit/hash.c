/* SHA-1 and SHA-256 against the vectors of FIPS 180-4's examples, in one piece and in all kinds of pieces. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/hash.h"

static const struct {
    const char *text, *sha1, *sha256;
} vectors[] = {
    { "", "da39a3ee5e6b4b0d3255bfef95601890afd80709",
      "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
    { "abc", "a9993e364706816aba3e25717850c26c9cd0d89d",
      "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
    { "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "84983e441c3bd26ebaae4aa1f95129e5e54670f1",
      "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
    { "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqr"
      "st"
      "nopqrstu",
      "a49b2446a02c645bf419f995b67091253a04a259",
      "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1" },
};

static void check(enum hash_kind kind, const void *p, size_t n, size_t piece, const char *want)
{
    struct hash h;
    char hex[65];
    hash_init(&h, kind);
    for (size_t at = 0; at < n; at += piece)
        hash_add(&h, (const char *)p + at, n - at < piece ? n - at : piece);
    hash_hex(&h, hex);
    assert_string_equal(hex, want);
}

static void known(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        for (size_t piece = 1; piece < 130; piece++) {
            check(HASH_SHA1, vectors[i].text, strlen(vectors[i].text), piece, vectors[i].sha1);
            check(HASH_SHA256, vectors[i].text, strlen(vectors[i].text), piece, vectors[i].sha256);
        }
}

static void million(void **state)
{
    (void)state;
    char *p = malloc(1000000);
    assert_non_null(p);
    memset(p, 'a', 1000000);
    for (size_t piece = 1000000; piece > 50; piece /= 3) {
        check(HASH_SHA1, p, 1000000, piece, "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
        check(HASH_SHA256, p, 1000000, piece,
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
        check(HASH_MD5, p, 1000000, piece, "7707d6ae4e027c70eea2a935c2296f21");
    }
    free(p);
}

static void md5(void **state)
{
    (void)state;
    static const char digits[] = "12345678901234567890123456789012345678901234567890123456789012345678901234567890";
    check(HASH_MD5, "", 0, 1, "d41d8cd98f00b204e9800998ecf8427e");
    for (size_t piece = 1; piece < 90; piece++) {
        check(HASH_MD5, "abc", 3, piece, "900150983cd24fb0d6963f7d28e17f72");
        check(HASH_MD5, digits, 80, piece, "57edf4a22be3c955ac49da2e2107b67a");
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(known), cmocka_unit_test(million), cmocka_unit_test(md5) };
    return cmocka_run_group_tests_name("hash", tests, NULL, NULL);
}
