/* The client: closed loop (so many calls at a time) or open loop (so many calls a second), keep-alive HTTP/1.1.
 *
 * One thread, one epoll. Prints {"window":"start"} and {"window":"end"} around the measured seconds, so that a parent
 * can take the server's CPU time over the same window, then one line of JSON with the figures. After the window no call
 * begins; those under way may finish within --drain. In the open loop a call's time begins when it was due, not when a
 * connection was free for it, so waiting counts. With --spread the connections open one by one over so many seconds:
 * callers of a closed loop that begin together go on arriving together. SIGINT and SIGTERM end the window early, the
 * figures still come; a second one does not wait for the calls under way.
 *
 * usage: load --port P --path /v1/… [--headers FILE] [--body FILE] [--connections 1] [--rate 0] [--warmup 0]
 *             [--spread 0] [--seconds 1] [--drain 2] [--timeout 30] [--ids FILE] [--ids-with-time]
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
    CONNECTIONS_MAX = 4096,
    HEAD_BYTES_MAX = 32 << 10,
    SAMPLES_MAX = 8 << 20,          /* latencies kept of each kind; later ones are counted, not kept */
    BACKLOG_MAX = 1 << 16,          /* open loop: calls due that wait for a connection */
    READ_BYTES = 256 << 10,
    TAIL_BYTES = 32,
};
static const uint64_t RECONNECT_NS = 20000000;

typedef enum { DOWN, CONNECTING, READY, SENDING, HEAD, BODY } State;
typedef enum { BY_LENGTH, BY_CHUNKS, BY_CLOSE } Framing;
typedef enum { SIZE_LINE, DATA, DATA_END, TRAILER } ChunkState;

typedef struct {
    int fd;
    State state;
    bool has_call, server_closes, is_stream;
    uint64_t began_ns, first_ns, retry_ns;
    size_t sent;
    char head[HEAD_BYTES_MAX + 1];
    size_t head_len;
    int status;
    Framing framing;
    uint64_t left;                  /* bytes of the body, or of its current HTTP chunk */
    ChunkState chunk_state;
    int line_len;                   /* characters of the current size or trailer line */
    int marker;                     /* how much of `T#<digits>` has been seen: 0, 1, 2 */
    uint64_t marker_ns;
    char tail[TAIL_BYTES];          /* the body's last bytes: does a stream say that it is over? */
    char id[80];                    /* helicone-id of the answer */
} Conn;

typedef struct {
    uint64_t *at;
    size_t len, cap, seen;
} Samples;

static int port, n_conns = 1;
static double rate, warmup_s, spread_s, seconds = 1, drain_s = 2, timeout_s = 30;
static char *request;
static size_t request_len;
static struct sockaddr_in address;
static Conn *conns;
static int epoll_fd, timer_fd;
static uint64_t start_ns, end_ns, now;      /* the window; `now` is read once per pass */
static bool measuring, ending;
static volatile sig_atomic_t stopped;
static FILE *ids;
static bool ids_with_time;
static Samples latency, first_byte, chunk_latency;
static uint64_t n_sent, n_ok, n_ok_window, n_non_2xx, n_non_2xx_window, n_refused, n_reset, n_timeout, n_unsent, n_cut;
static uint64_t n_reconnects, n_bytes_window, statuses[600];
static uint64_t backlog[BACKLOG_MAX];       /* when each waiting call was due: a ring */
static uint64_t backlog_in, backlog_out, n_due;
static char buffer[READ_BYTES];

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void add(Samples *s, uint64_t value) {
    s->seen++;
    if (s->len == SAMPLES_MAX) return;
    if (s->len == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 1 << 16;
        s->at = realloc(s->at, s->cap * sizeof *s->at);
        if (!s->at) abort();
    }
    s->at[s->len++] = value;
}

/* ---- a connection's life ---- */

