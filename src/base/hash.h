/* SHA-256 (FIPS 180-4) and SHA-1, to check what was downloaded: the hub names large files by SHA-256 and small ones by
 * git's blob SHA-1. MD5 (RFC 1321), by which LLaVA's web server names pictures. Not for secrets. And CRC-32C, against
 * accidents only. */
#pragma once
#include <stddef.h>
#include <stdint.h>

enum hash_kind { HASH_SHA1, HASH_SHA256, HASH_MD5 };
struct hash {
    enum hash_kind kind;
    uint32_t h[8];
    uint64_t n; /* bytes so far */
    unsigned char block[64];
};

void hash_init(struct hash *h, enum hash_kind kind);
void hash_add(struct hash *h, const void *p, size_t n);
void hash_hex(struct hash *h, char hex[65]); /* ends the hash; 40, 64 or 32 lower-case digits and NUL */

/* CRC-32C (Castagnoli, RFC 3720 B.4), of TensorBoard's event files. */
uint32_t crc32c(const void *p, size_t n);
