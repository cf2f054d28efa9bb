/* See hash.h. Both hashes read blocks of 64 bytes; only the block function differs. On x86-64 with SHA
 * instructions SHA-256 uses them: a 10 GB shard is then checked as fast as the disk reads it. */
#include "base/hash.h"

#include <stdbool.h>
#include <string.h>
#if defined __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#endif

static const uint32_t k256[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

typedef void blocks_fn(uint32_t h[8], const unsigned char *p, size_t n_blocks);

static uint32_t rotl(uint32_t x, int k) { return (x << k) | (x >> (32 - k)); }
static uint32_t rotr(uint32_t x, int k) { return (x >> k) | (x << (32 - k)); }
static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void sha1_blocks(uint32_t h[8], const unsigned char *p, size_t n_blocks)
{
    static const uint32_t k[4] = { 0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6 };
    for (; n_blocks; n_blocks--, p += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) w[i] = get32(p + 4 * i);
        for (int i = 16; i < 80; i++) w[i] = rotl(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? d ^ (b & (c ^ d)) : i >= 40 && i < 60 ? (b & c) | (d & (b | c)) : b ^ c ^ d;
            uint32_t t = rotl(a, 5) + f + e + k[i / 20] + w[i];
            e = d;
            d = c;
            c = rotl(b, 30);
            b = a;
            a = t;
        }
        h[0] += a;
        h[1] += b;
        h[2] += c;
        h[3] += d;
        h[4] += e;
    }
}

/* Word j of the state is at s[(j - k) % 8] in round k, so that nothing has to move. */
static inline void sha256_round(uint32_t s[8], int k, uint32_t w)
{
    uint32_t a = s[-k & 7], b = s[(1 - k) & 7], c = s[(2 - k) & 7], *d = &s[(3 - k) & 7];
    uint32_t e = s[(4 - k) & 7], f = s[(5 - k) & 7], g = s[(6 - k) & 7], *h = &s[(7 - k) & 7];
    uint32_t t = *h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + (g ^ (e & (f ^ g))) + w;
    *d += t;
    *h = t + (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) | (c & (a | b)));
}

static void sha256_blocks(uint32_t h[8], const unsigned char *p, size_t n_blocks)
{
    for (; n_blocks; n_blocks--, p += 64) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = get32(p + 4 * i);
        for (int i = 16; i < 64; i++) {
            uint32_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + w[i - 7] + (rotr(x, 7) ^ rotr(x, 18) ^ (x >> 3)) +
                   (rotr(y, 17) ^ rotr(y, 19) ^ (y >> 10));
        }
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i += 8)
            for (int k = 0; k < 8; k++) sha256_round(s, k, k256[i + k] + w[i + k]);
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
}

static void md5_blocks(uint32_t h[8], const unsigned char *p, size_t n_blocks)
{
    static const uint32_t k[64] = {
        0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
        0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
        0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
        0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
        0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
        0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
        0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
        0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391,
    };
    static const unsigned char turn[4][4] = { { 7, 12, 17, 22 }, { 5, 9, 14, 20 }, { 4, 11, 16, 23 },
                                              { 6, 10, 15, 21 } };
    for (; n_blocks; n_blocks--, p += 64) {
        uint32_t a = h[0], b = h[1], c = h[2], d = h[3];
        for (int i = 0; i < 64; i++) {
            const uint32_t f[4] = { (b & c) | (~b & d), (d & b) | (~d & c), b ^ c ^ d, c ^ (b | ~d) };
            const int word[4] = { i, (5 * i + 1) & 15, (3 * i + 5) & 15, 7 * i & 15 };
            const unsigned char *w = p + 4 * (word[i / 16] & 15); /* little-endian, unlike SHA */
            uint32_t m = (uint32_t)w[3] << 24 | (uint32_t)w[2] << 16 | (uint32_t)w[1] << 8 | w[0];
            uint32_t t = a + f[i / 16] + k[i] + m;
            a = d;
            d = c;
            c = b;
            b += rotl(t, turn[i / 16][i & 3]);
        }
        h[0] += a;
        h[1] += b;
        h[2] += c;
        h[3] += d;
    }
}