static void watch(Conn *c, int op, uint32_t events) {
    struct epoll_event e = {.events = events, .data.u32 = (uint32_t)(c - conns)};
    epoll_ctl(epoll_fd, op, c->fd, &e);
}

static void connect_again(Conn *c);

static void go_down(Conn *c, uint64_t *counter) {
    if (c->has_call && counter) (*counter)++;
    c->has_call = false;
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    c->state = DOWN;
    c->retry_ns = now + RECONNECT_NS;
}

static void send_rest(Conn *c) {
    ssize_t n = send(c->fd, request + c->sent, request_len - c->sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        go_down(c, &n_reset);
        return;
    }
    if (n > 0) c->sent += (size_t)n;
    if (c->sent == request_len) {
        if (c->state == SENDING) watch(c, EPOLL_CTL_MOD, EPOLLIN);
        c->state = HEAD;
    } else if (c->state != SENDING) {
        c->state = SENDING;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
}

static void begin_call(Conn *c, uint64_t due_ns) {
    c->has_call = true;
    c->began_ns = due_ns;
    c->first_ns = 0;
    c->sent = c->head_len = 0;
    c->marker = 0;
    n_sent++;
    send_rest(c);
}

static void ready(Conn *c) {
    c->state = READY;
    if (ending) return;
    if (rate == 0) {
        begin_call(c, clock_ns(CLOCK_MONOTONIC));
    } else if (backlog_out != backlog_in) {
        begin_call(c, backlog[backlog_out++ % BACKLOG_MAX]);
    }
}

static void connected(Conn *c) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        n_refused++;
        go_down(c, NULL);
        return;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    ready(c);
}

static void connect_again(Conn *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) {
        perror("load: socket");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    n_reconnects++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) {
        n_refused++;
        go_down(c, NULL);
        return;
    }
    c->state = CONNECTING;
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT);
}

/* ---- an answer ---- */

static void call_done(Conn *c) {
    bool ok = c->status >= 200 && c->status < 300;
    if (c->is_stream && ok && !memmem(c->tail, TAIL_BYTES, "[DONE]", 6) && !memmem(c->tail, TAIL_BYTES, "message_stop", 12)) {
        n_cut++;
        ok = false;
    }
    if (ok) n_ok++;
    else n_non_2xx++;
    if (c->status > 0 && c->status < 600) statuses[c->status]++;
    if (measuring) {
        if (ok) {
            n_ok_window++;
            add(&latency, now - c->began_ns);
            if (c->first_ns) add(&first_byte, c->first_ns - c->began_ns);
        } else {
            n_non_2xx_window++;
        }
    }
    if (ok && ids && c->id[0]) {
        if (ids_with_time) fprintf(ids, "%s\t%llu\n", c->id, (unsigned long long)(clock_ns(CLOCK_REALTIME) / 1000000u));
        else fprintf(ids, "%s\n", c->id);
    }
    c->has_call = false;
    if (c->server_closes) {
        go_down(c, NULL);
        c->retry_ns = now;
    } else {
        ready(c);
    }
}

static void take_body_bytes(Conn *c, const char *data, size_t len) {
    if (!c->first_ns) c->first_ns = now;
    if (measuring) n_bytes_window += len;
    if (!c->is_stream) return;
    if (len >= TAIL_BYTES) {
        memcpy(c->tail, data + len - TAIL_BYTES, TAIL_BYTES);
    } else {
        memmove(c->tail, c->tail + len, TAIL_BYTES - len);
        memcpy(c->tail + TAIL_BYTES - len, data, len);
    }
    for (const char *p = data, *end = data + len; p < end;) {
        if (c->marker == 0) {
            p = memchr(p, 'T', (size_t)(end - p));
            if (!p) return;
            c->marker = 1;
            p++;
        } else if (c->marker == 1) {
            c->marker = *p == '#' ? 2 : 0;
            c->marker_ns = 0;
            if (c->marker) p++;
        } else if (*p >= '0' && *p <= '9') {
            c->marker_ns = c->marker_ns * 10 + (uint64_t)(*p++ - '0');
        } else {
            if (measuring && c->marker_ns && c->marker_ns <= now) add(&chunk_latency, now - c->marker_ns);
            c->marker = 0;
        }
    }
}

