/* A stub of an LLM provider for benchmarks: HTTP/1.1, one thread, answers of prepared bytes.

       POST ../chat/completions    JSON, or server-sent events, each in a chunk of its own
       GET  ../models              one model
       GET  /stub/stats            {"requests":N,"events":N,"connections":N}

   A connection reads a request, is answered, reads the next; what a client sends meanwhile waits.
   Of a body only `"stream": true` and `include_usage` are looked for. Streams with a pace share one
   timer: a wheel with a slot for each millisecond. */
#include "plan.h"
#include "wheel.h"

#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define KEPT_MAX 16384 /* of a head, and of what comes while a request is answered */
#define CARRY 128      /* the most that the members we look for take, with blanks */
#define SCRATCH (256 << 10)

struct connection {
    struct timer timer; /* the first member: a timer is known by its connection */
    int fd;
    enum { HEAD, BODY, WAITING, ANSWERING } state;
    bool last;  /* close when it is answered */
    bool full;  /* the socket takes no more: epoll tells when it does */
    bool chat, stream, usage, is_chunked;
    int64_t left; /* bytes of a body with a length */
    struct chunked chunks;
    struct plan *answer; /* what the request chose, once its head is read */
    size_t at, due;      /* bytes of it that are sent, and that may be */
    size_t released;     /* events that may be sent */
    int64_t next;        /* when the next of them may be */
    char stub[TEXT_MAX];
    size_t stub_size, kept_size;
    char kept[KEPT_MAX];
};

static int poller;
static struct wheel wheel;
static char scratch[KEPT_MAX + SCRATCH];
static struct behaviour usual;
static struct plan plans[PLANS];
static struct {
    unsigned long long requests, events;
    long connections;
} stats;

/* Fixed answers. */

#define FIXED(status, body)                                                                        \
    "HTTP/1.1 " status "\r\ncontent-type: application/json\r\ncontent-length: "                    \
    "%zu\r\n\r\n" body,                                                                            \
        sizeof(body) - 1

static struct plan models, unknown, refused, crowded, stated;

static void fix(struct plan *plan, const char *text, size_t size)
{
    char made[512];
    int length = snprintf(made, sizeof made, text, size);
    plan->bytes = need(strdup(made));
    plan->size = (size_t)length;
}

static void fix_all(void)
{
    fix(&models, FIXED("200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"gpt-3.5-turbo\","
                                 "\"object\":\"model\",\"created\":1700000000,"
                                 "\"owned_by\":\"stub\"}]}"));
    fix(&unknown, FIXED("404 Not Found", "{\"error\":{\"message\":\"no such path\"}}"));
    fix(&refused, FIXED("400 Bad Request",
                        "{\"error\":{\"message\":\"the stub has no such setting\"}}"));
    fix(&crowded, FIXED("503 Service Unavailable",
                        "{\"error\":{\"message\":\"too many behaviours at a time\"}}"));
    stated.bytes = need(malloc(256));
}

static struct plan *state(void)
{
    char body[128];
    int size = snprintf(body, sizeof body,
                        "{\"requests\":%20llu,\"events\":%20llu,\"connections\":%20ld}", stats.requests,
                        stats.events, stats.connections);
    stated.size = (size_t)snprintf(stated.bytes, 256,
                                   "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                                   "content-length: %d\r\n\r\n%s",
                                   size, body);
    return &stated;
}

/* The answer to a chat completion. */
static struct plan *choose(struct span text, enum kind kind)
{
    struct plan *free_one = NULL;
    for (struct plan *plan = plans; plan < plans + PLANS; plan++) {
        if (plan->bytes && plan->kind == kind && plan->text_size == text.size &&
            memcmp(plan->text, text.at, text.size) == 0)
            return plan;
        if (!plan->users && (!free_one || (free_one->bytes && !plan->bytes)))
            free_one = plan;
    }
    if (!free_one)
        return &crowded;
    free(free_one->bytes);
    free(free_one->events);
    *free_one = (struct plan){0};
    return plan_make(free_one, &usual, text, kind) ? free_one : &refused;
}