#if defined __x86_64__
/* The instructions keep the state as the words a,b,e,f and c,d,g,h; each pair of rnds2 does four rounds. */
__attribute__((target("sha,sse4.1"))) static void sha256_blocks_ni(uint32_t h[8], const unsigned char *p,
                                                                   size_t n_blocks)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i t = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xb1); /* c d a b, low word last */
    __m128i u = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(t, u, 8), cdgh = _mm_blend_epi16(u, t, 0xf0);
    for (; n_blocks; n_blocks--, p += 64) {
        __m128i w[4], abef0 = abef, cdgh0 = cdgh;
        for (int i = 0; i < 16; i++) {
            __m128i *x = &w[i % 4];
            if (i < 4) {
                *x = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), swap);
            } else { /* w[i] from w[i-16], w[i-15], w[i-7] and w[i-2], four at a time */
                __m128i w7 = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
                *x = _mm_add_epi32(_mm_sha256msg1_epu32(*x, w[(i + 1) % 4]), w7);
                *x = _mm_sha256msg2_epu32(*x, w[(i + 3) % 4]);
            }
            __m128i m = _mm_add_epi32(*x, _mm_loadu_si128((const __m128i *)(k256 + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, m);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(m, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef0);
        cdgh = _mm_add_epi32(cdgh, cdgh0);
    }
    t = _mm_shuffle_epi32(abef, 0x1b);
    u = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(t, u, 0xf0));
    _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(u, t, 8));
}

static blocks_fn *blocks_of(enum hash_kind kind)
{
    unsigned a, b, c, d;
    bool ni = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
    if (kind != HASH_SHA256) return kind == HASH_SHA1 ? sha1_blocks : md5_blocks;
    return ni ? sha256_blocks_ni : sha256_blocks;
}
#else
static blocks_fn *blocks_of(enum hash_kind kind)
{
    return kind == HASH_SHA1 ? sha1_blocks : kind == HASH_MD5 ? md5_blocks : sha256_blocks;
}
#endif

void hash_init(struct hash *h, enum hash_kind kind)
{
    static const uint32_t start[3][8] = {
        [HASH_SHA1] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 },
        [HASH_SHA256] = { 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab,
                          0x5be0cd19 },
        [HASH_MD5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476 },
    };
    *h = (struct hash){ .kind = kind };
    memcpy(h->h, start[kind], sizeof h->h);
}

void hash_add(struct hash *h, const void *bytes, size_t n)
{
    const unsigned char *p = bytes;
    blocks_fn *blocks = blocks_of(h->kind);
    size_t have = (size_t)(h->n % 64), want = 64 - have;
    h->n += n;
    if (have && n >= want) {
        memcpy(h->block + have, p, want);
        blocks(h->h, h->block, 1);
        p += want;
        n -= want;
        have = 0;
    }
    if (n >= 64) {
        blocks(h->h, p, n / 64);
        p += n & ~(size_t)63;
        n &= 63;
    }
    if (n) memcpy(h->block + have, p, n);
}

void hash_hex(struct hash *h, char hex[65])
{
    unsigned char tail[72] = { 0x80 };
    uint64_t bits = h->n * 8;
    size_t pad = (size_t)((h->n % 64 < 56 ? 56 : 120) - h->n % 64); /* up to the last 8 bytes of a block */
    bool little = h->kind == HASH_MD5;
    for (int i = 0; i < 8; i++) tail[pad + (size_t)i] = (unsigned char)(bits >> (little ? 8 * i : 56 - 8 * i));
    hash_add(h, tail, pad + 8);
    int digits = h->kind == HASH_SHA1 ? 40 : little ? 32 : 64;
    for (int i = 0; i < digits; i++) {
        int shift = little ? 8 * (i % 8 / 2) + (i % 2 ? 0 : 4) : 28 - 4 * (i % 8);
        hex[i] = "0123456789abcdef"[h->h[i / 8] >> shift & 15];
    }
    hex[digits] = 0;
}

/* Four bits a step: a table of sixteen, in bit-reversed order. */
uint32_t crc32c(const void *p, size_t n)
{
    static const uint32_t table[16] = {
        0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
        0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
    };
    uint32_t c = ~0u;
    for (const unsigned char *b = p; n--; b++) {
        c ^= *b;
        c = c >> 4 ^ table[c & 15];
        c = c >> 4 ^ table[c & 15];
    }
    return ~c;
}