static const char *header(const char *head, const char *name) {
    size_t len = strlen(name);
    for (const char *line = strchr(head, '\n'); line; line = strchr(line, '\n')) {
        line++;
        if (strncasecmp(line, name, len) == 0 && line[len] == ':') return line + len + 1 + strspn(line + len + 1, " ");
    }
    return NULL;
}

/* `c->head` is a whole head, as a string. False: not HTTP/1. */
static bool read_head(Conn *c) {
    if (sscanf(c->head, "HTTP/1.%*d %d", &c->status) != 1) return false;
    const char *length = header(c->head, "content-length"), *encoding = header(c->head, "transfer-encoding");
    const char *type = header(c->head, "content-type"), *connection = header(c->head, "connection");
    const char *id = ids ? header(c->head, "helicone-id") : NULL;
    c->framing = encoding && strncasecmp(encoding, "chunked", 7) == 0 ? BY_CHUNKS : length ? BY_LENGTH : BY_CLOSE;
    if (c->status == 204 || c->status == 304) c->framing = BY_LENGTH, length = NULL;
    c->left = c->framing == BY_LENGTH && length ? strtoull(length, NULL, 10) : 0;
    c->is_stream = type && strncasecmp(type, "text/event-stream", 17) == 0;
    c->server_closes = c->framing == BY_CLOSE || (connection && strncasecmp(connection, "close", 5) == 0);
    c->chunk_state = SIZE_LINE;
    c->line_len = 0;
    memset(c->tail, 0, TAIL_BYTES);
    size_t id_len = id ? strcspn(id, " \r\n") : 0;
    if (id_len >= sizeof c->id) id_len = 0;
    memcpy(c->id, id, id_len);
    c->id[id_len] = 0;
    c->state = BODY;
    return true;
}

/* Unwrap HTTP chunks. Returns how much of `data` was used; the answer is over when `*over` is set. */
static size_t take_chunked(Conn *c, const char *data, size_t len, bool *over) {
    size_t at = 0;
    while (at < len) {
        if (c->chunk_state == DATA) {
            size_t n = len - at < c->left ? len - at : (size_t)c->left;
            take_body_bytes(c, data + at, n);
            at += n;
            c->left -= n;
            if (!c->left) c->chunk_state = DATA_END;
            continue;
        }
        char ch = data[at++];
        if (c->chunk_state == DATA_END) {
            if (ch == '\n') c->chunk_state = SIZE_LINE, c->line_len = 0, c->left = 0;
        } else if (ch == '\n') {
            bool was_trailer = c->chunk_state == TRAILER, empty = c->line_len == 0;
            c->line_len = 0;
            if (was_trailer && empty) {
                *over = true;
                return at;
            }
            if (!was_trailer) c->chunk_state = c->left ? DATA : TRAILER;
        } else if (ch != '\r') {
            if (c->chunk_state == SIZE_LINE && c->line_len >= 0) {
                int digit = ch >= '0' && ch <= '9' ? ch - '0' : (ch | 32) >= 'a' && (ch | 32) <= 'f' ? (ch | 32) - 'a' + 10 : -1;
                if (digit >= 0) c->left = c->left * 16 + (uint64_t)digit, c->line_len++;
                else c->line_len = -1; /* an extension follows: no more digits on this line */
            } else if (c->chunk_state == TRAILER) {
                c->line_len++;
            }
        }
    }
    return at;
}

