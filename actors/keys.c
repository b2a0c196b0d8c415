/*
 * keys.c - sequence hashes: chained XXH3-128 over tokens. Owns nothing; pure functions, any thread.
 *
 * Source of the hash: Yann Collet, xxHash (https://xxhash.com), XXH3 with 128 bits, seed 0, default secret; canonical
 * form.
 */
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "actors/kvbm.h"
#include "runtime/log.h"

_Static_assert(sizeof(kvbm_key) == sizeof(XXH128_canonical_t), "a key is the canonical form of the hash");

/* Parent and tokens of one block stand in one buffer for the one-shot hash, which for small blocks is several times
 * faster than the streaming one; blocks of more tokens are streamed through it. */
#define KEYS_CHUNK_TOKENS 256

static void key_from_hash(XXH128_hash_t hash, kvbm_key *key) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(key->bytes, canonical.digest, sizeof(key->bytes));
}

static void tokens_little_endian(unsigned char *out, const uint32_t *tokens, size_t count) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(out, tokens, count * sizeof(*tokens));
#else
    for (size_t i = 0; i < count; i++) {
        uint32_t swapped = __builtin_bswap32(tokens[i]);
        memcpy(out + i * sizeof(swapped), &swapped, sizeof(swapped));
    }
#endif
}

static void key_small_block(const uint32_t *tokens, uint32_t page_size, const kvbm_key *parent, kvbm_key *key) {
    unsigned char buffer[sizeof(kvbm_key) + KEYS_CHUNK_TOKENS * sizeof(uint32_t)];
    memcpy(buffer, parent->bytes, sizeof(kvbm_key));
    tokens_little_endian(buffer + sizeof(kvbm_key), tokens, page_size);
    key_from_hash(XXH3_128bits(buffer, sizeof(kvbm_key) + page_size * sizeof(uint32_t)), key);
}

static void key_large_block(const uint32_t *tokens, uint32_t page_size, const kvbm_key *parent, kvbm_key *key) {
    unsigned char buffer[KEYS_CHUNK_TOKENS * sizeof(uint32_t)];
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    (void)XXH3_128bits_reset(&state);
    (void)XXH3_128bits_update(&state, parent->bytes, sizeof(parent->bytes));
    for (uint32_t done = 0; done < page_size;) {
        uint32_t chunk = page_size - done < KEYS_CHUNK_TOKENS ? page_size - done : KEYS_CHUNK_TOKENS;
        tokens_little_endian(buffer, tokens + done, chunk);
        (void)XXH3_128bits_update(&state, buffer, chunk * sizeof(uint32_t));
        done += chunk;
    }
    key_from_hash(XXH3_128bits_digest(&state), key);
}

void kvbm_keys_compute_mt(const uint32_t *tokens, uint64_t count, uint32_t page_size, const void *salt,
                          size_t salt_bytes, const kvbm_key *parent, kvbm_key *keys) {
    kvbm_key root = {{0}};
    KVBM_ASSERT(page_size > 0);
    KVBM_ASSERT(salt != NULL || salt_bytes == 0);
    if (parent != NULL)
        root = *parent;
    else if (salt_bytes > 0)
        kvbm_key_from_bytes_mt(salt, salt_bytes, &root);
    const kvbm_key *previous = &root;
    for (uint64_t i = 0; i < count; i++) {
        if (page_size <= KEYS_CHUNK_TOKENS)
            key_small_block(tokens + i * page_size, page_size, previous, &keys[i]);
        else
            key_large_block(tokens + i * page_size, page_size, previous, &keys[i]);
        previous = &keys[i];
    }
}

void kvbm_key_from_bytes_mt(const void *bytes, size_t count, kvbm_key *key) {
    KVBM_ASSERT(bytes != NULL || count == 0);
    key_from_hash(XXH3_128bits(count > 0 ? bytes : "", count), key);
}
