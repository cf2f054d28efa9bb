/* Models by name: the Hugging Face cache, and downloading into it.
 *
 * The cache is the one that huggingface_hub keeps, so models fetched by either are found by the other:
 *     HF_HOME/hub/models--ORG--NAME/refs/main              the commit that a branch is at
 *     HF_HOME/hub/models--ORG--NAME/blobs/ETAG             contents, named by SHA-256 (large) or git's SHA-1
 * (small) HF_HOME/hub/models--ORG--NAME/snapshots/COMMIT/FILE  links into blobs/
 *     HF_HOME/hub/.locks/models--ORG--NAME/ETAG.lock       held (flock) while a blob is downloaded
 * Environment: HF_HOME, HF_ENDPOINT, HF_TOKEN (or the file HF_HOME/token), HF_HUB_OFFLINE (base/plat.h).
 * Source of the layout and of the HTTP headers: huggingface_hub/file_download.py, guides/manage-cache.md.
 */
#pragma once
#include <stdbool.h>

#include "base/err.h"

/* Finds the folder of a model; *dir is the caller's to free(). An existing folder is returned as it is.
 * Otherwise the name is ORG/NAME: its snapshot in the cache when that is complete (no network is touched),
 * else it is downloaded: only what hub_wants says. revision: a branch, tag or commit; NULL means main.
 *
 * A download resumes where a former one stopped; every blob's hash is checked before it gets its name.
 * Errors: MISSING (no such model or revision, not in the cache while offline), USAGE (token needed or
 * refused), IO (network, disk full, cache not writable; the message names the path), FORMAT (hash mismatch,
 * nonsense from the server), NOMEM. */
int hub_find(char **dir, const char *name_or_path, const char *revision, struct err *e);

/* Is this file of a model repository one that is needed here? has_safetensors: the repository holds some. */
bool hub_wants(const char *file, bool has_safetensors);

/* Do the files in a folder make a model that can be opened: a configuration, and weights with all their
 * shards? */
bool hub_complete(const char *dir);
