/* See stop.h. */
#include "train/stop.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

static volatile sig_atomic_t asked, terminal;

static void ask(int sig)
{
    static const char said[] = "\nllava: stopping: the step is finished and saved; once more ends at once\n";
    const int was = errno, skip = !terminal; /* there the progress bar has its line */
    (void)sig;
    asked = 1;
    stop_end();
    if (write(STDERR_FILENO, said + skip, sizeof said - 1 - (size_t)skip) < 0) asked = 1; /* nobody is there */
    errno = was;
}

/* A signal that is ignored, as in the background of a script, stays so. */
static void set(void (*handler)(int))
{
    static const int signals[] = { SIGINT, SIGTERM };
    struct sigaction a = { .sa_handler = handler, .sa_flags = SA_RESTART }, was;
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < 2; i++)
        if (sigaction(signals[i], NULL, &was) == 0 && was.sa_handler != SIG_IGN) sigaction(signals[i], &a, NULL);
}

void stop_begin(void)
{
    asked = 0;
    terminal = isatty(STDERR_FILENO) != 0;
    set(ask);
}

bool stop_asked(void) { return asked; }

void stop_end(void) { set(SIG_DFL); }
