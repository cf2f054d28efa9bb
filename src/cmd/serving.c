/* See serving.h. */
#define _GNU_SOURCE
#include "cmd/serving.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/plat.h"

enum {
    K_HOST = CMD_SERVER_KEY,
    K_PORT,
    K_CERT,
    K_KEY,
    K_KEYS,
    K_CORS,
    K_ACCESS,
    K_LOGDIR,
    K_FORWARDED,
    K_CONNECTIONS,
    K_GRACE,
    K_IDLE,
    K_HEAD,
    K_BODY
};

static const struct argp_option options[] = {
    { NULL, 0, NULL, 0, "Server:", 0 },
    { "host", K_HOST, "NAME", 0, "Address to listen at; 0.0.0.0: all (the default stands above)", 0 },
    { "port", K_PORT, "N", 0, "Port to listen at; 0: any that is free (the default stands above)", 0 },
    { "tls-cert", K_CERT, "FILE", 0, "Certificate chain (PEM): serves https", 0 },
    { "tls-key", K_KEY, "FILE", 0, "Its private key (PEM)", 0 },
    { "api-key-file", K_KEYS, "FILE", 0,
      "Keys, one a line, one of which every request must bring (Authorization: Bearer KEY); LLAVA_API_KEY in the "
      "environment is one more. Without either, anybody may ask",
      0 },
    { "cors", K_CORS, "ORIGIN", 0, "Let pages from ORIGIN (* for any) read answers (default: none)", 0 },
    { "access-log", K_ACCESS, "FILE", 0, "A JSON object for each request; - for standard output (default: none)", 0 },
    { "log-dir", K_LOGDIR, "DIR", 0, "Where log files go (default: the current folder)", 0 },
    { "trust-forwarded", K_FORWARDED, NULL, 0, "Take clients' addresses from X-Forwarded-For: only behind a proxy",
      0 },
    { "connections", K_CONNECTIONS, "N", 0,
      "Most open connections (default 4096, less where fewer files may be open)", 0 },
    { "idle-timeout", K_IDLE, "SECONDS", 0, "For a connection that does nothing (default 75)", 0 },
    { "header-timeout", K_HEAD, "SECONDS", 0, "For a request's headers to be whole (default 30)", 0 },
    { "body-timeout", K_BODY, "SECONDS", 0, "For a request's body to be whole (default 300)", 0 },
    { "grace", K_GRACE, "SECONDS", 0, "Time that answers under way get after SIGTERM (default 30)", 0 },
    { 0 },
};

static error_t option(int key, char *arg, struct argp_state *state)
{
    struct serving *s = state->input;
    switch (key) {
    case K_HOST: s->options.host = arg; break;
    case K_PORT: s->options.port = (int)cmd_int(state, "port", arg, 0, 65535); break;
    case K_CERT: s->options.tls_cert = arg; break;
    case K_KEY: s->options.tls_key = arg; break;
    case K_KEYS: s->options.keys_file = arg; break;
    case K_CORS: s->options.cors = arg; break;
    case K_ACCESS: s->options.log_path = arg; break;
    case K_LOGDIR: s->log_dir = arg; break;
    case K_FORWARDED: s->options.forwarded = true; break;
    case K_CONNECTIONS: s->options.connections = (int)cmd_int(state, "connections", arg, 1, 1 << 20); break;
    case K_IDLE: s->options.idle_s = (int)cmd_int(state, "idle-timeout", arg, 1, 86400); break;
    case K_HEAD: s->options.head_s = (int)cmd_int(state, "header-timeout", arg, 1, 86400); break;
    case K_BODY: s->options.body_s = (int)cmd_int(state, "body-timeout", arg, 1, 86400); break;
    case K_GRACE: s->grace_s = cmd_real(state, "grace", arg, 0, 86400); break;
    case ARGP_KEY_END:
        if (!s->options.tls_cert != !s->options.tls_key) argp_error(state, "--tls-cert and --tls-key go together");
        break;
    default: return ARGP_ERR_UNKNOWN;
    }
    return 0;
}
const struct argp serving_argp = { options, option, NULL, NULL, NULL, NULL, NULL };