static void take_bytes(Conn *c, const char *data, size_t len) {
    while (len) {
        if (c->state == HEAD) {
            size_t room = HEAD_BYTES_MAX - c->head_len, n = len < room ? len : room, had = c->head_len;
            memcpy(c->head + had, data, n);
            c->head_len += n;
            size_t from = had > 3 ? had - 3 : 0;
            char *end = memmem(c->head + from, c->head_len - from, "\r\n\r\n", 4);
            if (!end) {
                if (c->head_len == HEAD_BYTES_MAX) go_down(c, &n_reset);
                return;
            }
            end[2] = 0;
            size_t used = (size_t)(end - c->head) + 4 - had;
            data += used;
            len -= used;
            c->head_len = 0;
            if (!read_head(c)) {
                go_down(c, &n_reset);
                return;
            }
            if (c->status < 200) {
                c->state = HEAD;
                continue;
            }
            if (c->framing == BY_LENGTH && !c->left) call_done(c);
        } else if (c->state == BODY) {
            bool over = false;
            size_t used = len;
            if (c->framing == BY_CHUNKS) {
                used = take_chunked(c, data, len, &over);
            } else {
                if (c->framing == BY_LENGTH && c->left < len) used = (size_t)c->left;
                take_body_bytes(c, data, used);
                if (c->framing == BY_LENGTH) c->left -= used, over = !c->left;
            }
            data += used;
            len -= used;
            if (over) call_done(c);
        } else {
            go_down(c, &n_reset); /* bytes nobody asked for */
            return;
        }
    }
}

static void read_some(Conn *c) {
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    now = clock_ns(CLOCK_MONOTONIC);
    if (n > 0) {
        take_bytes(c, buffer, (size_t)n);
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
        if (n == 0 && c->state == BODY && c->framing == BY_CLOSE) call_done(c);
        else go_down(c, &n_reset);
    }
}

/* ---- the open loop ---- */

static void call_is_due(uint64_t due_ns) {
    bool any_up = false;
    n_due++;
    for (int i = 0; i < n_conns; i++) {
        if (conns[i].state == READY) {
            begin_call(&conns[i], due_ns);
            return;
        }
        any_up |= conns[i].state != DOWN;
    }
    /* As a client without a pool would: nobody listens, the call fails at once; everyone is busy, it waits. */
    if (!any_up || backlog_in - backlog_out == BACKLOG_MAX) n_unsent++;
    else backlog[backlog_in++ % BACKLOG_MAX] = due_ns;
}

static uint64_t next_due_ns(void) {
    return start_ns - (uint64_t)(warmup_s * 1e9) + (uint64_t)((double)n_due * 1e9 / rate);
}

static void run_schedule(void) {
    uint64_t due_ns;
    while ((due_ns = next_due_ns()) <= now && due_ns < end_ns) call_is_due(due_ns);
    uint64_t oldest = now - (uint64_t)(timeout_s * 1e9);
    while (backlog_out != backlog_in && backlog[backlog_out % BACKLOG_MAX] < oldest) backlog_out++, n_unsent++;
}

/* ---- figures ---- */

static int by_value(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *name, Samples *s) {
    printf(",\"%s\":", name);
    if (!s->len) {
        printf("null");
        return;
    }
    qsort(s->at, s->len, sizeof *s->at, by_value);
    double q[] = {0.5, 0.95, 0.99};
    printf("{\"n\":%zu", s->seen);
    for (int i = 0; i < 3; i++) printf(",\"p%.0f\":%.1f", q[i] * 100, (double)s->at[(size_t)((double)(s->len - 1) * q[i])] / 1e3);
    printf(",\"max\":%.1f}", (double)s->at[s->len - 1] / 1e3);
}

