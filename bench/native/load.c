/* A closed loop of connections: each asks again as soon as it has its answer. HTTP/1.1, one thread.

   Requests look like those of the OpenAI SDK; where there are several keys, each request takes the
   next one. Prints one JSON object, which tally.h describes; times in milliseconds:
   latency      from the request to the last byte of its answer
   first_byte   from the request to the first byte
   gap          between the events of a stream as they are read
   age          of a paced event of our provider, from its send to our recv; not by way of a gateway
                that writes events anew
   Ends with 1 where nothing succeeded. */
#include "asked.h"
#include "tally.h"

#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define HEAD_MAX 8192
#define LINE_KEPT 64 /* of a line of a stream: what tells [DONE] and the stamp */
#define SCRATCH (256 << 10)
#define OPENED_AT_ONCE 64 /* a listen queue has an end */
#define RETRY (SECOND / 10)
#define PATIENCE 60 /* seconds for what is under way when the time is over */

struct connection {
    int fd; /* -1: not open */
    bool busy, watched; /* a request is under way; epoll tells when it can be sent on */
    enum { HEAD, LENGTH, CHUNKED, TO_THE_END } state;
    bool close, stream, answered;
    int status;
    size_t key, sent;
    int64_t began, retry; /* of the request; when a closed one opens again, 0: never */
    int64_t left;
    struct chunked chunks;
    int64_t event;  /* when the latest event was read; 0: none was */
    uint64_t stamp; /* of it */
    size_t line_size, kept_size;
    char line[LINE_KEPT];
    char kept[HEAD_MAX]; /* a head that is not here whole */
};

static int poller;
static struct connection *connections;
static size_t opened, open_now, retrying;
static uint64_t issued;
static bool stopping;
static volatile sig_atomic_t told_to_stop;
static char scratch[HEAD_MAX + SCRATCH];
static struct tally tally, warm;
static struct texts texts;

/* Connections. */

static bool more_to_ask(void)
{
    return !stopping && (!want.requests || issued < want.requests);
}

static void shut(struct connection *it, int64_t retry)
{
    close(it->fd);
    it->fd = -1;
    it->busy = false;
    open_now--;
    if (retry && !want.once && more_to_ask()) {
        it->retry = retry;
        retrying++;
    }
}

static void fail(struct connection *it, const char *what)
{
    keep_text(&texts, what, (struct span){0});
    tally.errors++;
    tally.broken++;
    shut(it, now_ns() + RETRY);
}

static void watch(struct connection *it, bool write)
{
    struct epoll_event event = {.events = EPOLLIN | (write ? EPOLLOUT : 0), .data.ptr = it};
    if (it->watched != write && epoll_ctl(poller, EPOLL_CTL_MOD, it->fd, &event) == 0)
        it->watched = write;
}

/* Send what the socket takes of the request. False: the connection has gone. */
static bool push(struct connection *it)
{
    struct span parts[] = {before_key, keys[it->key], after_key};
    size_t total = parts[0].size + parts[1].size + parts[2].size;
    while (it->sent < total) {
        struct iovec pieces[3];
        struct msghdr message = {.msg_iov = pieces};
        size_t skip = it->sent;
        for (int at = 0; at < 3; at++) {
            if (skip >= parts[at].size) {
                skip -= parts[at].size;
                continue;
            }
            pieces[message.msg_iovlen++] =
                (struct iovec){(char *)parts[at].at + skip, parts[at].size - skip};
            skip = 0;
        }
        ssize_t sent = sendmsg(it->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            watch(it, true);
            return true;
        }
        if (sent < 0) {
            fail(it, strerror(errno));
            return false;
        }
        it->sent += (size_t)sent;
    }
    if (it->watched)
        watch(it, false);
    return true;
}

/* It could not be opened, which counts as a request, so that a number of them has an end. */
static void dial_failed(struct connection *it, int error)
{
    if (!more_to_ask()) {
        shut(it, 0);
        return;
    }
    issued++;
    fail(it, strerror(error));
}

