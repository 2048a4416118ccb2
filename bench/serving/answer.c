/* A server that answers every POST with the same 200 response, one thread, epoll: what the load generator can reach.
 *
 *     answer PORT [BYTES]
 *
 * It looks at nothing but the end of the head and Content-Length. BYTES is the size of the body that it answers (128).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 262144, MAX_FD = 8192 };

typedef struct {
    size_t have;
    long remaining; /* bytes of the body that are still to come; -1 before the head is whole */
    char buffer[BUFFER];
} Connection;

static Connection *connections[MAX_FD];

static long content_length(const char *head, const char *end) {
    for (const char *line = head; line && line < end; line = memchr(line, '\n', (size_t)(end - line))) {
        if (*line == '\n') line++;
        if (!strncasecmp(line, "content-length:", 15)) return atol(line + 15);
    }
    return 0;
}

int main(int count, char **given) {
    if (count < 2) return 2;
    size_t size = count > 2 ? (size_t)atol(given[2]) : 128;
    char *answer = malloc(size + 256);
    if (!answer) return 1;
    int head = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %zu\r\n\r\n", size);
    memset(answer + head, 'x', size);
    size += (size_t)head;

    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), poller = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(given[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 1024) < 0) {
        perror("answer");
        return 1;
    }
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int fresh = accept(listener, NULL, NULL);
                if (fresh < 0 || fresh >= MAX_FD) continue;
                setsockopt(fresh, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                connections[fresh] = malloc(sizeof *connections[fresh]);
                if (!connections[fresh]) return 1;
                connections[fresh]->have = 0;
                connections[fresh]->remaining = -1;
                event.data.fd = fresh;
                epoll_ctl(poller, EPOLL_CTL_ADD, fresh, &event);
                continue;
            }
            Connection *c = connections[fd];
            ssize_t got = recv(fd, c->buffer + c->have, BUFFER - c->have, 0);
            if (got <= 0) {
                close(fd);
                free(c);
                continue;
            }
            if (c->remaining < 0) {
                c->have += (size_t)got;
                char *end = memmem(c->buffer, c->have, "\r\n\r\n", 4);
                if (!end) continue;
                c->remaining = content_length(c->buffer, end);
                got = (ssize_t)(c->have - (size_t)(end + 4 - c->buffer));
                c->have = 0;
            }
            c->remaining -= got;
            if (c->remaining <= 0) {
                c->remaining = -1;
                if (send(fd, answer, size, MSG_NOSIGNAL) < 0) continue;
            }
        }
    }
}