struct serving serving_default(const char *host, int port)
{
    return (struct serving){ .options = { .host = host, .port = port, .key = env_get(ENV_LLAVA_API_KEY) },
                             .log_dir = ".",
                             .grace_s = 30 };
}

static void stop_signals(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGINT);
}

/* With port -1 at the first that is free. */
static int open_server(struct serving *s, struct err *e)
{
    enum { FIRST = 7860, LAST = 7959 };
    struct server_options *o = &s->options;
    if (o->port >= 0) return server_open(&s->server, o, e);
    int rc = ERR_IO;
    for (o->port = FIRST; rc < 0 && o->port <= LAST; o->port++) rc = server_open(&s->server, o, e);
    return rc;
}

int serving_open(struct serving *s, const char *name, const char *file, struct err *e)
{
    sigset_t stop;
    int rc;
    stop_signals(&stop);
    sigprocmask(SIG_BLOCK, &stop, NULL); /* every thread that starts from here on has it so */
    TRY(journal_open(&s->journal, name, s->log_dir, file, e));
    TRY(client_open(&s->client, 0, 0, e));
    TRY(open_server(s, e));
out:
    return rc;
}

void serving_run(struct serving *s, const char *what)
{
    sigset_t stop;
    int sig;
    const char *host = s->options.host;
    bool any = !strcmp(host, "0.0.0.0") || !strcmp(host, "::");
    bool v6 = !any && strchr(host, ':'); /* whose colons an address keeps in brackets */
    log_info("%s: open %s://%s%s%s:%d", what, server_is_tls(s->server) ? "https" : "http", v6 ? "[" : "",
             any ? "localhost" : host, v6 ? "]" : "", server_port(s->server));
    stop_signals(&stop);
    sigwait(&stop, &sig);
    journal_info(s->journal, "stopping: answers under way get %g s", s->grace_s);
    signal(SIGINT, SIG_DFL); /* once more: at once */
    signal(SIGTERM, SIG_DFL);
    sigprocmask(SIG_UNBLOCK, &stop, NULL);
    server_drain(s->server, s->grace_s);
}

void serving_stop(struct serving *s)
{
    server_close(s->server);
    s->server = NULL;
}

void serving_close(struct serving *s)
{
    serving_stop(s);
    client_close(s->client);
    journal_close(s->journal);
    s->client = NULL;
    s->journal = NULL;
}

/* ---- supervision */

static volatile sig_atomic_t child, told;

static void pass_on(int sig)
{
    told = sig;
    if (child > 0) kill((pid_t)child, sig);
}

static bool worth_another(int status)
{
    if (WIFEXITED(status)) return WEXITSTATUS(status) == EXIT_DEVICE;
    int sig = WTERMSIG(status);
    return sig == SIGSEGV || sig == SIGBUS || sig == SIGABRT || sig == SIGFPE || sig == SIGILL || sig == SIGKILL;
}

void serving_supervise(void)
{
    enum { TRIES = 5, WITHIN_S = 60 };
    double died[TRIES] = { 0 };
    signal(SIGTERM, pass_on);
    signal(SIGINT, pass_on);
    for (int n = 0;; n++) {
        pid_t parent = getpid(), pid = fork();
        int status;
        if (pid == 0) {
            signal(SIGTERM, SIG_DFL);
            signal(SIGINT, SIG_DFL);
            prctl(PR_SET_PDEATHSIG, SIGTERM);
            if (getppid() != parent) _exit(1);
            return;
        }
        if (pid < 0) { /* no process to spare: then without */
            log_warn("cannot start a second process: the worker is not started again when it fails");
            signal(SIGTERM, SIG_DFL);
            signal(SIGINT, SIG_DFL);
            return;
        }
        child = pid;
        if (told) kill(pid, told);
        while (waitpid(pid, &status, 0) < 0);
        child = 0;
        double now = plat_now_s(), first = died[n % TRIES];
        died[n % TRIES] = now;
        bool again = worth_another(status) && !told && !(n >= TRIES && now - first < WITHIN_S);
        if (!again) _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
        log_warn("the worker ended with %s %d and is started again", WIFEXITED(status) ? "status" : "signal",
                 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
        nanosleep(&(struct timespec){ .tv_sec = n % TRIES }, NULL);
    }
}