/* Make the next request. False: the connection has gone. */
static bool ask(struct connection *it)
{
    if (!more_to_ask()) {
        shut(it, 0);
        return false;
    }
    it->key = issued++ % keys_number;
    it->busy = true;
    it->state = HEAD;
    it->stream = it->answered = false;
    it->status = 0;
    it->sent = it->line_size = it->kept_size = 0;
    it->event = 0;
    it->stamp = 0;
    it->began = now_ns();
    return push(it);
}

static void dial(struct connection *it)
{
    struct sockaddr_in place = {.sin_family = AF_INET,
                                .sin_port = htons((uint16_t)want.port),
                                .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int yes = 1;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = it};
    it->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (it->fd < 0)
        give_up("a socket");
    it->retry = 0;
    it->busy = false;
    it->watched = true;
    open_now++;
    setsockopt(it->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if ((connect(it->fd, (struct sockaddr *)&place, sizeof place) && errno != EINPROGRESS) ||
        epoll_ctl(poller, EPOLL_CTL_ADD, it->fd, &event))
        dial_failed(it, errno);
}

/* Answers. */

/* A line of a stream has ended. */
static void line_ended(struct connection *it, int64_t now)
{
    static const char before[] = "data: " STAMP_BEFORE;
    struct span line = {it->line, it->line_size};
    it->line_size = 0;
    if (!starts(line, "data:"))
        return;
    tally.events++;
    if (it->event)
        note(&tally.gap, now - it->event);
    it->event = now;
    if (starts(line, "data: [DONE]"))
        tally.done++;
    if (line.size < sizeof before + STAMP_DIGITS || !starts(line, before))
        return;
    uint64_t stamp = 0;
    for (const char *at = line.at + sizeof before - 1, *end = at + STAMP_DIGITS; at < end; at++) {
        if (*at < '0' || *at > '9')
            return;
        stamp = stamp * 10 + (uint64_t)(*at - '0');
    }
    if (stamp && stamp != it->stamp) /* some gateways write one id into all events */
        note(&tally.age, now - (int64_t)stamp);
    it->stamp = stamp;
}

static void body_read(struct connection *it, struct span data, int64_t now)
{
    if (it->status / 100 != 2 && it->kept_size < HEAD_MAX / 2) {
        size_t size = data.size < HEAD_MAX / 2 ? data.size : HEAD_MAX / 2;
        memcpy(it->kept + it->kept_size, data.at, size);
        it->kept_size += size;
    }
    while (it->stream && data.size) {
        const char *end = memchr(data.at, '\n', data.size);
        size_t here = end ? (size_t)(end - data.at) : data.size;
        size_t room = LINE_KEPT - it->line_size;
        memcpy(it->line + it->line_size, data.at, here < room ? here : room);
        it->line_size += here < room ? here : room;
        if (!end)
            return;
        line_ended(it, now);
        data.at = end + 1;
        data.size -= here + 1;
    }
}

/* The answer is here whole. False: the connection has gone. */
static bool finish(struct connection *it, int64_t now)
{
    tally.requests++;
    tally.statuses[it->status]++;
    note(&tally.latency, now - it->began);
    if (it->status / 100 == 2) {
        tally.succeeded++;
        tally.streams += it->stream;
    } else {
        char text[16];
        snprintf(text, sizeof text, "%d: ", it->status);
        tally.errors++;
        keep_text(&texts, text, (struct span){it->kept, it->kept_size});
    }
    it->busy = false;
    if (want.once || it->close || it->watched || !more_to_ask()) {
        shut(it, now);
        return false;
    }
    return ask(it);
}

/* Bytes of the head that `data` begins with; 0: it is not here whole, -1: it is none. */
static ssize_t read_head(struct connection *it, struct span data)
{
    struct span rest = data, line, value;
    if (!head_is_whole(data))
        return data.size < HEAD_MAX ? 0 : -1;
    if (!next_line(&rest, &line) || line.size < 12 || !starts(line, "HTTP/1.") || line.at[8] != ' ')
        return -1;
    it->status = 0;
    for (int at = 9; at < 12; at++) {
        if (line.at[at] < '0' || line.at[at] > '9')
            return -1;
        it->status = it->status * 10 + line.at[at] - '0';
    }
    it->close = line.at[7] == '0';
    it->state = TO_THE_END;
    it->chunks = (struct chunked){0};
    while (next_line(&rest, &line) && line.size) {
        if (field(line, "content-length", &value) && it->state != CHUNKED) {
            it->state = LENGTH;
            it->left = length_of(value);
            if (it->left < 0)
                return -1;
        } else if (field(line, "transfer-encoding", &value)) {
            if (!equals(value, "chunked"))
                return -1;
            it->state = CHUNKED;
        } else if (field(line, "connection", &value)) {
            it->close |= equals(value, "close");
        } else if (field(line, "content-type", &value)) {
            it->stream = starts(value, "text/event-stream");
        }
    }
    if (it->status / 100 == 1) {
        it->state = HEAD;
    } else if (it->status == 204 || it->status == 304) {
        it->state = LENGTH;
        it->left = 0;
    }
    it->kept_size = 0;
    return (ssize_t)(data.size - rest.size);
}

static void take(struct connection *it, struct span data, int64_t now)
{
    bool whole = false;
    while (it->state == HEAD && data.size) {
        ssize_t used = read_head(it, data);
        if (used < 0) {
            fail(it, "an answer that is no HTTP");
            return;
        }
        if (!used) {
            memcpy(it->kept, data.at, data.size);
            it->kept_size = data.size;
            return;
        }
        data.at += used;
        data.size -= (size_t)used;
    }
    if (it->state == LENGTH) {
        size_t here = data.size < (uint64_t)it->left ? data.size : (size_t)it->left;
        body_read(it, (struct span){data.at, here}, now);
        it->left -= (int64_t)here;
        data.size -= here;
        whole = !it->left;
    } else if (it->state == CHUNKED) {
        while (data.size && it->chunks.state != WHOLE) {
            struct span part;
            size_t used = chunked_read(&it->chunks, data.at, data.size, &part);
            if (it->chunks.state == BROKEN) {
                fail(it, "a chunk that is none");
                return;
            }
            body_read(it, part, now);
            data.at += used;
            data.size -= used;
        }
        whole = it->chunks.state == WHOLE;
    } else if (it->state == TO_THE_END) {
        body_read(it, data, now);
        return;
    }
    if (whole && data.size)
        fail(it, "bytes behind an answer");
    else if (whole)
        finish(it, now);
}

static void readable(struct connection *it)
{
    size_t kept = it->state == HEAD ? it->kept_size : 0;
    ssize_t got = recv(it->fd, scratch + kept, SCRATCH, 0);
    int64_t now = now_ns();
    if (got < 0 && errno == EAGAIN)
        return;
    if (got < 0) {
        fail(it, strerror(errno));
        return;
    }
    if (got == 0) {
        it->close = true;
        if (it->busy && it->state == TO_THE_END)
            finish(it, now);
        else
            fail(it, it->answered ? "an answer that was cut" : "closed without an answer");
        return;
    }
    if (!it->busy) {
        fail(it, "an answer to no request");
        return;
    }
    tally.bytes += (uint64_t)got;
    if (!it->answered) {
        it->answered = true;
        note(&tally.first_byte, now - it->began);
    }
    memcpy(scratch, it->kept, kept);
    take(it, (struct span){scratch, kept + (size_t)got}, now);
}

static void served(struct connection *it, uint32_t events)
{
    int error = 0;
    socklen_t size = sizeof error;
    if (!it->busy && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) { /* it was dialled */
        if (getsockopt(it->fd, SOL_SOCKET, SO_ERROR, &error, &size) || error) {
            dial_failed(it, error);
        } else {
            tally.connected++;
            ask(it);
        }
        return;
    }
    if (it->watched && events & EPOLLOUT && !push(it))
        return;
    if (events & ~(uint32_t)EPOLLOUT)
        readable(it);
}

/* The run. */

static void dial_again(int64_t now)
{
    for (size_t at = 0; at < opened && retrying; at++) {
        struct connection *it = connections + at;
        if (it->fd >= 0 || !it->retry || (it->retry > now && more_to_ask()))
            continue;
        retrying--;
        it->retry = 0;
        if (more_to_ask())
            dial(it);
    }
}

static void told(int number)
{
    (void)number;
    told_to_stop = 1;
}

static double cpu_seconds(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static int wait_for(int64_t now, int64_t until)
{
    if (opened < want.connections)
        return 1;
    if (retrying)
        return 10;
    return until > now ? (int)((until - now) / 1000000 % 1000) + 1 : 1;
}

static int run(void)
{
    int64_t now = now_ns(), began = now, last = now;
    bool timed = !want.once && !want.requests, warming = want.warmup > 0;
    int64_t warm_until = now + (int64_t)(want.warmup * 1e9);
    int64_t until = timed ? warm_until + (int64_t)(want.seconds * 1e9) : INT64_MAX;
    double cpu = cpu_seconds();
    while ((opened < want.connections && more_to_ask()) || open_now || retrying) {
        for (int number = 0; number < OPENED_AT_ONCE && opened < want.connections; number++)
            if (more_to_ask())
                dial(connections + opened++);
        struct epoll_event events[256];
        int here = epoll_wait(poller, events, 256, wait_for(now, warming ? warm_until : until));
        for (int at = 0; at < here; at++)
            served(events[at].data.ptr, events[at].events);
        now = now_ns();
        if (here > 0)
            last = now;
        if (warming && now >= warm_until) {
            warming = false;
            warm = tally;
            tally = (struct tally){0};
            began = now;
            cpu = cpu_seconds();
        }
        if (told_to_stop || (stopping && now >= until))
            break;
        if (now >= until) {
            stopping = true;
            until = now + PATIENCE * SECOND;
        }
        if (retrying)
            dial_again(now);
    }
    cpu = cpu_seconds() - cpu;
    last = last > began ? last : began + 1;
    print_tally(&tally, &warm, &texts, open_now, (double)(last - began) / 1e9, cpu);
    return tally.succeeded + warm.succeeded ? 0 : 1;
}

int main(int count, char **arguments)
{
    static const struct option options[] = {{"port", required_argument, 0, 'p'},
                                            {"connections", required_argument, 0, 'c'},
                                            {"seconds", required_argument, 0, 's'},
                                            {"requests", required_argument, 0, 'n'},
                                            {"once", no_argument, 0, 'o'},
                                            {"warmup", required_argument, 0, 'w'},
                                            {"stream", no_argument, 0, 'e'},
                                            {"include-usage", no_argument, 0, 'u'},
                                            {"keys", required_argument, 0, 'f'},
                                            {"key", required_argument, 0, 'k'},
                                            {"path", required_argument, 0, 'a'},
                                            {"body-bytes", required_argument, 0, 'b'},
                                            {"stub", required_argument, 0, 't'},
                                            {"help", no_argument, 0, 'h'},
                                            {0}};
    int option;
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        switch (option) {
        case 'p': want.port = (int)number("port", optarg, 1, 65535); break;
        case 'c': want.connections = (size_t)number("connections", optarg, 1, 1e6); break;
        case 's': want.seconds = number("seconds", optarg, 0, 1e6); break;
        case 'n': want.requests = (uint64_t)number("requests", optarg, 1, 1e12); break;
        case 'o': want.once = true; break;
        case 'w': want.warmup = number("warmup", optarg, 0, 1e6); break;
        case 'e': want.stream = true; break;
        case 'u': want.include_usage = true; break;
        case 'f': want.keys = optarg; break;
        case 'k': want.key = optarg; break;
        case 'a': want.path = optarg; break;
        case 'b': want.prompt = (size_t)number("body-bytes", optarg, 0, 1e9); break;
        case 't': want.stub = optarg; break;
        default:
            fprintf(option == 'h' ? stdout : stderr,
                    "usage: load --port P [--connections 64] [--seconds 5 | --requests N | --once] "
                    "[--warmup S]\n            [--stream] [--include-usage] [--key K | --keys FILE] "
                    "[--path /openai/chat/completions]\n            [--body-bytes 200] "
                    "[--stub \"events=9;pace=0.02\"]\n");
            return option == 'h' ? 0 : 2;
        }
    }
    if (!want.port || optind < count) {
        fprintf(stderr, "load: --port is needed, see --help\n");
        return 2;
    }
    raise_file_limit();
    read_keys();
    make_request();
    connections = need(calloc(want.connections, sizeof *connections));
    for (size_t at = 0; at < want.connections; at++)
        connections[at].fd = -1;
    struct sigaction stop = {.sa_handler = told};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        give_up("epoll");
    return run();
}
