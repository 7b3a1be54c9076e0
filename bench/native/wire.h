/* What the provider and the load share: time, fields of a head, chunked bodies. */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <time.h>

#define SECOND INT64_C(1000000000)
#define STAMP_DIGITS 19
/* The id of a paced event ends in the time at which it was written, so that the reader, who has the
   same clock, can tell how long it was under way. */
#define STAMP_BEFORE "{\"id\":\"chatcmpl-"

/* Nanoseconds of the monotonic clock. */
static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

_Noreturn static inline void give_up(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "refused");
    exit(2);
}

static inline void *need(void *memory)
{
    if (!memory) {
        errno = ENOMEM;
        give_up("memory");
    }
    return memory;
}

/* A number from the command line, or the end of the program. */
static inline double number(const char *name, const char *text, double least, double most)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= least && value <= most)) {
        fprintf(stderr, "--%s: a number from %g to %g is needed, not \"%s\"\n", name, least, most,
                text);
        exit(2);
    }
    return value;
}

/* As many open files as the machine allows. */
static inline void raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

struct span {
    const char *at;
    size_t size;
};

static inline bool equals(struct span text, const char *other)
{
    return text.size == strlen(other) && strncasecmp(text.at, other, text.size) == 0;
}

static inline bool starts(struct span text, const char *other)
{
    size_t size = strlen(other);
    return text.size >= size && memcmp(text.at, other, size) == 0;
}

static inline bool ends(struct span text, const char *other)
{
    size_t size = strlen(other);
    return text.size >= size && memcmp(text.at + text.size - size, other, size) == 0;
}

/* The line that `text` begins with, without its end; `text` is moved behind it. False: no end. */
static inline bool next_line(struct span *text, struct span *line)
{
    const char *end = memchr(text->at, '\n', text->size);
    if (!end)
        return false;
    line->at = text->at;
    line->size = (size_t)(end - text->at);
    text->size -= line->size + 1;
    text->at = end + 1;
    if (line->size && line->at[line->size - 1] == '\r')
        line->size--;
    return true;
}

/* Whether the empty line that ends a head is here. memmem takes 2,000 instructions for it. */
static inline bool head_is_whole(struct span text)
{
    struct span line;
    while (next_line(&text, &line))
        if (!line.size)
            return true;
    return false;
}

/* Whether the line is the field of that name (in small letters), and its value. */
static inline bool field(struct span line, const char *name, struct span *value)
{
    size_t size = strlen(name);
    if (line.size <= size || line.at[size] != ':' || strncasecmp(line.at, name, size))
        return false;
    const char *at = line.at + size + 1, *end = line.at + line.size;
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (end > at && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    *value = (struct span){at, (size_t)(end - at)};
    return true;
}

/* A Content-Length; -1 for anything else. */
static inline int64_t length_of(struct span value)
{
    int64_t found = 0;
    if (!value.size || value.size > 15)
        return -1;
    for (size_t at = 0; at < value.size; at++) {
        if (value.at[at] < '0' || value.at[at] > '9')
            return -1;
        found = found * 10 + (value.at[at] - '0');
    }
    return found;
}

/* A chunked body on its way. Zeroed at its beginning. */
struct chunked {
    enum { CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER, WHOLE, BROKEN } state;
    bool digits;       /* a size has begun */
    bool line_is_open; /* a trailer field has begun */
    uint64_t left;     /* bytes of the chunk to come */
};

/* Reads framing, then the data of one chunk as far as it is here. The number of bytes read;
   `data` is what of them is the body's, maybe nothing. To be called again while bytes are left and
   the state is neither WHOLE nor BROKEN. */
static inline size_t chunked_read(struct chunked *body, const char *at, size_t size,
                                  struct span *data)
{
    size_t used = 0;
    *data = (struct span){at, 0};
    while (used < size) {
        char byte = at[used];
        int digit;
        switch (body->state) {
        case CHUNK_SIZE:
            digit = byte >= '0' && byte <= '9'   ? byte - '0'
                    : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
                    : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10
                                                 : -1;
            if (digit >= 0 && body->left < UINT64_C(1) << 40) {
                body->left = body->left << 4 | (uint64_t)digit;
                body->digits = true;
                used++;
            } else if (digit < 0 && body->digits) {
                body->state = CHUNK_EXTENSION;
            } else {
                body->state = BROKEN;
                return used;
            }
            break;
        case CHUNK_EXTENSION:
            used++;
            if (byte == '\n') {
                body->state = body->left ? CHUNK_DATA : TRAILER;
                body->digits = body->line_is_open = false;
            }
            break;
        case CHUNK_DATA:
            data->at = at + used;
            data->size = size - used < body->left ? size - used : (size_t)body->left;
            body->left -= data->size;
            if (!body->left)
                body->state = CHUNK_END;
            return used + data->size;
        case CHUNK_END:
            used++;
            if (byte == '\n') {
                body->state = CHUNK_SIZE;
            } else if (byte != '\r') {
                body->state = BROKEN;
                return used;
            }
            break;
        case TRAILER:
            used++;
            if (byte == '\n') {
                if (!body->line_is_open) {
                    body->state = WHOLE;
                    return used;
                }
                body->line_is_open = false;
            } else if (byte != '\r') {
                body->line_is_open = true;
            }
            break;
        default:
            return used;
        }
    }
    return used;
}

#endif
