/* A load generator that checks every answer: one thread, epoll, keep-alive.
 *
 *     load --port P --request FILE --connections N --seconds T [--warmup T] [--rate R] [--events E | --hold MS]
 *
 * FILE holds one whole HTTP request, sent over and over. Closed loop: each connection asks again as soon as it has its
 * answer. --rate: open loop, R requests a second, each timed from the moment it was due, so that a stall is not
 * forgotten. --events: answers are SSE of E events. --hold: N streams of one event every MS milliseconds, started at
 * most 64 at a time; the window opens once all have begun and they are expected to end by themselves after it.
 *
 * Prints "start" and "end" as the window opens and closes, then one line of JSON about it: requests that ended and
 * events that arrived inside, times in microseconds, and every kind of error ever met, also outside of the window.
 * An answer is good if it has status 200, is framed by Content-Length or chunks, arrives whole, and holds what the
 * mock sends: its text, or all events and "data: [DONE]" as the last one.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HEAD_BYTES 16384
#define BODY_BYTES 65536
#define RETRY_NS 10000000u
#define RAMP_AT_ONCE 64
#define RAMP_NS 60000000000u
#define DRAIN_NS 15000000000u
#define MAX_ERRORS 100000u

enum state { CLOSED, CONNECTING, IDLE, HEAD, BODY };
enum framing { BY_LENGTH, BY_CHUNKS };
enum chunk { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, CHUNK_TRAILER };

struct conn {
    int fd;
    enum state state;
    uint64_t retry_ns;   /* when a CLOSED one may be opened again */
    uint64_t sent_ns;    /* or due, in an open loop */
    uint64_t last_event_ns;
    size_t request_left;
    bool reused, first, close_after;
    /* the answer */
    int status;
    enum framing framing;
    enum chunk chunk;
    size_t left;         /* bytes of the body or of the chunk */
    char line[24];       /* the beginning of a line that has not ended: a chunk's size */
    size_t line_len;
    char event[16];      /* the beginning of a line of the SSE */
    size_t event_len;
    unsigned events;
    bool done, after_done;
    size_t head_len, body_len;
    char head[HEAD_BYTES];
    char *body;          /* of a JSON answer */
};

struct samples {
    float *us;
    size_t count, room;
};

static const char *request;
static size_t request_len;
static struct sockaddr_in address = {.sin_family = AF_INET};
static struct conn *conns;
static unsigned conn_count = 64, wanted_events, begun, rate;
static uint64_t pace_ns;
static bool streaming, stopping, measuring;
static int epoll_fd;
static struct samples latencies, gaps;
static uint64_t requests, events, bad, now;
static unsigned status_errors[600];
enum { E_CONNECT, E_CLOSED, E_FRAMING, E_CONTENT, E_EVENTS, E_NO_DONE, E_UNFINISHED, E_KINDS };
static const char *const KINDS[] = {"connect", "closed early", "framing", "content", "events", "no [DONE]", "unfinished"};
static unsigned errors[E_KINDS];

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void keep(struct samples *samples, double us) {
    if (samples->count == samples->room) {
        samples->room = samples->room ? samples->room * 2 : 1 << 16;
        samples->us = realloc(samples->us, samples->room * sizeof *samples->us);
        if (!samples->us) exit(2);
    }
    samples->us[samples->count++] = (float)us;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double percentile(struct samples *samples, double share) {
    if (!samples->count) return 0;
    size_t rank = (size_t)(share * (double)samples->count);
    return samples->us[rank < samples->count ? rank : samples->count - 1];
}

static void wait_for(struct conn *conn, unsigned what, int operation) {
    struct epoll_event event = {.events = what, .data.ptr = conn};
    epoll_ctl(epoll_fd, operation, conn->fd, &event);
}

static void shut(struct conn *conn) {
    if (conn->fd >= 0) close(conn->fd);
    conn->fd = -1;
    conn->state = CLOSED;
    conn->retry_ns = now;
}

static void failed(struct conn *conn, int kind) {
    errors[kind]++;
    if (++bad > MAX_ERRORS) stopping = true;
    shut(conn);
    conn->retry_ns = now + RETRY_NS;
}

static void push(struct conn *conn) {
    ssize_t sent = send(conn->fd, request + (request_len - conn->request_left), conn->request_left, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        failed(conn, E_CLOSED);
        return;
    }
    size_t before = conn->request_left;
    conn->request_left -= sent < 0 ? 0 : (size_t)sent;
    if (conn->request_left) wait_for(conn, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    else if (before != request_len) wait_for(conn, EPOLLIN, EPOLL_CTL_MOD);
}

static void ask(struct conn *conn, uint64_t due_ns) {
    conn->state = HEAD;
    conn->sent_ns = due_ns;
    conn->request_left = request_len;
    conn->head_len = conn->body_len = conn->line_len = conn->event_len = 0;
    conn->events = 0;
    conn->done = conn->after_done = conn->close_after = false;
    conn->last_event_ns = 0;
    push(conn);
}

static void open_conn(struct conn *conn) {
    int one = 1;
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) {
        failed(conn, E_CONNECT);
        return;
    }
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conn->state = CONNECTING;
    conn->reused = false;
    if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) {
        failed(conn, E_CONNECT);
        return;
    }
    wait_for(conn, EPOLLOUT, EPOLL_CTL_ADD);
}

