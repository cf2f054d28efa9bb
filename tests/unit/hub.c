/* file/hub: the cache's layout, what is fetched, resuming, redirects, retries, and what is said when it
 * cannot be. A small hub in Python (tests/help/hub_server.py) runs beside; the model's name chooses what goes
 * wrong there. */
#include "help/tmp.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/buf.h"
#include "base/log.h"
#include "file/hub.h"

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
static char log_path[300], endpoint[100];
static int to_server = -1;
static pid_t server;

static int begin(void **state)
{
    int in[2], out[2], hub, cdn;
    if (tmp_begin(state) < 0 || pipe(in) < 0 || pipe(out) < 0) return -1;
    snprintf(log_path, sizeof log_path, "%s/log", tmp_dir);
    server = fork();
    if (server == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        close(out[0]);
        execl("/usr/bin/python3", "python3", "tests/help/hub_server.py", log_path, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    to_server = in[1];
    FILE *f = fdopen(out[0], "r");
    if (!f || fscanf(f, "%d %d", &hub, &cdn) != 2) return -1;
    fclose(f);
    snprintf(endpoint, sizeof endpoint, "http://127.0.0.1:%d", hub);
    log_set_level(LOG_QUIET);
    return 0;
}

static int end(void **state)
{
    close(to_server);
    waitpid(server, NULL, 0);
    return tmp_end(state);
}

/* A fresh cache and an empty log. */
static int fresh(void **state)
{
    static int k;
    char name[30];
    (void)state;
    snprintf(name, sizeof name, "home%d", k++);
    setenv("HF_HOME", tmp_path(name), 1);
    setenv("HF_ENDPOINT", endpoint, 1);
    unsetenv("HF_TOKEN");
    unsetenv("HF_HUB_OFFLINE");
    return truncate(log_path, 0) < 0 && access(log_path, F_OK) == 0;
}

/* Lines of the log that hold `part`. */
static int count(const char *part)
{
    char *text, *at;
    int n = 0;
    if (file_read(&text, NULL, log_path, 1 << 20, NULL) < 0) return 0;
    for (char *line = strtok_r(text, "\n", &at); line; line = strtok_r(NULL, "\n", &at))
        n += strstr(line, part) != NULL;
    free(text);
    return n;
}

static const char *in_home(const char *path)
{
    static char full[4][500];
    static int k;
    snprintf(full[k %= 4], sizeof full[0], "%s/%s", getenv("HF_HOME"), path);
    return full[k++];
}

static bool exists(const char *dir, const char *file)
{
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return access(path, F_OK) == 0;
}

static int64_t size_of(const char *dir, const char *file)
{
    char path[600];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, file);
    return stat(path, &st) == 0 ? st.st_size : -1;
}

static char *found(const char *name, const char *revision)
{
    char *dir = NULL;
    struct err e;
    if (hub_find(&dir, name, revision, &e) < 0) fail_msg("%s", e.msg);
    return dir;
}

static void fails(const char *name, int code, const char *says)
{
    char *dir = NULL;
    struct err e = { 0 };
    assert_int_equal(hub_find(&dir, name, NULL, &e), code);
    assert_contains(e.msg, says);
    assert_null(dir);
}

static void downloads(void **state)
{
    (void)state;
    char *dir = found("org/good", NULL), link[200] = "", path[600];
    assert_string_equal(dir, in_home("hub/models--org--good/snapshots/" COMMIT));
    assert_int_equal(size_of(dir, "model.safetensors"), 300000);
    assert_int_equal(size_of(dir, "mm_projector.bin"), 1000);
    assert_int_equal(size_of(dir, "empty.json"), 0);
    assert_true(exists(dir, "config.json") && exists(dir, "tokenizer.model") &&
                exists(dir, "preprocessor_config.json"));
    assert_false(exists(dir, "pytorch_model.bin") || exists(dir, "README.md") || exists(dir, "tf_model.h5") ||
                 exists(dir, "tf_notes.json") || exists(dir, "onnx") || exists(dir, "image.png"));
    snprintf(path, sizeof path, "%s/config.json", dir);
    assert_true(readlink(path, link, sizeof link - 1) > 0);
    assert_int_equal(strncmp(link, "../../blobs/", 12), 0);
    assert_int_equal(strlen(link), 12 + 40); /* git's SHA-1 */
    char *text;
    size_t n;
    assert_int_equal(file_read(&text, &n, in_home("hub/models--org--good/refs/main"), 100, NULL), 0);
    assert_string_equal(text, COMMIT);
    free(text);
    assert_int_equal(count("cdn GET"), 2);
    free(dir);
}

/* A second start touches no network: not even one that is down. */
static void starts_again_alone(void **state)
{
    (void)state;
    free(found("org/good", NULL));
    int before = count("hub ");
    setenv("HF_ENDPOINT", "http://127.0.0.1:1", 1);
    free(found("org/good", NULL));
    free(found("org/good", "main"));
    free(found("org/good", COMMIT));
    setenv("HF_HUB_OFFLINE", "1", 1);
    free(found("org/good", NULL));
    fails("org/bin", ERR_MISSING, "HF_HUB_OFFLINE");
    assert_int_equal(count("hub "), before);
    unsetenv("HF_HUB_OFFLINE");
    unlink(in_home("hub/models--org--good/snapshots/" COMMIT "/model.safetensors"));
    fails("org/other", ERR_IO, "cannot reach 'http://127.0.0.1:1/api/models/org/other/revision/main'");
    fails("org/bad name", ERR_MISSING, "no folder 'org/bad name'");
}

static void chooses_bin(void **state)
{
    (void)state;
    char *dir = found("org/bin", NULL);
    assert_true(exists(dir, "pytorch_model.bin"));
    assert_false(exists(dir, "model.safetensors"));
    free(dir);
}

static void takes_revisions(void **state)
{
    (void)state;
    char *dir = found("org/good", "v1.5");
    assert_true(access(in_home("hub/models--org--good/refs/v1.5"), F_OK) == 0);
    assert_false(access(in_home("hub/models--org--good/refs/main"), F_OK) == 0);
    free(dir);
    free(found("org/good", "refs/pr/1"));
    free(found("org/good", COMMIT));
    assert_true(access(in_home("hub/models--org--good/refs/refs/pr/1"), F_OK) == 0);
    assert_int_equal(count("cdn GET"), 2); /* the blobs were there */
    struct err e;
    assert_int_equal(hub_find(&dir, "org/good", "nope", &e), ERR_MISSING);
    assert_contains(e.msg, "no revision 'nope'");
    assert_int_equal(hub_find(&dir, "org/good", "../x", &e), ERR_USAGE);
}

static void resumes(void **state)
{
    (void)state;
    char *dir = found("org/short", NULL); /* breaks off after 100 kB, twice */
    assert_int_equal(size_of(dir, "model.safetensors"), 300000);
    assert_int_equal(count("cdn GET /org/short/model.safetensors - "), 1);
    assert_int_equal(count("cdn GET /org/short/model.safetensors bytes=100000- "), 1);
    assert_int_equal(count("cdn GET /org/short/model.safetensors bytes=200000- "), 1);
    free(dir);
    fresh(state);
    dir = found("org/norange", NULL); /* answers 200 to a Range: starts over */
    assert_int_equal(size_of(dir, "model.safetensors"), 300000);
    assert_int_equal(count("cdn GET /org/norange/model.safetensors"), 3);
    free(dir);
}

/* Files that an earlier process left: right beginnings are used, wrong ones are found out. */
static void resumes_leftovers(void **state)
{
    (void)state;
    char *dir = found("org/good", NULL), link[200] = "", path[600], part[700];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    assert_true(readlink(path, link, sizeof link - 1) > 0);
    snprintf(path, sizeof path, "%s/hub/models--org--good/blobs/%s", getenv("HF_HOME"), link + 12);
    snprintf(part, sizeof part, "%s.incomplete", path);
    for (int i = 0; i < 4; i++) { /* shorter, whole, too long, empty */
        static const int64_t sizes[] = { 1234, 300000, 300001, 0 };
        truncate(log_path, 0);
        unlink(in_home("hub/models--org--good/refs/main"));
        assert_int_equal(rename(path, part), 0);
        assert_int_equal(truncate(part, sizes[i]), 0);
        free(found("org/good", NULL));
        assert_int_equal(size_of(dir, "model.safetensors"), 300000);
        assert_int_equal(count("cdn GET"), i == 1 ? 0 : 1);
        assert_int_equal(count("cdn GET /org/good/model.safetensors bytes=1234- "), i == 0);
        assert_int_equal(access(part, F_OK), -1);
    }
    unlink(in_home("hub/models--org--good/refs/main"));
    unlink(path);
    FILE *f = fopen(part, "w");
    fputs("wrong beginning", f);
    fclose(f);
    fails("org/good", ERR_FORMAT, "arrived damaged and was deleted");
    assert_int_equal(access(part, F_OK), -1);
    free(found("org/good", NULL));
    free(dir);
}

static void refuses_damage(void **state)
{
    (void)state;
    fails("org/damaged", ERR_FORMAT, "'model.safetensors' arrived damaged and was deleted: its SHA-256 is");
    assert_int_not_equal(access(in_home("hub/models--org--damaged/snapshots"), F_OK), 0);
    fails("org/stingy", ERR_IO, "sent only 40 of 300000 bytes of 'model.safetensors'");
    fails("org/lies", ERR_IO,
          "sent only 100000 of 300000 bytes"); /* a Content-Range that does not fit is dropped */
}

static void retries(void **state)
{
    (void)state;
    free(found("org/flaky", NULL));
    assert_int_equal(count("hub GET /api/models/org/flaky"), 3);
}

static void explains(void **state)
{
    (void)state;
    fails("org/missing", ERR_MISSING, "no folder and no model 'org/missing'");
    fails("org/gated", ERR_USAGE, "it is a gated model; accept its terms at");
    fails("org/gated", ERR_USAGE, "set HF_TOKEN");
    fails("org/private", ERR_MISSING, "a private model needs HF_TOKEN");
    fails("org/broken", ERR_IO, "answered status 400");
    fails("org/nonsense", ERR_FORMAT, "cannot parse");
    fails("org/evil", ERR_FORMAT, "holds the name '../../../evil.json'");
    fails("org/useless", ERR_MISSING, "no files that can be used here");
    static const char *const names[] = { "nofolder", "/no/such", "../x/y", "a/b/c", "org/..",
                                         "org/.x",   "-x/y",     "o/n?m",  "" };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) fails(names[i], ERR_MISSING, "no folder");
    setenv("HF_ENDPOINT", "ftp://x", 1);
    fails("org/good", ERR_USAGE, "HF_ENDPOINT");
}

