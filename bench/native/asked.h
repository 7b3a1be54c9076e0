/* What the load was told to do, and its requests, made in advance. A request is three parts, of
   which only the middle one, the key, differs from request to request. */
#ifndef ASKED_H
#define ASKED_H

#include "wire.h"

static struct {
    int port;
    size_t connections;
    double seconds, warmup;
    uint64_t requests; /* to make; 0: as many as the time allows */
    bool once, stream, include_usage;
    const char *key, *keys, *path, *stub;
    size_t prompt;
} want = {.connections = 64,
          .seconds = 5,
          .path = "/openai/chat/completions",
          .key = "sk-alice-abc123def456",
          .prompt = 200};

static struct span before_key, after_key, *keys;
static size_t keys_number;

static void make_request(void)
{
    char *body, *head, *tail;
    size_t size, head_size, tail_size;
    FILE *out = need(open_memstream(&body, &size));
    fputs("{\"messages\":[{\"role\":\"user\",\"content\":\"", out);
    for (size_t at = 0; at < want.prompt; at++)
        putc("Hello! "[at % 7], out);
    fprintf(out, "\"}],\"model\":\"gpt-3.5-turbo\"%s%s}", want.stream ? ",\"stream\":true" : "",
            want.include_usage ? ",\"stream_options\":{\"include_usage\":true}" : "");
    fclose(out);
    out = need(open_memstream(&head, &head_size));
    fprintf(out,
            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: gzip, deflate\r\n"
            "Connection: keep-alive\r\nAccept: application/json\r\n"
            "Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.54.0\r\n"
            "X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.54.0\r\n"
            "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
            "X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer ",
            want.path, want.port);
    fclose(out);
    out = need(open_memstream(&tail, &tail_size));
    fprintf(out,
            "\r\nX-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\n"
            "x-stainless-read-timeout: 600\r\n%s%s%sContent-Length: %zu\r\n\r\n%s",
            want.stub ? "x-stub: " : "", want.stub ? want.stub : "", want.stub ? "\r\n" : "", size,
            body);
    fclose(out);
    free(body);
    before_key = (struct span){head, head_size};
    after_key = (struct span){tail, tail_size};
}

static void add_key(const char *at, size_t size)
{
    for (size_t place = 0; place < size; place++)
        if (at[place] <= ' ' || at[place] > '~') {
            errno = EINVAL;
            give_up("a key");
        }
    if (keys_number % 1024 == 0)
        keys = need(realloc(keys, (keys_number + 1024) * sizeof *keys));
    keys[keys_number++] = (struct span){at, size};
}

static void read_keys(void)
{
    if (!want.keys) {
        add_key(want.key, strlen(want.key));
        return;
    }
    FILE *file = fopen(want.keys, "r");
    if (!file)
        give_up(want.keys);
    char *line = NULL;
    size_t room = 0;
    for (ssize_t size; (size = getline(&line, &room, file)) >= 0;) {
        size = (ssize_t)strcspn(line, "\r\n");
        if (size)
            add_key(need(strndup(line, (size_t)size)), (size_t)size);
    }
    free(line);
    fclose(file);
    if (!keys_number) {
        errno = EINVAL;
        give_up("a file without keys");
    }
}

#endif
