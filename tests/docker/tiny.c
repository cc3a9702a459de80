/* An engine of some kilobytes, for tests that want hundreds of them.
 *
 * GET anything: {"status":"ok","boots":N}, where N counts the lives that this volume has
 * seen: it is one byte a life in ENGINE_DATA_DIR/boots, so a lost volume begins again at 1.
 * With TINY_DROP_TO=uid it does what many images do: starts as root, gives its directory
 * to a user, becomes that user, and only then writes.
 */
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CLIENTS = 64, REQUEST_MAX = 4096 };

static struct pollfd polled[CLIENTS + 1];
static char request[CLIENTS + 1][REQUEST_MAX];
static size_t length[CLIENTS + 1];
static char answer[512];

static void end(int number) { (void)number; _exit(0); }

static void fail(const char *what) { perror(what); exit(1); }

static void drop_to(uid_t user, const char *directory) {
    if (chown(directory, user, user) != 0) fail("chown");
    if (chmod(directory, 0700) != 0) fail("chmod");
    if (setgroups(1, &(gid_t){user}) != 0) fail("setgroups");
    if (setgid(user) != 0) fail("setgid");
    if (setuid(user) != 0) fail("setuid");
}

static long count_boot(const char *directory) {
    char path[256];
    struct stat found;
    snprintf(path, sizeof path, "%s/boots", directory);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, ".", 1) != 1 || fstat(file, &found) != 0) fail(path);
    close(file);
    return (long)found.st_size;
}

static void make_answer(long boots) {
    char body[128];
    snprintf(body, sizeof body, "{\"status\":\"ok\",\"boots\":%ld,\"uid\":%d}", boots, (int)getuid());
    snprintf(answer, sizeof answer,
             "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
}

static int listening(int port) {
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    int yes = 1, six = socket(AF_INET6, SOCK_STREAM, 0);
    int server = six >= 0 ? six : socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    int bound = six >= 0 ? bind(server, (void *)&any, sizeof any)
                         : bind(server, (void *)&any4, sizeof any4);
    if (bound != 0 || listen(server, 64) != 0) fail("listen");
    return server;
}

static void hang_up(int n) { close(polled[n].fd); polled[n].fd = -1; length[n] = 0; }

static void serve(int n) {
    ssize_t got = read(polled[n].fd, request[n] + length[n], REQUEST_MAX - 1 - length[n]);
    if (got <= 0) { hang_up(n); return; }
    length[n] += (size_t)got;
    request[n][length[n]] = 0;
    if (strstr(request[n], "\r\n\r\n") == NULL) {
        if (length[n] == REQUEST_MAX - 1) hang_up(n);
        return;
    }
    int last = strcasestr(request[n], "connection: close") != NULL;
    ssize_t sent = write(polled[n].fd, answer, strlen(answer));
    if (last || sent < 0) hang_up(n);
    length[n] = 0;
}

static void greet(void) {
    int client = accept(polled[0].fd, NULL, NULL);
    for (int n = 1; n <= CLIENTS && client >= 0; n++)
        if (polled[n].fd < 0) { polled[n].fd = client; return; }
    if (client >= 0) close(client);
}

int main(void) {
    const char *port = getenv("PORT"), *data = getenv("ENGINE_DATA_DIR"), *user = getenv("TINY_DROP_TO");
    signal(SIGTERM, end);
    signal(SIGPIPE, SIG_IGN);
    if (user != NULL) drop_to((uid_t)atoi(user), data ? data : "/data");
    make_answer(count_boot(data ? data : "/data"));
    polled[0].fd = listening(port ? atoi(port) : 8000);
    for (int n = 0; n <= CLIENTS; n++) {
        polled[n].events = POLLIN;
        if (n) polled[n].fd = -1;
    }
    for (;;) {
        if (poll(polled, CLIENTS + 1, -1) < 0) continue;
        for (int n = 1; n <= CLIENTS; n++)
            if (polled[n].fd >= 0 && polled[n].revents) serve(n);
        if (polled[0].revents) greet();
    }
}
