/* The provider behind every candidate: answers as OpenAI and Anthropic do, at once or as a stream, as fast as it can.
 *
 * One thread, one epoll, keep-alive HTTP/1.1 on 127.0.0.1. A plain answer is one ready-made write. A stream is a
 * content chunk every --interval-us; each carries `T#<CLOCK_MONOTONIC ns>`, taken just before it is written, so that
 * the client sees how long a chunk travelled. `GET /stats` says what has been asked of it.
 *
 * usage: mock_provider --port P [--chunks 50] [--interval-us 4000] [--delay-us 0]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 16384,           /* file descriptors; one above is closed at once */
    REQUEST_BYTES_MAX = 32 << 20,      /* a larger request closes its connection */
    PENDING_BYTES_MAX = 64 << 20,      /* unsent answer of a client that does not read; beyond it: closed */
    READ_BYTES = 64 << 10,
};

typedef enum { IDLE, DELAYED, STREAMING } State;
typedef enum { OPENAI, ANTHROPIC } Api;

typedef struct {
    int fd;
    State state;
    Api api;
    bool close_after;
    char *in;                          /* the request so far */
    size_t in_len, in_cap;
    char *out;                         /* what the socket did not take yet */
    size_t out_len, out_cap;
    int chunks_sent;
    uint64_t due_ns;                   /* next chunk, or the delayed answer */
    int heap_at;                       /* place in the heap of what is due, -1: nothing is */
} Conn;

static int chunks = 50;
static uint64_t interval_ns = 4000000, delay_ns = 0;
static int epoll_fd, timer_fd;
static Conn *conns[CONNECTIONS_MAX];
static Conn *heap[CONNECTIONS_MAX];
static int heap_len;
static uint64_t armed_ns;
static uint64_t n_plain, n_streams, n_streams_whole, n_streams_left, n_connections, last_left_ns;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- what is due next: a binary heap, and one timer armed to its top ---- */

static void heap_put(int at, Conn *c) {
    heap[at] = c;
    c->heap_at = at;
}

static void heap_up(int at) {
    Conn *c = heap[at];
    for (; at > 0 && heap[(at - 1) / 2]->due_ns > c->due_ns; at = (at - 1) / 2) heap_put(at, heap[(at - 1) / 2]);
    heap_put(at, c);
}

static void heap_down(int at) {
    Conn *c = heap[at];
    for (;;) {
        int child = 2 * at + 1;
        if (child >= heap_len) break;
        if (child + 1 < heap_len && heap[child + 1]->due_ns < heap[child]->due_ns) child++;
        if (heap[child]->due_ns >= c->due_ns) break;
        heap_put(at, heap[child]);
        at = child;
    }
    heap_put(at, c);
}

static void heap_remove(Conn *c) {
    int at = c->heap_at;
    if (at < 0) return;
    c->heap_at = -1;
    Conn *last = heap[--heap_len];
    if (last == c) return;
    heap_put(at, last);
    heap_up(at);
    heap_down(last->heap_at);
}

static void schedule(Conn *c, uint64_t due_ns) {
    c->due_ns = due_ns;
    if (c->heap_at < 0) {
        heap_put(heap_len, c);
        heap_up(heap_len++);
    } else {
        heap_up(c->heap_at);
        heap_down(c->heap_at);
    }
}

static void arm_timer(void) {
    uint64_t due = heap_len ? heap[0]->due_ns : 0;
    if (due == armed_ns) return;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
    armed_ns = due;
}

/* ---- connections ---- */

