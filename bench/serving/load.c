/* The load generator of the serving benchmark: HTTP/1.1 over kept-alive connections, one thread, epoll, no library.
 *
 *     load PORT REQUESTS --connections N --seconds S [--warmup S] [--rate R] [--seed N] [--pids A,B,...] [--wait]
 *
 * REQUESTS holds whole requests, each with its length in front (4 bytes, little-endian); they are sent in turn as they
 * are. Closed loop: each connection sends its next request when its last was answered. Open loop (--rate): requests are
 * due at random times, R a second on average (Poisson), whatever the server does, and latency counts from when a
 * request was due, though all connections be busy. An answer counts as right with status 200 and as many bytes as its
 * Content-Length says. The generator polls without sleeping, for it has a core of its own (--wait: it sleeps), and
 * reports the share of time in which it had nothing to do, which tells whether it was what limited the rate.
 * --pids: processes whose processor time in the measured seconds is added up. One JSON object on standard output.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 65536, MAX_CONNECTIONS = 4096, MAX_DUE = 1 << 20, MAX_PIDS = 256, MAX_REQUESTS = 65536 };
enum { DRAIN_NS = 2000000000 }; /* how long answers that were due in the measured time are waited for afterwards */

typedef struct {
    const char *bytes;
    uint32_t length;
} Request;

typedef struct {
    int fd;
    int busy, writing;
    uint64_t since; /* when the request was sent, or was due in an open loop */
    const Request *request;
    size_t sent;
    size_t have;       /* bytes of an unfinished head in the buffer */
    int64_t remaining; /* bytes of the body that are still to come; -1 before the head is whole */
    int status, closing;
    char buffer[BUFFER];
} Connection;

static Request requests[MAX_REQUESTS];
static uint32_t request_count, next_request;
static Connection *connections;
static int connection_count = 1, poller, port;
static int idle_ring[MAX_CONNECTIONS], idle_first, idle_count;
static uint64_t *due_ring, due_first, due_count;
static double rate, seconds = 1, warmup;
static uint64_t begin_ns, end_ns; /* the measured time */
static uint32_t *latencies;       /* of right answers in the measured time, in units of 0.1 microseconds */
static size_t latency_count, latency_room;
static uint64_t answered, by_status[1000], closed_early, malformed, reconnects, bytes_in, latest_ns, unsent;
static pid_t pids[MAX_PIDS];
static int pid_count;
static uint64_t random_state = 88172645463325252ull;

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "cannot go on");
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* A gap between two arrivals: exponentially distributed. xorshift64* (Vigna, 2016). */
static uint64_t gap_ns(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    double uniform = (double)((random_state * 2685821657736338717ull) >> 11) * 0x1p-53;
    return (uint64_t)(-log1p(-uniform) / rate * 1e9);
}

static void read_requests(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    uint32_t length;
    while (request_count < MAX_REQUESTS && fread(&length, 4, 1, file) == 1) {
        char *bytes = malloc(length ? length : 1);
        if (!bytes || fread(bytes, 1, length, file) != length) fail("the file of requests ends early");
        requests[request_count++] = (Request){bytes, length};
    }
    fclose(file);
    if (!request_count) fail("the file of requests is empty");
}

/* Seconds of processor time that the processes have had, threads and all. */
static double processor_s(void) {
    double total = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64], text[1024];
        snprintf(path, sizeof path, "/proc/%d/stat", pids[i]);
        FILE *file = fopen(path, "r");
        if (!file) continue;
        size_t got = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[got] = 0;
        char *after = strrchr(text, ')'); /* the name before it may hold anything */
        unsigned long user, system;
        if (after && sscanf(after + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system) == 2)
            total += (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
    }
    return total;
}

static void watch(Connection *c, int operation, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0) fail("epoll_ctl");
}

static void open_connection(Connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) fail("socket");
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0) fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->busy = c->writing = c->closing = c->status = 0;
    c->have = 0;
    c->remaining = -1;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void release(Connection *c);

static void reopen(Connection *c) {
    close(c->fd);
    reconnects++;
    open_connection(c);
}

static void lost(Connection *c) {
    if (c->busy) closed_early++;
    reopen(c);
    release(c);
}

static void push_out(Connection *c) {
    while (c->sent < c->request->length) {
        ssize_t wrote = send(c->fd, c->request->bytes + c->sent, c->request->length - c->sent, MSG_NOSIGNAL);
        if (wrote < 0) {
            if (errno == EINTR) continue;
            if (errno != EAGAIN) break; /* closed by the server: the next read tells */
            if (!c->writing) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            c->writing = 1;
            return;
        }
        c->sent += (size_t)wrote;
    }
    if (c->writing) watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->writing = 0;
}

static void start(Connection *c, uint64_t since) {
    c->busy = 1;
    c->since = since;
    c->request = &requests[next_request];
    next_request = next_request + 1 == request_count ? 0 : next_request + 1;
    c->sent = 0;
    c->have = 0;
    c->remaining = -1;
    push_out(c);
}