static void print_figures(void) {
    uint64_t unanswered = 0;
    for (int i = 0; i < n_conns; i++) unanswered += conns[i].has_call;
    printf("{\"seconds\":%.3f,\"rps\":%.1f,\"ok\":%llu,\"ok_total\":%llu,\"non_2xx\":%llu,\"non_2xx_total\":%llu",
        seconds, (double)n_ok_window / seconds, (unsigned long long)n_ok_window, (unsigned long long)n_ok,
        (unsigned long long)n_non_2xx_window, (unsigned long long)n_non_2xx);
    printf(",\"sent\":%llu,\"due\":%llu,\"unanswered\":%llu,\"connects\":%llu", (unsigned long long)n_sent,
        (unsigned long long)n_due, (unsigned long long)unanswered, (unsigned long long)n_reconnects);
    printf(",\"errors\":{\"refused\":%llu,\"reset\":%llu,\"timeout\":%llu,\"unsent\":%llu,\"cut\":%llu}",
        (unsigned long long)n_refused, (unsigned long long)n_reset, (unsigned long long)n_timeout,
        (unsigned long long)(n_unsent + backlog_in - backlog_out), (unsigned long long)n_cut);
    printf(",\"statuses\":{");
    for (int i = 0, some = 0; i < 600; i++)
        if (statuses[i]) printf("%s\"%d\":%llu", some++ ? "," : "", i, (unsigned long long)statuses[i]);
    printf("},\"body_bytes\":%llu", (unsigned long long)n_bytes_window);
    print_samples("latency_us", &latency);
    print_samples("first_byte_us", &first_byte);
    printf(",\"chunks_per_s\":%.1f", (double)chunk_latency.seen / seconds);
    print_samples("chunk_latency_us", &chunk_latency);
    printf("}\n");
}

/* ---- the run ---- */

static void stop(int signal_number) {
    (void)signal_number;
    stopped++;
}

static void begin_window(void) {
    measuring = true;
    printf("{\"window\":\"start\"}\n");
    fflush(stdout);
}

static void end_window(void) {
    if (measuring) seconds = (double)(now - start_ns) / 1e9;
    measuring = false;
    ending = true;
    printf("{\"window\":\"end\"}\n");
    fflush(stdout);
}

/* Every few milliseconds: connections that were lost, calls that take too long, ids to the file. */
static void housekeeping(void) {
    static uint64_t flushed_ns;
    for (int i = 0; i < n_conns; i++) {
        Conn *c = &conns[i];
        if (c->state == DOWN && !ending && now >= c->retry_ns) connect_again(c);
        else if (c->has_call && now > c->began_ns && now - c->began_ns > (uint64_t)(timeout_s * 1e9)) go_down(c, &n_timeout);
    }
    if (ids && now - flushed_ns > 200000000u) {
        fflush(ids);
        flushed_ns = now;
    }
}

/* The next tick: the next call that is due, but at least every few milliseconds for the housekeeping. */
static void set_timer(void) {
    uint64_t tick_ns = now + 5000000u;
    if (rate > 0 && !ending && next_due_ns() < tick_ns) tick_ns = next_due_ns();
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)(tick_ns / 1000000000u), .tv_nsec = (long)(tick_ns % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static bool idle(void) {
    for (int i = 0; i < n_conns; i++)
        if (conns[i].has_call) return false;
    return true;
}

static void run(void) {
    uint64_t drained_ns = 0;
    now = clock_ns(CLOCK_MONOTONIC);
    start_ns = now + (uint64_t)(warmup_s * 1e9);
    end_ns = start_ns + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < n_conns; i++) {
        conns[i].retry_ns = now + (uint64_t)(spread_s * 1e9 * i / n_conns); /* see housekeeping */
        if (conns[i].retry_ns == now) connect_again(&conns[i]);
    }
    set_timer();
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(epoll_fd, events, 256, -1);
        now = clock_ns(CLOCK_MONOTONIC);
        if (!ending) {
            if (!measuring && now >= start_ns) begin_window();
            if (now >= end_ns || stopped) {
                end_window();
                drained_ns = now + (uint64_t)(drain_s * 1e9);
            }
        }
        if (ending && (now >= drained_ns || stopped > 1 || idle())) return;
        for (int i = 0; i < n; i++) {
            if (events[i].data.u32 == UINT32_MAX) {
                uint64_t expirations;
                if (read(timer_fd, &expirations, sizeof expirations) < 0) continue;
                if (rate > 0 && !ending) run_schedule();
                housekeeping();
                set_timer();
                continue;
            }
            Conn *c = &conns[events[i].data.u32];
            if (c->fd < 0) continue;
            if (c->state == CONNECTING) connected(c);
            else if (c->state == SENDING && events[i].events & EPOLLOUT) send_rest(c);
            else read_some(c);
        }
    }
}