/* Whether a closed loop should send the next one on this connection. */
static bool goes_on(void) { return !stopping && !rate && !pace_ns; }

static void on_connected(struct conn *conn) {
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error) {
        failed(conn, E_CONNECT);
        return;
    }
    wait_for(conn, EPOLLIN, EPOLL_CTL_MOD);
    conn->state = IDLE;
    if (goes_on() || pace_ns) ask(conn, now);
}

static void ended(struct conn *conn) {
    int kind = -1;
    if (streaming) {
        if (!conn->done) kind = E_NO_DONE;
        else if (conn->after_done || (wanted_events && conn->events != wanted_events)) kind = E_EVENTS;
    } else if (!memmem(conn->body, conn->body_len, "bench-answer", 12)) {
        kind = E_CONTENT;
    }
    if (kind >= 0) {
        failed(conn, kind);
        return;
    }
    if (measuring) {
        requests++;
        keep(&latencies, (double)(now - conn->sent_ns) / 1e3);
    }
    conn->state = IDLE;
    conn->reused = true;
    if (conn->close_after || pace_ns) shut(conn);
    else if (goes_on()) ask(conn, now);
}

static void on_event(struct conn *conn) {
    if (conn->done) conn->after_done = true;
    if (conn->event_len >= 7 && conn->event[6] == '[') {
        conn->done = true;
        return;
    }
    conn->events++;
    if (!conn->first) {
        conn->first = true;
        begun++;
    }
    if (!measuring) {
        conn->last_event_ns = now;
        return;
    }
    events++;
    if (conn->last_event_ns) {
        double gap_us = (double)(now - conn->last_event_ns) / 1e3, pace_us = (double)pace_ns / 1e3;
        keep(&gaps, pace_ns ? (gap_us > pace_us ? gap_us - pace_us : pace_us - gap_us) : gap_us);
    }
    conn->last_event_ns = now;
}

/* Counts lines that begin with "data: ", however they are cut into reads and chunks; comments and blank lines pass. */
static void take_events(struct conn *conn, const char *bytes, size_t len) {
    while (len) {
        const char *newline = memchr(bytes, '\n', len);
        size_t part = newline ? (size_t)(newline - bytes) : len, room = sizeof conn->event - conn->event_len;
        size_t copied = part < room ? part : room;
        memcpy(conn->event + conn->event_len, bytes, copied);
        conn->event_len += copied;
        if (!newline) return;
        if (conn->event_len >= 6 && !memcmp(conn->event, "data: ", 6)) on_event(conn);
        conn->event_len = 0;
        bytes += part + 1;
        len -= part + 1;
    }
}

static void take_body(struct conn *conn, const char *bytes, size_t len) {
    if (streaming) {
        take_events(conn, bytes, len);
        return;
    }
    size_t room = BODY_BYTES - conn->body_len, copied = len < room ? len : room;
    memcpy(conn->body + conn->body_len, bytes, copied);
    conn->body_len += copied;
}

/* Reads one line up to its LF into conn->line. Returns bytes taken; *whole tells whether the line has ended. */
static size_t take_line(struct conn *conn, const char *bytes, size_t len, bool *whole) {
    const char *newline = memchr(bytes, '\n', len);
    size_t part = newline ? (size_t)(newline - bytes) : len, room = sizeof conn->line - 1 - conn->line_len;
    size_t copied = part < room ? part : room;
    memcpy(conn->line + conn->line_len, bytes, copied);
    conn->line_len += copied;
    conn->line[conn->line_len] = 0;
    *whole = newline != NULL;
    return newline ? part + 1 : part;
}

/* Returns bytes of the body taken; *complete tells whether that was its end. Negative: not HTTP. */
static long take_chunks(struct conn *conn, const char *bytes, size_t len, bool *complete) {
    size_t at = 0;
    while (at < len && !*complete) {
        if (conn->chunk == CHUNK_DATA) {
            size_t part = len - at < conn->left ? len - at : conn->left;
            take_body(conn, bytes + at, part);
            at += part;
            conn->left -= part;
            if (!conn->left) conn->chunk = CHUNK_END;
            continue;
        }
        bool whole;
        at += take_line(conn, bytes + at, len - at, &whole);
        if (!whole) break;
        bool blank = conn->line[0] == '\r' && conn->line_len == 1;
        conn->line_len = 0;
        if (conn->chunk == CHUNK_SIZE) {
            char *end;
            conn->left = strtoul(conn->line, &end, 16);
            if (end == conn->line) return -1;
            conn->chunk = conn->left ? CHUNK_DATA : CHUNK_TRAILER;
        } else if (conn->chunk == CHUNK_END) {
            if (!blank) return -1;
            conn->chunk = CHUNK_SIZE;
        } else {
            *complete = blank;
        }
    }
    return (long)at;
}