static void keeps_the_token(void **state)
{
    (void)state;
    setenv("HF_TOKEN", "secret", 1);
    free(found("org/private", NULL));
    assert_true(count("hub GET /org/private/resolve/" COMMIT "/model.safetensors - Bearer secret") == 1);
    assert_int_equal(count("cdn GET"), 2);
    assert_int_equal(count("cdn GET /org/private/model.safetensors - -"), 1);
    unsetenv("HF_TOKEN");
    fresh(state);
    mkdir(getenv("HF_HOME"), 0777);
    FILE *f = fopen(in_home("token"), "w");
    fputs("secret\n", f);
    fclose(f);
    free(found("org/private", NULL));
    free(found("org/detour", NULL)); /* redirects within the hub are followed by HEAD as well */
    assert_int_equal(count("hub HEAD /org/detour/resolve/" COMMIT "/model.safetensors?x - Bearer secret"), 1);
    assert_int_equal(count("hub GET /org/detour/resolve/" COMMIT "/model.safetensors?x - Bearer secret"), 1);
    free(found("org/moved", NULL)); /* a renamed model: the API redirects */
}

static void finds_folders(void **state)
{
    (void)state;
    char *dir = found(tmp_dir, NULL);
    assert_string_equal(dir, tmp_dir);
    free(dir);
    assert_int_equal(count("hub"), 0);
}