/* The connection can take another request. */
static void release(Connection *c) {
    c->busy = 0;
    if (rate == 0) {
        start(c, now_ns());
    } else if (due_count) {
        start(c, due_ring[due_first]);
        due_first = (due_first + 1) % MAX_DUE;
        due_count--;
    } else {
        idle_ring[(idle_first + idle_count++) % connection_count] = (int)(c - connections);
    }
}

static void finish(Connection *c) {
    uint64_t now = now_ns();
    /* A closed loop counts what was answered in the measured time, an open one what was due in it. */
    uint64_t counted = rate == 0 ? now : c->since;
    if (counted >= begin_ns && counted < end_ns) {
        if (c->status == 200) {
            uint64_t units = (now - c->since) / 100;
            if (latency_count == latency_room) {
                latency_room = latency_room ? latency_room * 2 : 1 << 20;
                latencies = realloc(latencies, latency_room * sizeof *latencies);
                if (!latencies) fail("memory");
            }
            latencies[latency_count++] = units > UINT32_MAX ? UINT32_MAX : (uint32_t)units;
        }
        by_status[c->status]++;
        answered++;
    }
    if (c->closing) reopen(c);
    release(c);
}

/* Whether the head is whole; then status, remaining and closing are set. The bytes behind it are left to the caller. */
static size_t read_head(Connection *c) {
    char *end = memmem(c->buffer, c->have, "\r\n\r\n", 4);
    if (!end) return 0;
    int64_t length = -1;
    c->closing = 0;
    c->status = c->have > 12 && !memcmp(c->buffer, "HTTP/1.", 7) ? atoi(c->buffer + 9) : 0;
    if (c->status < 100 || c->status > 999) c->status = 0;
    for (char *line = memchr(c->buffer, '\n', c->have); line && line < end; line = memchr(line, '\n', (size_t)(end + 2 - line))) {
        line++;
        if (!strncasecmp(line, "content-length:", 15)) length = atoll(line + 15);
        if (!strncasecmp(line, "connection: close", 17)) c->closing = 1;
    }
    if (!c->status || length < 0) {
        malformed++;
        c->status = 0;
        c->closing = 1;
        length = 0;
    }
    c->remaining = length;
    return (size_t)(end + 4 - c->buffer);
}