/* Answering. */

static void leave(struct connection *it)
{
    wheel_remove(&wheel, &it->timer);
    if (it->answer)
        it->answer->users--;
    close(it->fd);
    stats.connections--;
    free(it);
}

static void watch(struct connection *it, bool full)
{
    struct epoll_event event = {.events = EPOLLIN | (full ? EPOLLOUT : 0), .data.ptr = it};
    if (it->full != full && epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event) == 0)
        it->full = full;
}

/* Send what is due. False: the connection has gone. */
static bool flush(struct connection *it)
{
    struct plan *answer = it->answer;
    while (it->at < it->due) {
        ssize_t sent = send(it->fd, answer->bytes + it->at, it->due - it->at, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(it, true);
            return true;
        }
        if (sent < 0) {
            leave(it);
            return false;
        }
        it->at += (size_t)sent;
    }
    if (it->full)
        watch(it, false);
    if (it->at < answer->size)
        return true;
    answer->users--;
    it->answer = NULL;
    it->state = HEAD;
    if (it->last) {
        shutdown(it->fd, SHUT_WR);
        leave(it);
        return false;
    }
    return true;
}

static void stamp(char *digits)
{
    uint64_t now = (uint64_t)now_ns();
    for (int at = STAMP_DIGITS; at--; now /= 10)
        digits[at] = (char)('0' + now % 10);
}

/* Release the events whose time has come, each to be written by itself. A stamp may be written over
   by another stream's before a full socket has taken it: ages tell nothing then. False: gone. */
static bool release(struct connection *it, int64_t now)
{
    struct plan *answer = it->answer;
    while (it->next <= now) {
        struct event *event = &answer->events[it->released++];
        if (event->stamp && !it->full)
            stamp(answer->bytes + event->stamp);
        it->due = event->end;
        it->next += answer->pace;
        stats.events++;
        bool over = it->released == answer->number;
        if ((!it->full || over) && !flush(it))
            return false;
        if (over)
            return true;
    }
    wheel_add(&wheel, &it->timer, it->next);
    return true;
}

/* False: gone. */
static bool begin(struct connection *it)
{
    struct plan *answer = it->answer;
    it->state = ANSWERING;
    if (answer->events)
        return release(it, now_ns());
    it->due = answer->size;
    stats.events += answer->number;
    return flush(it);
}

/* The request is here whole. False: gone. */
static bool answer_it(struct connection *it)
{
    if (it->chat) {
        stats.requests++;
        enum kind kind = !it->stream ? JSON : it->usage ? STREAM_WITH_USAGE : STREAM;
        it->answer = choose((struct span){it->stub, it->stub_size}, kind);
        it->answer->users++;
    }
    it->at = it->due = it->released = 0;
    if (!it->answer->first && !it->answer->events)
        return begin(it);
    it->next = now_ns() + it->answer->first;
    it->state = WAITING;
    if (!it->answer->first)
        return begin(it);
    wheel_add(&wheel, &it->timer, it->next);
    return true;
}

/* Requests. */

static bool is_true(const char *at, const char *end)
{
    while (at < end && strchr(" \t\r\n:", *at) && *at)
        at++;
    return end - at >= 4 && memcmp(at, "true", 4) == 0;
}

/* Look for "stream": true and "stream_options": {"include_usage": true}. Text within strings has
   its quotes behind backslashes and is not taken for them. */
static void look(struct connection *it, const char *at, size_t size)
{
    static const char stream[] = "\"stream\"", options[] = "\"stream_options\"",
                      usage[] = "\"include_usage\"";
    const char *end = at + size;
    while (at < end && (at = memchr(at, '"', (size_t)(end - at)))) {
        struct span rest = {at, (size_t)(end - at)};
        if (starts(rest, stream)) {
            it->stream |= is_true(at + sizeof stream - 1, end);
        } else if (starts(rest, options)) {
            const char *found = memmem(at, rest.size < 64 ? rest.size : 64, usage, sizeof usage - 1);
            it->usage |= found && is_true(found + sizeof usage - 1, end);
        }
        at++;
    }
}

