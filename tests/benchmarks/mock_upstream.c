/* An OpenAI endpoint that costs next to nothing: one thread, epoll, answers that exist before they are asked for.
 *
 *     mock_upstream [--batch EVENTS] [--pace-ms MS]     prints its port, ends with its standard input
 *
 * GET anything: 200 with what routers ask their workers for. POST anything: a chat completion of about 0.6 KB. A body
 * with "stream":true gets SSE, each event a chunk of its own: "events=N" anywhere in the body asks for N of them, sent
 * as fast as the socket takes them, --batch at a time and stream by stream, like the steps of an engine; "slow=1" asks
 * for one every --pace-ms until SIGUSR1, which ends all slow streams in order, with [DONE].
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_EVENTS 4096
#define MAX_IN (1 << 20)
#define CHUNK(text_) "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000," \
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{" text_ "}]}\n\n"

static const char STREAM_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char ROLE[] = CHUNK("\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null");
/* In turns: some gateways break a stream off that says the same for long. */
static const char *const WORDS[] = {CHUNK("\"content\":\" some\"},\"finish_reason\":null"),
                                    CHUNK("\"content\":\" word\"},\"finish_reason\":null")};
static const char LAST[] = CHUNK("},\"finish_reason\":\"stop\"");
static const char DONE[] = "data: [DONE]\n\n";
static const char ABOUT[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":1760000000,\"owned_by\":\"bench\"}],"
    "\"status\":\"ok\",\"model_path\":\"bench\",\"served_model_name\":\"bench\",\"is_generation\":true,\"version\":\"0\"}";

struct conn {
    int fd;
    char *in;             /* a request that has not arrived whole */
    size_t in_len, in_cap;
    const char *out;      /* what the socket would not take yet; never freed, all answers are static */
    size_t out_len;
    bool writing;         /* EPOLLOUT is asked for */
    size_t events_left;   /* of a fast stream, the role event and the last one included */
    size_t events_all;    /* asked for; of a slow stream, sent */
    bool slow, ending;    /* ending: a slow stream that is to end once its reader has caught up */
    uint64_t due_ns;
    struct conn *prev, *next; /* in the list of fast or of slow streams */
};
struct list {
    struct conn *first, *last;
};

static int epoll_fd, timer_fd;
static struct list fast, slow;
static size_t batch = 1;
static uint64_t pace_ns = 200000000;
static char json_answer[2048], about_answer[1024], slow_first[1024], slow_words[2][512], slow_end[1024];
static size_t json_len, about_len, slow_first_len, slow_word_len, slow_end_len;
static char *stream_bytes;           /* head, role and MAX_EVENTS words, framed */
static size_t word_at[MAX_EVENTS + 1]; /* where each event of stream_bytes starts */

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void append(struct list *list, struct conn *conn) {
    conn->prev = list->last;
    conn->next = NULL;
    *(list->last ? &list->last->next : &list->first) = conn;
    list->last = conn;
}

static void take_out(struct list *list, struct conn *conn) {
    *(conn->prev ? &conn->prev->next : &list->first) = conn->next;
    *(conn->next ? &conn->next->prev : &list->last) = conn->prev;
}

static size_t framed(char *to, const char *event) {
    return (size_t)sprintf(to, "%zx\r\n%s\r\n", strlen(event), event);
}

static void prepare(void) {
    char content[400] = "bench-answer", body[1024];
    while (strlen(content) < 300) strcat(content, " word");
    int body_len = sprintf(body,
        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"bench\",\"choices\":"
        "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":"
        "\"stop\"}],\"usage\":{\"prompt_tokens\":60,\"completion_tokens\":60,\"total_tokens\":120}}", content);
    const char *head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s";
    json_len = (size_t)sprintf(json_answer, head, body_len, body);
    about_len = (size_t)sprintf(about_answer, head, (int)strlen(ABOUT), ABOUT);

    stream_bytes = malloc(sizeof STREAM_HEAD + (MAX_EVENTS + 4) * (sizeof ROLE + 8));
    size_t at = (size_t)sprintf(stream_bytes, "%s", STREAM_HEAD);
    at += framed(stream_bytes + at, ROLE);
    memcpy(slow_first, stream_bytes, at);
    slow_first_len = at;
    for (int event = 1; event <= MAX_EVENTS; event++) {
        word_at[event] = at;
        at += framed(stream_bytes + at, WORDS[event % 2]);
    }
    for (int i = 0; i < 2; i++) slow_word_len = framed(slow_words[i], WORDS[i]);
    slow_end_len = framed(slow_end, LAST);
    slow_end_len += framed(slow_end + slow_end_len, DONE);
    slow_end_len += (size_t)sprintf(slow_end + slow_end_len, "0\r\n\r\n");
}

static void watch(struct conn *conn, bool writing) {
    if (conn->writing != writing) {
        struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = conn};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, conn->fd, &event);
        conn->writing = writing;
    }
}