/* Returns bytes of `bytes` that belonged to the head; negative when it is not one that an answer can be read from. */
static long take_head(struct conn *conn, const char *bytes, size_t len) {
    size_t room = HEAD_BYTES - 1 - conn->head_len, copied = len < room ? len : room, before = conn->head_len;
    memcpy(conn->head + before, bytes, copied);
    conn->head_len += copied;
    conn->head[conn->head_len] = 0;
    char *end = memmem(conn->head, conn->head_len, "\r\n\r\n", 4);
    if (!end) return conn->head_len == HEAD_BYTES - 1 ? -1 : (long)copied;
    size_t taken = (size_t)(end - conn->head) + 4 - before;
    *end = 0;
    if (strncmp(conn->head, "HTTP/1.1 ", 9)) return -1;
    conn->status = atoi(conn->head + 9);
    char *length = strcasestr(conn->head, "\r\ncontent-length:"), *coding = strcasestr(conn->head, "\r\ntransfer-encoding:");
    conn->close_after = strcasestr(conn->head, "\r\nconnection: close") != NULL;
    if (!length == !coding) return -1; /* neither, or both: nobody could tell where the answer ends */
    conn->framing = coding ? BY_CHUNKS : BY_LENGTH;
    conn->chunk = CHUNK_SIZE;
    conn->left = length ? strtoul(length + 17, NULL, 10) : 0;
    conn->state = BODY;
    return (long)taken;
}

static void take(struct conn *conn, const char *bytes, size_t len) {
    while (len && (conn->state == HEAD || conn->state == BODY)) {
        bool complete = false;
        long taken;
        if (conn->state == HEAD) {
            taken = take_head(conn, bytes, len);
            complete = conn->state == BODY && conn->framing == BY_LENGTH && !conn->left;
        } else if (conn->framing == BY_CHUNKS) {
            taken = take_chunks(conn, bytes, len, &complete);
        } else {
            size_t part = len < conn->left ? len : conn->left;
            take_body(conn, bytes, part);
            conn->left -= part;
            taken = (long)part;
            complete = !conn->left;
        }
        if (taken < 0) {
            failed(conn, E_FRAMING);
            return;
        }
        if (conn->state == BODY && conn->status != 200) {
            status_errors[conn->status > 0 && conn->status < 600 ? conn->status : 0]++;
            if (++bad > MAX_ERRORS) stopping = true;
            shut(conn);
            conn->retry_ns = now + RETRY_NS;
            return;
        }
        bytes += taken;
        len -= (size_t)taken;
        if (complete) {
            if (len) failed(conn, E_FRAMING);
            else ended(conn);
            return;
        }
    }
}

static void on_readable(struct conn *conn) {
    static char buffer[1 << 18];
    ssize_t got = recv(conn->fd, buffer, sizeof buffer, 0);
    now = now_ns();
    if (got > 0) {
        if (conn->state == IDLE) failed(conn, E_FRAMING);
        else take(conn, buffer, (size_t)got);
    } else if (got == 0 || errno != EAGAIN) {
        if (conn->state == IDLE) shut(conn); /* closing an idle connection is anybody's right */
        else failed(conn, E_CLOSED);
    }
}

static void report(double seconds, unsigned held) {
    qsort(latencies.us, latencies.count, sizeof *latencies.us, ascending);
    qsort(gaps.us, gaps.count, sizeof *gaps.us, ascending);
    printf("{\"seconds\": %.4f, \"requests\": %lu, \"events\": %lu, \"held\": %u, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"gap_p50_us\": %.1f, \"gap_p99_us\": %.1f, \"errors\": {",
           seconds, (unsigned long)requests, (unsigned long)events, held, percentile(&latencies, 0.5),
           percentile(&latencies, 0.99), percentile(&gaps, 0.5), percentile(&gaps, 0.99));
    const char *separator = "";
    for (int kind = 0; kind < E_KINDS; kind++)
        if (errors[kind]) {
            printf("%s\"%s\": %u", separator, KINDS[kind], errors[kind]);
            separator = ", ";
        }
    for (int status = 0; status < 600; status++)
        if (status_errors[status]) {
            printf("%s\"status %d\": %u", separator, status, status_errors[status]);
            separator = ", ";
        }
    puts("}}");
}