/* A cache that cannot be written, and a disk that fills up (a limit on file sizes stands in). */
static void reports_the_disk(void **state)
{
    (void)state;
    struct rlimit old, small;
    setenv("HF_HOME", "/dev/null/cache", 1);
    fails("org/good", ERR_IO, "cannot create '/dev/null/cache");
    fresh(state);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = (struct rlimit){ 50000, old.rlim_max };
    setrlimit(RLIMIT_FSIZE, &small);
    char *dir = NULL;
    struct err e = { 0 };
    int rc = hub_find(&dir, "org/good", NULL, &e);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(rc, ERR_IO);
    assert_contains(e.msg, "cannot write '");
    assert_contains(e.msg, ".incomplete'");
    assert_int_not_equal(access(in_home("hub/models--org--good/refs/main"), F_OK), 0);
    free(found("org/good", NULL));
    assert_int_equal(count("cdn GET /org/good/model.safetensors bytes=50000- "), 1);
}

/* Two processes at once: both succeed, each blob travels once. */
static void shares(void **state)
{
    (void)state;
    pid_t kid[3];
    for (int i = 0; i < 3; i++)
        if ((kid[i] = fork()) == 0) {
            char *dir;
            _exit(hub_find(&dir, "org/good", NULL, NULL) < 0);
        }
    for (int i = 0; i < 3; i++) {
        int status;
        waitpid(kid[i], &status, 0);
        assert_int_equal(status, 0);
    }
    assert_int_equal(count("cdn GET /org/good/model.safetensors"), 1);
    assert_int_equal(count("cdn GET /org/good/mm_projector.bin"), 1);
}

