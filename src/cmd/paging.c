/* See paging.h. */
#include "cmd/paging.h"

#include "base/plat.h"

enum { K_EMBED = CMD_PAGE_KEY, K_SHARE, K_MODERATE, K_MODERATOR, K_NO_IP };

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Page:", 0 },
    { "embed", K_EMBED, NULL, 0, "Without title and terms, and for use inside other pages", 0 },
    { "moderate", K_MODERATE, NULL, 0,
      "Have OpenAI's moderation service look at each question (OPENAI_API_KEY must be in the environment)", 0 },
    { "moderation-url", K_MODERATOR, "URL", 0,
      "Where that is, or one that answers like it (default https://api.openai.com/v1/moderations)", 0 },
    { "no-client-ip", K_NO_IP, NULL, 0, "Keep clients' addresses out of the conversation log", 0 },
    { "share", K_SHARE, NULL, OPTION_HIDDEN, "Refused", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct paging *p = state->input;
    (void)arg;
    switch (key) {
    case K_EMBED: p->web.embed = true; break;
    case K_MODERATE: p->moderate = true; break;
    case K_MODERATOR: p->web.moderation_url = arg; break;
    case K_NO_IP: p->web.no_ip = true; break;
    case K_SHARE:
        argp_error(state, "--share is not supported: it would lead visitors through somebody else's server; "
                          "put a proxy in front instead");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp paging_argp = { options, option, NULL, NULL, NULL, NULL, NULL };

int paging_check(struct paging *p, const char *log_dir, struct err *e)
{
    p->web.log_dir = log_dir;
    if (!p->web.moderation_url) p->web.moderation_url = "https://api.openai.com/v1/moderations";
    if (!p->moderate) return 0;
    p->web.moderation_key = env_get(ENV_OPENAI_API_KEY);
    return p->web.moderation_key ? 0 : err_set(e, ERR_USAGE, "--moderate needs OPENAI_API_KEY in the environment");
}