static void drop(struct conn *conn) {
    if (conn->events_left) take_out(&fast, conn);
    if (conn->slow) take_out(&slow, conn);
    close(conn->fd); /* freed by the caller's loop: epoll may still hold an event for it in this round */
    conn->fd = -1;
    conn->events_left = 0;
    conn->slow = false;
}

/* Returns whether everything went out; the rest goes when the socket can take it. A slow stream whose reader lags
 * simply loses its event: the mock keeps no queue. */
static bool give(struct conn *conn, const char *bytes, size_t len) {
    if (conn->out_len) return false;
    ssize_t sent = send(conn->fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) return false; /* epoll tells of the hang-up */
    size_t done = sent < 0 ? 0 : (size_t)sent;
    conn->out = bytes + done;
    conn->out_len = len - done;
    watch(conn, conn->out_len > 0);
    return conn->out_len == 0;
}

static void arm_timer(void) {
    struct itimerspec at = {0};
    if (slow.first) {
        at.it_value.tv_sec = (time_t)(slow.first->due_ns / 1000000000u);
        at.it_value.tv_nsec = (long)(slow.first->due_ns % 1000000000u);
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static void begin_slow(struct conn *conn) {
    give(conn, slow_first, slow_first_len);
    conn->slow = true;
    conn->due_ns = now_ns() + pace_ns;
    append(&slow, conn); /* one pace for all, so the list is in order of time */
    if (slow.first == conn) arm_timer();
}

static void step_slow(void) {
    uint64_t now = now_ns();
    while (slow.first && slow.first->due_ns <= now) {
        struct conn *conn = slow.first;
        take_out(&slow, conn);
        give(conn, slow_words[conn->events_all++ % 2], slow_word_len);
        conn->due_ns += pace_ns;
        append(&slow, conn);
    }
    arm_timer();
}

static void end_slow(void) {
    while (slow.first) {
        struct conn *conn = slow.first;
        take_out(&slow, conn);
        conn->slow = false;
        if (conn->out_len) conn->ending = true;
        else give(conn, slow_end, slow_end_len);
    }
    arm_timer();
}

/* One batch for each fast stream whose socket takes it. */
static void step_fast(void) {
    struct conn *next;
    for (struct conn *conn = fast.first; conn; conn = next) {
        next = conn->next;
        if (conn->out_len) continue;
        size_t all = conn->events_all, sent = all - conn->events_left, count = batch;
        if (count >= conn->events_left) { /* the last one is another text, and [DONE] comes with it */
            size_t words_end = word_at[all - 1], from = sent ? word_at[sent] : 0;
            if (words_end > from && !give(conn, stream_bytes + from, words_end - from)) {
                conn->events_left = 1;
                continue;
            }
            take_out(&fast, conn);
            conn->events_left = 0;
            give(conn, slow_end, slow_end_len);
            continue;
        }
        size_t from = sent ? word_at[sent] : 0;
        give(conn, stream_bytes + from, word_at[sent + count] - from);
        conn->events_left -= count;
    }
}

static void answer(struct conn *conn, bool post, const char *body) {
    if (!post) {
        give(conn, about_answer, about_len);
        return;
    }
    if (!strstr(body, "\"stream\":true") && !strstr(body, "\"stream\": true")) {
        give(conn, json_answer, json_len);
        return;
    }
    if (strstr(body, "slow=1")) {
        begin_slow(conn);
        return;
    }
    const char *wanted = strstr(body, "events=");
    size_t events = wanted ? strtoul(wanted + 7, NULL, 10) : 64;
    conn->events_all = conn->events_left = events < 3 ? 3 : events > MAX_EVENTS ? MAX_EVENTS : events;
    append(&fast, conn);
}

/* Takes the chunked body at `body` apart, in place. Returns bytes taken from the input, 0 while it is not whole. */
static size_t unchunk(char *body, size_t len) {
    size_t at = 0, to = 0;
    for (;;) {
        char *line = memmem(body + at, len - at, "\r\n", 2);
        if (!line) return 0;
        size_t size = strtoul(body + at, NULL, 16), data = (size_t)(line - body) + 2;
        if (data + size + 2 > len) return 0;
        memmove(body + to, body + data, size);
        to += size;
        at = data + size + 2;
        if (!size) {
            body[to] = 0; /* at > to: the framing left room */
            return at;
        }
    }
}

/* Answers the request at the start of `in` if it is there to its end. Returns its length, 0 while it is not. */
static size_t take_request(struct conn *conn) {
    char *in = conn->in, *end = memmem(in, conn->in_len, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t head = (size_t)(end - in) + 4, body = 0, have = conn->in_len - head;
    *end = 0; /* put back below while the body is not there */
    char *length = strcasestr(in, "\r\ncontent-length:"), *chunked = strcasestr(in, "\r\ntransfer-encoding:");
    bool post = in[0] == 'P';
    *end = '\r';
    if (chunked) {
        if (!memmem(in + head, have, "0\r\n\r\n", 5) || !(body = unchunk(in + head, have))) return 0;
        answer(conn, post, in + head);
        return head + body;
    }
    if (length) body = strtoul(length + 17, NULL, 10);
    if (body > have) return 0;
    char kept = in[head + body];
    in[head + body] = 0;
    answer(conn, post, in + head);
    in[head + body] = kept;
    return head + body;
}

static void on_readable(struct conn *conn) {
    if (conn->in_cap - conn->in_len < 4097) {
        conn->in_cap = conn->in_cap ? conn->in_cap * 2 : 8192;
        conn->in = realloc(conn->in, conn->in_cap);
        if (!conn->in || conn->in_cap > MAX_IN) exit(2);
    }
    ssize_t got = recv(conn->fd, conn->in + conn->in_len, conn->in_cap - conn->in_len - 1, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(conn);
        return;
    }
    if (got < 0) return;
    conn->in_len += (size_t)got;
    size_t taken;
    while (conn->in_len && (taken = take_request(conn))) {
        conn->in_len -= taken;
        memmove(conn->in, conn->in + taken, conn->in_len);
    }
}

static void on_writable(struct conn *conn) {
    const char *rest = conn->out;
    size_t len = conn->out_len;
    conn->out_len = 0;
    if (give(conn, rest, len) && conn->ending) {
        conn->ending = false;
        give(conn, slow_end, slow_end_len);
    }
}

static void on_connections(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct conn *conn = calloc(1, sizeof *conn);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        conn->fd = fd;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

static int listen_somewhere(void) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, len) || listen(listener, 4096)) fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &len);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

static void add(int fd, void *mark) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = mark};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--batch")) batch = strtoul(argv[i + 1], NULL, 10);
        if (!strcmp(argv[i], "--pace-ms")) pace_ns = strtoul(argv[i + 1], NULL, 10) * 1000000u;
    }
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    prepare();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGUSR1);
    sigprocmask(SIG_BLOCK, &ending, NULL);
    int listener = listen_somewhere(), signal_fd = signalfd(-1, &ending, SFD_NONBLOCK), input = 0;
    add(listener, &listener);
    add(timer_fd, &timer_fd);
    add(signal_fd, &signal_fd);
    add(0, &input);
    struct epoll_event events[512];
    char scratch[256];
    for (;;) {
        bool ready = false;
        for (struct conn *conn = fast.first; conn && !ready; conn = conn->next) ready = !conn->out_len;
        int count = epoll_wait(epoll_fd, events, 512, ready ? 0 : -1);
        for (int i = 0; i < count; i++) {
            void *mark = events[i].data.ptr;
            if (mark == &listener) {
                on_connections(listener);
            } else if (mark == &timer_fd) {
                if (read(timer_fd, scratch, 8) == 8) step_slow();
            } else if (mark == &signal_fd) {
                if (read(signal_fd, scratch, sizeof scratch) > 0) end_slow();
            } else if (mark == &input) {
                if (read(0, scratch, sizeof scratch) <= 0) return 0;
            } else {
                struct conn *conn = mark;
                if (events[i].events & EPOLLOUT) on_writable(conn);
                if (events[i].events & ~(unsigned)EPOLLOUT) on_readable(conn);
                if (conn->fd < 0) { /* level-triggered with one event per descriptor and round: nobody else has it */
                    free(conn->in);
                    free(conn);
                }
            }
        }
        if (fast.first) step_fast();
    }
}