static void wants(void **state)
{
    (void)state;
    assert_true(hub_wants("config.json", true) && hub_wants("model-00001-of-00002.safetensors", true));
    assert_true(hub_wants("pytorch_model-00001-of-00002.bin", false) &&
                hub_wants("non_lora_trainables.bin", true));
    assert_false(hub_wants("pytorch_model.bin", true) || hub_wants("adapter_model.bin", true));
    assert_false(hub_wants("model.fp16.safetensors", true) || hub_wants("sub/config.json", true) ||
                 hub_wants(".gitattributes", true) || hub_wants("training_args.bin", false) ||
                 hub_wants("flax_model.msgpack", false) || hub_wants("optimizer.pt", false));
}

static void complete(void **state)
{
    (void)state;
    static const struct {
        const char *file, *text;
        bool after;
    } steps[] = {
        { "c/config.json", "{}", false },
        { "c/pytorch_model.bin.index.json", "{\"weight_map\":{\"a\":\"p-1.bin\",\"b\":\"p-2.bin\"}}", false },
        { "c/p-1.bin", "x", false },
        { "c/mm_projector.bin", "x", false },
        { "c/p-2.bin", "x", true },
        { "c/tokenizer_config.json", "{}", false },
        { "c/tokenizer.model", "x", true },
        { "d/adapter_config.json", "{}", false },
        { "d/adapter_model.bin", "x", true },
    };
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        tmp_text(steps[i].file, steps[i].text);
        assert_int_equal(hub_complete(tmp_path(steps[i].file[0] == 'c' ? "c" : "d")), steps[i].after);
    }
    assert_false(hub_complete(tmp_path("none")));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(downloads, fresh),
        cmocka_unit_test_setup(starts_again_alone, fresh),
        cmocka_unit_test_setup(chooses_bin, fresh),
        cmocka_unit_test_setup(takes_revisions, fresh),
        cmocka_unit_test_setup(resumes, fresh),
        cmocka_unit_test_setup(resumes_leftovers, fresh),
        cmocka_unit_test_setup(refuses_damage, fresh),
        cmocka_unit_test_setup(retries, fresh),
        cmocka_unit_test_setup(explains, fresh),
        cmocka_unit_test_setup(keeps_the_token, fresh),
        cmocka_unit_test_setup(finds_folders, fresh),
        cmocka_unit_test_setup(reports_the_disk, fresh),
        cmocka_unit_test_setup(shares, fresh),
        cmocka_unit_test(wants),
        cmocka_unit_test(complete),
    };
    return cmocka_run_group_tests_name("hub", tests, begin, end);
}
