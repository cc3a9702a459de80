/* Asks at a fixed rate and writes how long each answer took from when its question was due.
 *
 * usage: open_load ADDRESS PORT RATE WARM_UP_S SECONDS CONNECTIONS < request > latencies
 *
 * The latencies are doubles, in milliseconds, in the order of the questions, without those of
 * the warm-up; a question that waits for a connection is late from when it was due. One that is
 * not answered PATIENCE_S after the last was due has taken until then. In C, because a client
 * in Python needs more of the processor than the server that it measures.
 */

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024, BYTES_MAX = 65536, PATIENCE_S = 5 };

struct connection {
    int fd;
    long number; /* of the question that it is to answer */
    size_t got;
    char bytes[BYTES_MAX];
};

static struct connection connections[CONNECTIONS_MAX];
static struct connection *unused[CONNECTIONS_MAX]; /* a ring: none stays silent for long */
static int unused_first, unused_count;
static char request[BYTES_MAX];
static size_t request_bytes;
static double began_s, every_s;
static long asked, answered;
static double *latencies_ms; /* of each question, 0 until it is answered */

static void put_back(struct connection *one)
{
    unused[(unused_first + unused_count++) % CONNECTIONS_MAX] = one;
}

static struct connection *take_unused(void)
{
    struct connection *one = unused[unused_first];
    unused_first = (unused_first + 1) % CONNECTIONS_MAX;
    unused_count--;
    return one;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double due_s(long number)
{
    return began_s + number * every_s;
}

static double late_ms(long number)
{
    return (now_s() - due_s(number)) * 1000;
}

static void ask(struct connection *one)
{
    one->number = asked++;
    one->got = 0;
    if (send(one->fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes)
        err(1, "a question could not be sent");
}

/* Return the bytes of the whole answer, 0 while its head is not complete. */
static size_t answer_bytes(struct connection *one)
{
    one->bytes[one->got] = '\0';
    char *end = strstr(one->bytes, "\r\n\r\n");
    if (end == NULL)
        return 0;
    if (strncmp(one->bytes, "HTTP/1.1 200 ", 13) != 0)
        errx(1, "refused: %.200s", one->bytes);
    char *length = strcasestr(one->bytes, "\r\ncontent-length: ");
    if (length == NULL || length > end)
        errx(1, "an answer without a length: %.200s", one->bytes);
    return end + 4 - one->bytes + strtoul(length + 18, NULL, 10);
}

static void hear(struct connection *one)
{
    ssize_t count = recv(one->fd, one->bytes + one->got, BYTES_MAX - 1 - one->got, 0);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0)
        errx(1, "a connection broke");
    one->got += count;
    size_t whole = answer_bytes(one);
    if (whole == 0 || one->got < whole)
        return;
    answered++;
    latencies_ms[one->number] = late_ms(one->number);
    put_back(one);
}

static void open_all(const char *address, int port, int count, int epoll)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
        errx(1, "not an IPv4 address: %s", address);
    for (int index = 0; index < count; index++) {
        struct connection *one = &connections[index];
        int yes = 1;
        one->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (one->fd < 0 || connect(one->fd, (struct sockaddr *)&to, sizeof to) != 0)
            err(1, "no connection to port %d", port);
        setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        fcntl(one->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = one};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, one->fd, &wanted) != 0)
            err(1, "epoll");
        put_back(one);
    }
}

/* Sleep until an answer comes or the next question is due: to the nanosecond, not to epoll's ms. */
static int heard(int epoll, struct epoll_event *events, double until_s)
{
    double left_s = until_s - now_s();
    if (left_s < 0)
        left_s = 0;
    struct timespec left = {.tv_sec = (time_t)left_s};
    left.tv_nsec = (long)((left_s - left.tv_sec) * 1e9);
    int count = epoll_pwait2(epoll, events, CONNECTIONS_MAX, &left, NULL);
    if (count < 0 && errno != EINTR)
        err(1, "epoll");
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 7)
        errx(2, "usage: open_load ADDRESS PORT RATE WARM_UP_S SECONDS CONNECTIONS");
    double rate = atof(argv[3]), warm_up_s = atof(argv[4]), seconds = atof(argv[5]);
    int count = atoi(argv[6]);
    if (rate <= 0 || count < 1 || count > CONNECTIONS_MAX)
        errx(2, "rate and connections must be positive, connections at most %d", CONNECTIONS_MAX);
    static struct epoll_event events[CONNECTIONS_MAX];
    int epoll = epoll_create1(0);
    long all = (long)(rate * (warm_up_s + seconds));
    long warm_up = (long)(rate * warm_up_s);
    every_s = 1 / rate;
    latencies_ms = calloc(all, sizeof *latencies_ms);
    if (latencies_ms == NULL)
        err(1, "no memory for %ld latencies", all);
    request_bytes = fread(request, 1, sizeof request, stdin);
    prctl(PR_SET_TIMERSLACK, 1);
    open_all(argv[1], atoi(argv[2]), count, epoll);
    began_s = now_s();
    double until_s = due_s(all) + PATIENCE_S;
    while (answered < all && now_s() < until_s) {
        while (asked < all && unused_count > 0 && due_s(asked) <= now_s())
            ask(take_unused());
        double next_s = asked < all && unused_count > 0 ? due_s(asked) : until_s;
        int some = heard(epoll, events, next_s);
        for (int index = 0; index < some; index++)
            hear(events[index].data.ptr);
    }
    for (long number = warm_up; number < all; number++) {
        if (latencies_ms[number] == 0)
            latencies_ms[number] = late_ms(number);
        if (fwrite(&latencies_ms[number], sizeof *latencies_ms, 1, stdout) != 1)
            err(1, "a latency could not be written");
    }
    return 0;
}