static void take_in(Connection *c) {
    for (;;) {
        ssize_t got = recv(c->fd, c->buffer + c->have, BUFFER - c->have, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) {
            lost(c);
            return;
        }
        bytes_in += (uint64_t)got;
        if (!c->busy) { /* nothing was asked */
            malformed++;
            lost(c);
            return;
        }
        size_t body = (size_t)got;
        if (c->remaining < 0) {
            c->have += (size_t)got;
            size_t head = read_head(c);
            if (!head && c->have == BUFFER) {
                malformed++;
                lost(c);
                return;
            }
            if (!head) return;
            body = c->have - head;
            c->have = 0;
        }
        if ((int64_t)body > c->remaining) {
            if (c->status) malformed++;
            c->status = 0;
            c->closing = 1;
            body = (size_t)c->remaining;
        }
        c->remaining -= (int64_t)body;
        if (c->remaining == 0) {
            finish(c);
            return;
        }
        if ((size_t)got < BUFFER / 2) return; /* the socket is empty, most likely; if not, the poll tells */
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static double quantile_ms(double share) {
    if (!latency_count) return 0;
    size_t at = (size_t)ceil(share * (double)latency_count);
    return latencies[at ? at - 1 : 0] / 1e4;
}

static void read_arguments(int count, char **given) {
    if (count < 3) {
        fprintf(stderr, "usage: load PORT REQUESTS [--connections N] [--seconds S] [--warmup S] [--rate R] [--seed N] "
                        "[--pids A,B] [--wait]\n");
        exit(2);
    }
    port = atoi(given[1]);
    read_requests(given[2]);
}

int main(int count, char **given) {
    int wait_ms = 0;
    read_arguments(count, given);
    for (int i = 3; i < count; i++) {
        const char *value = i + 1 < count ? given[i + 1] : "";
        if (!strcmp(given[i], "--wait")) {
            wait_ms = 1;
            continue;
        }
        if (!strcmp(given[i], "--connections")) connection_count = atoi(value);
        else if (!strcmp(given[i], "--seconds")) seconds = atof(value);
        else if (!strcmp(given[i], "--warmup")) warmup = atof(value);
        else if (!strcmp(given[i], "--rate")) rate = atof(value);
        else if (!strcmp(given[i], "--seed")) random_state ^= (uint64_t)atoll(value) * 0x9E3779B97F4A7C15ull;
        else if (!strcmp(given[i], "--pids")) {
            for (char *rest = given[i + 1]; rest && *rest && pid_count < MAX_PIDS; rest = strchr(rest, ',')) {
                if (*rest == ',') rest++;
                pids[pid_count++] = (pid_t)atoi(rest);
            }
        } else {
            fprintf(stderr, "load: no such option: %s\n", given[i]);
            return 2;
        }
        i++;
    }
    if (connection_count < 1 || connection_count > MAX_CONNECTIONS) fail("expected 1 to 4096 connections");
    connections = calloc((size_t)connection_count, sizeof *connections);
    due_ring = malloc(MAX_DUE * sizeof *due_ring);
    poller = epoll_create1(0);
    if (!connections || !due_ring || poller < 0) fail("memory");
    for (int i = 0; i < connection_count; i++) open_connection(&connections[i]);

    uint64_t started = now_ns(), previous = started, idle_ns = 0;
    begin_ns = started + (uint64_t)(warmup * 1e9);
    end_ns = begin_ns + (uint64_t)(seconds * 1e9);
    uint64_t next_due = rate == 0 ? UINT64_MAX : started + gap_ns();
    double before_s = -1, after_s = -1;
    for (int i = 0; i < connection_count; i++) release(&connections[i]);

    struct epoll_event events[512];
    for (;;) {
        int ready = epoll_wait(poller, events, 512, wait_ms && next_due == UINT64_MAX ? wait_ms : 0);
        uint64_t now = now_ns();
        if (!ready && now >= begin_ns && now < end_ns) idle_ns += now - previous;
        previous = now;
        if (before_s < 0 && now >= begin_ns) before_s = processor_s();
        if (after_s < 0 && now >= end_ns) after_s = processor_s();
        if (now >= end_ns) {
            if (rate == 0) break;
            next_due = UINT64_MAX;
            int busy = connection_count - idle_count;
            if ((!busy && !due_count) || now >= end_ns + DRAIN_NS) break;
        }
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            if (c->writing && (events[i].events & EPOLLOUT)) push_out(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) take_in(c);
        }
        while (next_due <= now && next_due < end_ns) {
            if (idle_count) {
                int at = idle_ring[idle_first];
                idle_first = (idle_first + 1) % connection_count;
                idle_count--;
                if (next_due >= begin_ns && now - next_due > latest_ns) latest_ns = now - next_due;
                start(&connections[at], next_due);
            } else if (due_count < MAX_DUE) {
                due_ring[(due_first + due_count++) % MAX_DUE] = next_due;
            } else {
                unsent++;
            }
            next_due += gap_ns();
        }
        if (next_due >= end_ns) next_due = UINT64_MAX;
    }

    uint64_t pending = unsent + due_count, oldest_ns = 0, finished = now_ns();
    for (int i = 0; i < connection_count; i++)
        if (connections[i].busy) {
            pending++;
            if (finished - connections[i].since > oldest_ns) oldest_ns = finished - connections[i].since;
        }
    struct rusage own;
    getrusage(RUSAGE_SELF, &own);
    double mean = 0;
    for (size_t i = 0; i < latency_count; i++) mean += latencies[i] / 1e4;
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"requests\": %llu, \"right\": %zu, \"seconds\": %.6f, \"req_s\": %.3f, ", (unsigned long long)answered,
           latency_count, seconds, (double)latency_count / seconds);
    printf("\"errors\": {");
    int first = 1;
    for (int status = 0; status < 1000; status++)
        if (by_status[status] && status != 200 && status)
            printf("%s\"%d\": %llu", first ? first = 0, "" : ", ", status, (unsigned long long)by_status[status]);
    if (malformed) printf("%s\"malformed\": %llu", first ? first = 0, "" : ", ", (unsigned long long)malformed);
    if (closed_early) printf("%s\"closed\": %llu", first ? first = 0, "" : ", ", (unsigned long long)closed_early);
    if (rate > 0 && pending) printf("%s\"unanswered\": %llu", first ? "" : ", ", (unsigned long long)pending);
    printf("}, \"mean_ms\": %.4f, \"p50_ms\": %.4f, \"p90_ms\": %.4f, \"p99_ms\": %.4f, \"p999_ms\": %.4f, "
           "\"max_ms\": %.4f, ",
           latency_count ? mean / (double)latency_count : 0, quantile_ms(0.5), quantile_ms(0.9), quantile_ms(0.99),
           quantile_ms(0.999), quantile_ms(1));
    printf("\"oldest_pending_ms\": %.3f, \"late_max_ms\": %.4f, \"reconnects\": %llu, \"bytes_in\": %llu, "
           "\"idle_share\": %.4f, \"cpu_s\": %.4f}\n",
           (double)oldest_ns / 1e6, (double)latest_ns / 1e6, (unsigned long long)reconnects,
           (unsigned long long)bytes_in, (double)idle_ns / (seconds * 1e9), after_s - before_s);
    return 0;
}