static void load_request(const char *path) {
    struct stat about;
    FILE *file = fopen(path, "rb");
    if (!file || fstat(fileno(file), &about)) {
        perror(path);
        exit(2);
    }
    char *bytes = malloc((size_t)about.st_size);
    request_len = fread(bytes, 1, (size_t)about.st_size, file);
    request = bytes;
    fclose(file);
}

static void say(const char *word) {
    puts(word);
    fflush(stdout);
}

/* Opens what is closed; of held streams at most RAMP_AT_ONCE that have not begun. */
static void open_closed(void) {
    unsigned waiting = 0;
    for (unsigned i = 0; i < conn_count; i++) waiting += conns[i].state != CLOSED && !conns[i].first;
    for (unsigned i = 0; i < conn_count && !stopping; i++) {
        struct conn *conn = &conns[i];
        if (conn->state != CLOSED || conn->retry_ns > now || (pace_ns && (conn->first || waiting >= RAMP_AT_ONCE))) continue;
        open_conn(conn);
        waiting++;
    }
}

static uint64_t send_due(uint64_t next_ns, uint64_t *sent, uint64_t base_ns) {
    for (unsigned i = 0; i < conn_count && next_ns <= now; i++)
        if (conns[i].state == IDLE) {
            ask(&conns[i], next_ns);
            next_ns = base_ns + ++*sent * 1000000000u / rate;
        }
    return next_ns;
}

static bool busy(void) {
    for (unsigned i = 0; i < conn_count; i++)
        if (conns[i].state == HEAD || conns[i].state == BODY) return true;
    return false;
}

int main(int argc, char **argv) {
    double seconds = 1, warmup = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--port")) address.sin_port = htons((uint16_t)atoi(value));
        else if (!strcmp(name, "--request")) load_request(value);
        else if (!strcmp(name, "--connections")) conn_count = (unsigned)atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--warmup")) warmup = atof(value);
        else if (!strcmp(name, "--rate")) rate = (unsigned)atoi(value);
        else if (!strcmp(name, "--events")) wanted_events = (unsigned)atoi(value), streaming = true;
        else if (!strcmp(name, "--hold")) pace_ns = (uint64_t)atoi(value) * 1000000u, streaming = true;
        else return 2;
    }
    if (!request || !address.sin_port || !conn_count) return 2;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc(conn_count, sizeof *conns);
    for (unsigned i = 0; i < conn_count; i++) {
        conns[i].fd = -1;
        if (!streaming) conns[i].body = malloc(BODY_BYTES);
    }
    uint64_t began = now = now_ns(), start_ns = pace_ns ? 0 : began + (uint64_t)(warmup * 1e9), end_ns = 0, swept_ns = 0;
    uint64_t next_ns = began, sent = 0, opened_ns = 0;
    unsigned held = 0;
    struct epoll_event ready[512];
    for (;;) {
        if (now - swept_ns >= 1000000u) {
            swept_ns = now;
            open_closed();
            /* held streams: the warm-up begins with the last of them, or when the ramp has taken too long */
            if (pace_ns && !start_ns && (begun == conn_count || now - began > RAMP_NS)) start_ns = now + (uint64_t)(warmup * 1e9);
        }
        if (start_ns && !measuring && !end_ns && now >= start_ns) {
            measuring = true;
            opened_ns = now;
            end_ns = now + (uint64_t)(seconds * 1e9);
            say("start");
        }
        if (measuring && now >= end_ns) {
            measuring = false;
            stopping = true;
            seconds = (double)(now - opened_ns) / 1e9;
            for (unsigned i = 0; i < conn_count; i++) held += conns[i].state == BODY;
            say("end");
        }
        if (stopping && (bad > MAX_ERRORS || !busy() || (end_ns && now > end_ns + DRAIN_NS))) break;
        if (rate && !stopping) next_ns = send_due(next_ns, &sent, began);
        /* Every turn ends within a millisecond, for the clock has things to do; an open loop turns at its own times. */
        struct timespec wait = {.tv_nsec = 1000000};
        if (rate && !stopping && next_ns < now + 1000000u) wait.tv_nsec = next_ns > now ? (long)(next_ns - now) : 0;
        int count = epoll_pwait2(epoll_fd, ready, 512, &wait, NULL);
        now = now_ns();
        for (int i = 0; i < count; i++) {
            struct conn *conn = ready[i].data.ptr;
            if (conn->state == CONNECTING) {
                on_connected(conn);
                continue;
            }
            if (ready[i].events & EPOLLOUT && conn->request_left) push(conn);
            if (conn->fd >= 0 && ready[i].events & ~(unsigned)EPOLLOUT) on_readable(conn);
        }
    }
    for (unsigned i = 0; i < conn_count; i++) errors[E_UNFINISHED] += conns[i].state == HEAD || conns[i].state == BODY;
    report(seconds, held);
    return 0;
}