static bool read_field(struct connection *it, struct span line)
{
    struct span value;
    if (field(line, "content-length", &value)) {
        it->left = length_of(value);
        return it->left >= 0;
    }
    if (field(line, "transfer-encoding", &value)) {
        it->is_chunked = true;
        return equals(value, "chunked");
    }
    if (field(line, "connection", &value)) {
        it->last |= equals(value, "close");
    } else if (field(line, "x-stub", &value)) {
        it->stub_size = value.size < TEXT_MAX ? value.size : TEXT_MAX - 1;
        memcpy(it->stub, value.at, it->stub_size);
    } else if (field(line, "expect", &value)) {
        static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
        return send(it->fd, go_on, sizeof go_on - 1, MSG_NOSIGNAL) == sizeof go_on - 1;
    }
    return true;
}

/* Bytes of the head that `data` begins with; 0: it is not here whole, -1: it is none. */
static ssize_t read_head(struct connection *it, struct span data)
{
    struct span rest = data, request, line, path;
    if (!head_is_whole(data))
        return data.size < KEPT_MAX ? 0 : -1;
    it->last = it->chat = it->stream = it->usage = it->is_chunked = false;
    it->left = 0;
    it->stub_size = 0;
    it->chunks = (struct chunked){0};
    const char *blank = next_line(&rest, &request) ? memchr(request.at, ' ', request.size) : NULL;
    if (!blank)
        return -1;
    while (next_line(&rest, &line) && line.size)
        if (!read_field(it, line))
            return -1;
    bool post = starts(request, "POST "), get = starts(request, "GET ");
    path.at = blank + 1;
    path.size = (size_t)(request.at + request.size - path.at);
    for (size_t at = 0; at < path.size; at++)
        if (path.at[at] == ' ' || path.at[at] == '?')
            path.size = at;
    if (!ends(request, " HTTP/1.1")) {
        if (!ends(request, " HTTP/1.0"))
            return -1;
        it->last = true;
    }
    it->chat = post && ends(path, "/chat/completions");
    it->answer = NULL;
    if (!it->chat) {
        it->answer = get && ends(path, "/models")       ? &models
                     : get && equals(path, "/stub/stats") ? state()
                                                          : &unknown;
        it->answer->users++;
    }
    it->state = BODY;
    return (ssize_t)(data.size - rest.size);
}

/* Reads a body in `data`, whose first `carried` bytes were looked through before, and moves
   `data` behind what was read. False while it is not whole. */
static bool read_body(struct connection *it, char **data, size_t *size, size_t carried)
{
    char *begin = *data, *end = begin + *size, *raw = begin + carried, *text = raw;
    bool whole;
    if (it->is_chunked) {
        struct span part;
        while (raw < end && it->chunks.state != WHOLE && it->chunks.state != BROKEN) {
            raw += chunked_read(&it->chunks, raw, (size_t)(end - raw), &part);
            memmove(text, part.at, part.size);
            text += part.size;
        }
        whole = it->chunks.state == WHOLE;
    } else {
        size_t here = end - raw < it->left ? (size_t)(end - raw) : (size_t)it->left;
        it->left -= (int64_t)here;
        raw = text += here;
        whole = !it->left;
    }
    if (it->chat)
        look(it, begin, (size_t)(text - begin));
    if (!whole) {
        it->kept_size = text - begin < CARRY ? (size_t)(text - begin) : CARRY;
        memcpy(it->kept, text - it->kept_size, it->kept_size);
    }
    *data = raw;
    *size = (size_t)(end - raw);
    return whole;
}

/* Take `data`, which begins with what was kept. */
static void take(struct connection *it, char *data, size_t size)
{
    size_t carried = it->state == BODY ? it->kept_size : 0;
    it->kept_size = 0;
    while (size || it->state == BODY) {
        if (it->state == HEAD) {
            ssize_t used = read_head(it, (struct span){data, size});
            if (used < 0) {
                leave(it);
                return;
            }
            if (!used)
                break;
            data += used;
            size -= (size_t)used;
        }
        if (it->state == BODY) {
            if (!read_body(it, &data, &size, carried)) {
                if (it->chunks.state == BROKEN)
                    leave(it);
                return;
            }
            if (!answer_it(it))
                return;
            carried = 0;
        }
        if (it->state > BODY)
            break;
    }
    if (size > KEPT_MAX) {
        leave(it);
        return;
    }
    memcpy(it->kept, data, size);
    it->kept_size = size;
}