static void drop(Conn *c) {
    if (c->state == STREAMING) {
        n_streams_left++;
        last_left_ns = now_ns();
    }
    heap_remove(c);
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static void watch(Conn *c, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static bool keep_unsent(Conn *c, const char *data, size_t len) {
    if (c->out_len + len > PENDING_BYTES_MAX) return false;
    if (c->out_len + len > c->out_cap) {
        c->out_cap = (c->out_len + len) * 2;
        c->out = realloc(c->out, c->out_cap);
        if (!c->out) abort();
    }
    if (!c->out_len) watch(c, EPOLLIN | EPOLLOUT);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
    return true;
}

/* False when the connection is beyond use; the caller drops it. */
static bool put(Conn *c, const char *data, size_t len) {
    if (c->out_len) return keep_unsent(c, data, len);
    ssize_t sent = send(c->fd, data, len, MSG_NOSIGNAL);
    if (sent == (ssize_t)len) return true;
    if (sent < 0 && errno != EAGAIN && errno != EINTR) return false;
    size_t took = sent > 0 ? (size_t)sent : 0;
    return keep_unsent(c, data + took, len - took);
}

static bool flush(Conn *c) {
    ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR;
    c->out_len -= (size_t)sent;
    memmove(c->out, c->out + sent, c->out_len);
    if (!c->out_len) watch(c, EPOLLIN);
    return true;
}

/* ---- answers ---- */

#define COMMON_HEADERS \
    "Date: Sat, 21 Nov 2026 07:00:00 GMT\r\n" \
    "Connection: keep-alive\r\n" \
    "Server: cloudflare\r\n" \
    "CF-RAY: 9a1f3c5b7d2e4f60-FRA\r\n" \
    "cf-cache-status: DYNAMIC\r\n" \
    "strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n" \
    "x-content-type-options: nosniff\r\n"

#define OPENAI_HEADERS \
    COMMON_HEADERS \
    "openai-organization: org-heliograph-load\r\n" \
    "openai-processing-ms: 412\r\n" \
    "openai-version: 2020-10-01\r\n" \
    "x-ratelimit-limit-requests: 10000\r\n" \
    "x-ratelimit-limit-tokens: 2000000\r\n" \
    "x-ratelimit-remaining-requests: 9999\r\n" \
    "x-ratelimit-remaining-tokens: 1999652\r\n" \
    "x-request-id: req_5f0e9c1b7a3d4e2f8c6b5a4938271605\r\n"

#define ANTHROPIC_HEADERS \
    COMMON_HEADERS \
    "anthropic-organization-id: 1b7a3d4e-2f8c-46b5-a493-82716055f0e9\r\n" \
    "anthropic-ratelimit-requests-limit: 4000\r\n" \
    "anthropic-ratelimit-requests-remaining: 3999\r\n" \
    "anthropic-ratelimit-tokens-limit: 480000\r\n" \
    "anthropic-ratelimit-tokens-remaining: 479652\r\n" \
    "request-id: req_011CVLoadTestsHeliograph\r\n"

#define ANSWER_TEXT \
    "A heliograph sends messages with sunlight: a mirror is turned or covered for a moment, and the flashes spell out " \
    "Morse code. On a clear day they were read over fifty kilometres and more, without wires, and with no power but the " \
    "sun. Surveyors and armies used them from the 1870s until well into the twentieth century, and hikers still carry " \
    "a signal mirror for the same reason: it weighs nothing and needs no battery."

static const char openai_body[] =
    "{\"id\":\"chatcmpl-CeLoadTests0000000000000000\",\"object\":\"chat.completion\",\"created\":1795244400,"
    "\"model\":\"gpt-4o-mini-2024-07-18\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""
    ANSWER_TEXT
    "\",\"refusal\":null,\"annotations\":[]},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":212,\"completion_tokens\":92,\"total_tokens\":304,"
    "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0,\"accepted_prediction_tokens\":0,"
    "\"rejected_prediction_tokens\":0}},\"service_tier\":\"default\",\"system_fingerprint\":\"fp_560af6e559\"}";

static const char anthropic_body[] =
    "{\"id\":\"msg_01LoadTests000000000000\",\"type\":\"message\",\"role\":\"assistant\","
    "\"model\":\"claude-sonnet-4-5-20250929\",\"content\":[{\"type\":\"text\",\"text\":\""
    ANSWER_TEXT
    "\"}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,"
    "\"usage\":{\"input_tokens\":212,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":0,"
    "\"output_tokens\":92,\"service_tier\":\"standard\"}}";

static char plain[2][4096];
static int plain_len[2];

static const char stream_head_openai[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n" OPENAI_HEADERS "\r\n";
static const char stream_head_anthropic[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n" ANTHROPIC_HEADERS "\r\n";

#define OPENAI_CHUNK_START \
    "data: {\"id\":\"chatcmpl-CeLoadTests0000000000000000\",\"object\":\"chat.completion.chunk\",\"created\":1795244400," \
    "\"model\":\"gpt-4o-mini-2024-07-18\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_560af6e559\","

static const char openai_first[] =
    OPENAI_CHUNK_START "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null},"
    "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null,\"obfuscation\":\"Zq8\"}\n\n";
static const char openai_last[] =
    OPENAI_CHUNK_START "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}],"
    "\"usage\":null,\"obfuscation\":\"k1\"}\n\n"
    OPENAI_CHUNK_START "\"choices\":[],\"usage\":{\"prompt_tokens\":212,\"completion_tokens\":92,\"total_tokens\":304,"
    "\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0,"
    "\"audio_tokens\":0,\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}},\"obfuscation\":\"\"}\n\n"
    "data: [DONE]\n\n";

static const char anthropic_first[] =
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_01LoadTests000000000000\","
    "\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude-sonnet-4-5-20250929\",\"content\":[],"
    "\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":212,\"cache_creation_input_tokens\":0,"
    "\"cache_read_input_tokens\":0,\"output_tokens\":1,\"service_tier\":\"standard\"}}}\n\n"
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,"
    "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n";
static const char anthropic_last[] =
    "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n"
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\","
    "\"stop_sequence\":null},\"usage\":{\"output_tokens\":92}}\n\n"
    "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

static void prepare_answers(void) {
    plain_len[OPENAI] = snprintf(plain[OPENAI], sizeof plain[OPENAI],
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n" OPENAI_HEADERS "\r\n%s",
        sizeof openai_body - 1, openai_body);
    plain_len[ANTHROPIC] = snprintf(plain[ANTHROPIC], sizeof plain[ANTHROPIC],
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n" ANTHROPIC_HEADERS "\r\n%s",
        sizeof anthropic_body - 1, anthropic_body);
}

static int content_event(char *to, size_t size, Api api) {
    unsigned long long now = now_ns();
    if (api == ANTHROPIC)
        return snprintf(to, size,
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,"
            "\"delta\":{\"type\":\"text_delta\",\"text\":\"T#%llu flashes of light\"}}\n\n", now);
    return snprintf(to, size,
        OPENAI_CHUNK_START "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"T#%llu flashes of light\"},"
        "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null,\"obfuscation\":\"p3Xw7\"}\n\n", now);
}

/* One HTTP chunk with one event; the first also carries the head, the last the end of the stream. */
static bool send_next_chunk(Conn *c) {
    char events[4096], wire[8192];
    int n = 0, at = 0;
    bool first = c->chunks_sent == 0, last = c->chunks_sent == chunks;
    if (first) n += snprintf(events, sizeof events, "%s", c->api == ANTHROPIC ? anthropic_first : openai_first);
    if (last) n += snprintf(events + n, sizeof events - (size_t)n, "%s", c->api == ANTHROPIC ? anthropic_last : openai_last);
    else n += content_event(events + n, sizeof events - (size_t)n, c->api);
    if (first) at += snprintf(wire, sizeof wire, "%s", c->api == ANTHROPIC ? stream_head_anthropic : stream_head_openai);
    at += snprintf(wire + at, sizeof wire - (size_t)at, "%x\r\n", (unsigned)n);
    memcpy(wire + at, events, (size_t)n);
    at += n;
    at += snprintf(wire + at, sizeof wire - (size_t)at, last ? "\r\n0\r\n\r\n" : "\r\n");
    c->chunks_sent++;
    if (!put(c, wire, (size_t)at)) return false;
    if (!last) {
        schedule(c, first ? now_ns() + interval_ns : c->due_ns + interval_ns);
        return true;
    }
    heap_remove(c);
    c->state = IDLE;
    n_streams_whole++;
    return !c->close_after;
}

static bool answer_stats(Conn *c) {
    char body[512], wire[1024];
    int n = snprintf(body, sizeof body,
        "{\"plain\":%llu,\"streams\":%llu,\"streams_whole\":%llu,\"streams_left\":%llu,\"last_left_ns\":%llu,"
        "\"connections\":%llu}",
        (unsigned long long)n_plain, (unsigned long long)n_streams, (unsigned long long)n_streams_whole,
        (unsigned long long)n_streams_left, (unsigned long long)last_left_ns, (unsigned long long)n_connections);
    int len = snprintf(wire, sizeof wire,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", n, body);
    return put(c, wire, (size_t)len);
}

/* ---- requests ---- */

/* The value of a header, or NULL; `head` is NUL-terminated at the end of the head. */
static const char *header(const char *head, const char *name) {
    size_t len = strlen(name);
    for (const char *line = strchr(head, '\n'); line; line = strchr(line, '\n')) {
        line++;
        if (strncasecmp(line, name, len) == 0 && line[len] == ':') return line + len + 1 + strspn(line + len + 1, " ");
    }
    return NULL;
}

/* Length of a whole chunked body with its end, 0 if it is not whole yet, -1 if it is none. */
static ssize_t chunked_len(const char *body, size_t len) {
    size_t at = 0;
    for (;;) {
        const char *line_end = memmem(body + at, len - at, "\r\n", 2);
        if (!line_end) return 0;
        char *end;
        unsigned long size = strtoul(body + at, &end, 16);
        if (end == body + at || size > REQUEST_BYTES_MAX) return -1;
        at = (size_t)(line_end - body) + 2;
        if (size == 0) return at + 2 <= len ? (ssize_t)at + 2 : 0;
        if (at + size + 2 > len) return 0;
        at += size + 2;
    }
}

static bool wants_stream(const char *body, size_t len) {
    const char *end = body + len, *at = memmem(body, len, "\"stream\"", 8);
    if (!at) return false;
    for (at += 8; at < end && (*at == ' ' || *at == ':'); at++) {}
    return at + 4 <= end && memcmp(at, "true", 4) == 0;
}

static bool answer(Conn *c, const char *head, const char *body, size_t body_len) {
    if (strncmp(head, "GET /stats ", 11) == 0) return answer_stats(c);
    const char *line_end = strchr(head, '\r');
    c->api = memmem(head, (size_t)(line_end - head), "/messages", 9) ? ANTHROPIC : OPENAI;
    const char *connection = header(head, "connection");
    c->close_after = connection && strncasecmp(connection, "close", 5) == 0;
    if (wants_stream(body, body_len)) {
        n_streams++;
        c->state = STREAMING;
        c->chunks_sent = 0;
        return send_next_chunk(c);
    }
    n_plain++;
    if (delay_ns) {
        c->state = DELAYED;
        schedule(c, now_ns() + delay_ns);
        return true;
    }
    return put(c, plain[c->api], (size_t)plain_len[c->api]) && !c->close_after;
}

/* Answer every whole request in the buffer, one at a time; what follows an unfinished answer waits. */
static bool take_requests(Conn *c) {
    while (c->state == IDLE && c->in_len) {
        char *head_end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!head_end) return c->in_len < 64 << 10;
        head_end[2] = 0; /* the head is a string now; put back below if the request is not whole */
        size_t head_len = (size_t)(head_end - c->in) + 4, total;
        const char *length = header(c->in, "content-length"), *encoding = header(c->in, "transfer-encoding");
        if (encoding && strncasecmp(encoding, "chunked", 7) == 0) {
            ssize_t n = chunked_len(c->in + head_len, c->in_len - head_len);
            if (n < 0) return false;
            total = n ? head_len + (size_t)n : SIZE_MAX;
        } else {
            unsigned long n = length ? strtoul(length, NULL, 10) : 0;
            if (n > REQUEST_BYTES_MAX) return false;
            total = head_len + n;
        }
        if (total > c->in_len) {
            head_end[2] = '\r';
            return true;
        }
        if (!answer(c, c->in, c->in + head_len, total - head_len)) return false;
        c->in_len -= total;
        memmove(c->in, c->in + total, c->in_len);
    }
    return true;
}

static bool read_some(Conn *c) {
    if (c->in_cap - c->in_len < READ_BYTES / 4) {
        if (c->in_cap > REQUEST_BYTES_MAX) return false;
        c->in_cap = c->in_cap ? c->in_cap * 2 : READ_BYTES;
        c->in = realloc(c->in, c->in_cap + 1);
        if (!c->in) abort();
    }
    ssize_t got = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
    if (got == 0) return false;
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    c->in_len += (size_t)got;
    return take_requests(c);
}

static void accept_all(int listen_fd) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Conn *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        c->heap_at = -1;
        conns[fd] = c;
        n_connections++;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void run_due(void) {
    uint64_t expirations;
    if (read(timer_fd, &expirations, sizeof expirations) < 0) { /* another pass has taken it */ }
    armed_ns = 0;
    /* At most one chunk per connection and pass: whoever is late catches up without starving the sockets. */
    for (int budget = heap_len; budget > 0 && heap_len && heap[0]->due_ns <= now_ns(); budget--) {
        Conn *c = heap[0];
        bool alive;
        if (c->state == DELAYED) {
            heap_remove(c);
            c->state = IDLE;
            alive = put(c, plain[c->api], (size_t)plain_len[c->api]) && !c->close_after;
        } else {
            alive = send_next_chunk(c);
        }
        if (alive && c->state == IDLE) alive = take_requests(c);
        if (!alive) drop(c);
    }
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 4096) < 0) {
        fprintf(stderr, "mock_provider: 127.0.0.1:%d: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    int port = 0;
    static const struct option options[] = {{"port", 1, NULL, 'p'}, {"chunks", 1, NULL, 'n'},
        {"interval-us", 1, NULL, 'i'}, {"delay-us", 1, NULL, 'd'}, {NULL, 0, NULL, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'p') port = atoi(optarg);
        else if (o == 'n') chunks = atoi(optarg);
        else if (o == 'i') interval_ns = strtoull(optarg, NULL, 10) * 1000;
        else if (o == 'd') delay_ns = strtoull(optarg, NULL, 10) * 1000;
        else return 2;
    }
    if (port < 1 || port > 65535 || chunks < 1 || !interval_ns) {
        fprintf(stderr, "usage: mock_provider --port P [--chunks 50] [--interval-us 4000] [--delay-us 0]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    prepare_answers();
    int listen_fd = listen_on(port);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listen_fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &e);
    e.data.fd = timer_fd;
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listen_fd) accept_all(listen_fd);
            else if (fd == timer_fd) run_due();
            else if (conns[fd]) {
                Conn *c = conns[fd];
                bool alive = true;
                if (events[i].events & EPOLLOUT) alive = flush(c);
                if (alive && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) alive = read_some(c);
                if (!alive) drop(c);
            }
        }
        arm_timer();
    }
}