static char *read_file(const char *path, size_t *len) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        fprintf(stderr, "load: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    char *data = malloc(16 << 20);
    if (!data) abort();
    *len = fread(data, 1, (16 << 20) - 1, f);
    data[*len] = 0;
    fclose(f);
    return data;
}

static void prepare_request(const char *path, const char *headers_file, const char *body_file) {
    size_t body_len = 0, headers_len = 0, n = 0;
    char *body = body_file ? read_file(body_file, &body_len) : NULL;
    char *headers = headers_file ? read_file(headers_file, &headers_len) : NULL;
    request = malloc(body_len + headers_len * 2 + strlen(path) + 512);
    if (!request) abort();
    n += (size_t)sprintf(request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n", body ? "POST" : "GET", path, port);
    for (char *line = headers ? strtok(headers, "\r\n") : NULL; line; line = strtok(NULL, "\r\n"))
        n += (size_t)sprintf(request + n, "%s\r\n", line);
    if (body) n += (size_t)sprintf(request + n, "Content-Type: application/json\r\nContent-Length: %zu\r\n", body_len);
    n += (size_t)sprintf(request + n, "\r\n");
    if (body) memcpy(request + n, body, body_len);
    request_len = n + body_len;
    free(body);
    free(headers);
}

int main(int argc, char **argv) {
    const char *path = "/", *headers_file = NULL, *body_file = NULL, *ids_file = NULL;
    static const struct option options[] = {{"port", 1, NULL, 'p'}, {"path", 1, NULL, 'u'}, {"headers", 1, NULL, 'h'},
        {"body", 1, NULL, 'b'}, {"connections", 1, NULL, 'c'}, {"rate", 1, NULL, 'r'}, {"warmup", 1, NULL, 'w'},
        {"spread", 1, NULL, 'e'}, {"seconds", 1, NULL, 's'}, {"drain", 1, NULL, 'd'}, {"timeout", 1, NULL, 't'},
        {"ids", 1, NULL, 'i'}, {"ids-with-time", 0, NULL, 'm'}, {NULL, 0, NULL, 0}};
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'p') port = atoi(optarg);
        else if (o == 'u') path = optarg;
        else if (o == 'h') headers_file = optarg;
        else if (o == 'b') body_file = optarg;
        else if (o == 'c') n_conns = atoi(optarg);
        else if (o == 'r') rate = atof(optarg);
        else if (o == 'w') warmup_s = atof(optarg);
        else if (o == 'e') spread_s = atof(optarg);
        else if (o == 's') seconds = atof(optarg);
        else if (o == 'd') drain_s = atof(optarg);
        else if (o == 't') timeout_s = atof(optarg);
        else if (o == 'i') ids_file = optarg;
        else if (o == 'm') ids_with_time = true;
        else return 2;
    }
    if (port < 1 || port > 65535 || n_conns < 1 || n_conns > CONNECTIONS_MAX || rate < 0 || seconds <= 0 || timeout_s <= 0) {
        fprintf(stderr, "load: see the top of load.c for its arguments\n");
        return 2;
    }
    if (ids_file && !(ids = fopen(ids_file, "w"))) {
        fprintf(stderr, "load: %s: %s\n", ids_file, strerror(errno));
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, stop);
    signal(SIGTERM, stop);
    prepare_request(path, headers_file, body_file);
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    conns = calloc((size_t)n_conns, sizeof *conns);
    if (!conns) abort();
    for (int i = 0; i < n_conns; i++) conns[i].fd = -1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &e);
    run();
    print_figures();
    if (ids && fclose(ids) != 0) return 1;
    return 0;
}