static void readable(struct connection *it)
{
    size_t kept = it->kept_size;
    size_t room = it->state > BODY ? KEPT_MAX - kept : SCRATCH;
    ssize_t got = room ? recv(it->fd, scratch + kept, room, 0) : 0;
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        leave(it);
        return;
    }
    memcpy(scratch, it->kept, kept);
    take(it, scratch, kept + (size_t)got);
}

/* Go on with what came while a request was answered. */
static void resume(struct connection *it)
{
    size_t kept = it->kept_size;
    if (it->state != HEAD || !kept)
        return;
    memcpy(scratch, it->kept, kept);
    take(it, scratch, kept);
}

static void served(struct connection *it, uint32_t events)
{
    if (it->full && events & EPOLLOUT) {
        if (flush(it))
            resume(it);
    } else {
        readable(it);
    }
}

/* What a connection has waited for has come. */
static void fire(struct timer *timer, int64_t now)
{
    struct connection *it = (struct connection *)timer;
    if (it->state == WAITING ? begin(it) : release(it, now))
        resume(it);
}

static void welcome(int listener)
{
    for (int number = 0; number < 64; number++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), yes = 1;
        if (fd < 0)
            return;
        struct connection *it = need(malloc(sizeof *it));
        memset(it, 0, offsetof(struct connection, kept));
        it->fd = fd;
        stats.connections++;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = it};
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
            leave(it);
    }
}

static int listen_at(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in place = {.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof place;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, (struct sockaddr *)&place, size) || listen(fd, 4096) ||
        getsockname(fd, (struct sockaddr *)&place, &size))
        give_up("the port");
    printf("listening on 127.0.0.1:%d\n", ntohs(place.sin_port));
    fflush(stdout);
    return fd;
}

static void add(int fd, int *tag, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = tag};
    if (fd < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
        give_up("epoll");
}

int main(int count, char **arguments)
{
    static const struct option options[] = {{"port", required_argument, 0, 'p'},
                                            {"behaviour", required_argument, 0, 'b'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    int port = 0, option;
    usual = USUAL;
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        if (option == 'p') {
            port = (int)number("port", optarg, 0, 65535);
        } else if (option == 'b') {
            if (!change(&usual, optarg, strlen(optarg))) {
                fprintf(stderr, "--behaviour: events, pace, first, pad, prompt and output are "
                                "known, not \"%s\"\n",
                        optarg);
                return 2;
            }
        } else {
            fprintf(option == 'h' ? stdout : stderr,
                    "usage: provider --port P [--behaviour \"events=9;pace=0;first=0;pad=0;"
                    "prompt=10;output=9\"]\n");
            return option == 'h' ? 0 : 2;
        }
    }
    raise_file_limit();
    fix_all();
    sigset_t stops;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    sigprocmask(SIG_BLOCK, &stops, NULL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    int timer = wheel_begin(&wheel), listener = listen_at(port);
    int stop = signalfd(-1, &stops, SFD_CLOEXEC);
    add(listener, &listener, EPOLLIN);
    add(stop, &stop, EPOLLIN);
    add(timer, &timer, EPOLLIN | EPOLLET); /* an edge needs no read to be over */
    for (;;) {
        struct epoll_event events[256];
        int here = epoll_wait(poller, events, 256, -1);
        for (int at = 0; at < here; at++) {
            void *what = events[at].data.ptr;
            if (what == &stop)
                return 0;
            if (what == &listener)
                welcome(listener);
            else if (what != &timer)
                served(what, events[at].events);
        }
        wheel_turn(&wheel, fire);
        wheel_arm(&wheel);
    }
}
