/* Answers of the provider, made once for each text of `x-stub` and kind of answer.

   The shapes are those of fastgw/demo/answers.py, and the settings mean what
   fastgw/demo/behaviour.py says, as far as they are known here. */
#ifndef PLAN_H
#define PLAN_H

#include "wire.h"

#define TEXT_MAX 256
#define PLANS 64
#define PLAN_BYTES_MAX (UINT64_C(64) << 20)

enum kind { JSON, STREAM, STREAM_WITH_USAGE };

struct behaviour {
    double events; /* words of the answer; of a stream, its deltas */
    double pace;   /* seconds between two events; 0 sends all at once */
    double first;  /* seconds before the answer begins */
    double pad;    /* bytes of padding in each event, or in the answer */
    double prompt; /* reported input tokens */
    double output; /* reported output tokens; -1: as many as events */
};

static const struct behaviour USUAL = {.events = 9, .prompt = 10, .output = -1};

/* Where an event ends in the bytes of its plan, and where the digits of its stamp are; 0: it has
   none. */
struct event {
    size_t end, stamp;
};

struct plan {
    char text[TEXT_MAX];
    size_t text_size;
    enum kind kind;
    unsigned users;       /* connections that are answered by it: it is not to be replaced */
    char *bytes;          /* head and body, framed */
    size_t size;
    struct event *events; /* NULL where nothing is paced */
    size_t number;
    int64_t pace, first;  /* nanoseconds */
};

/* Changes what `key=value;key=value` names. False for a key or a value that is none. */
static inline bool change(struct behaviour *behaviour, const char *from, size_t size)
{
    char text[TEXT_MAX];
    if (size >= sizeof text)
        return false;
    memcpy(text, from, size);
    text[size] = 0;
    struct {
        const char *name;
        double *value, most;
    } settings[] = {
        {"events", &behaviour->events, 1e6},   {"pace", &behaviour->pace, 3600},
        {"first", &behaviour->first, 3600},    {"pad", &behaviour->pad, 1e7},
        {"prompt", &behaviour->prompt, 1e12},  {"output", &behaviour->output, 1e12},
        {"completion", &behaviour->output, 1e12},
    };
    char *rest = text;
    for (char *part; (part = strtok_r(rest, "; \t", &rest));) {
        char *value = strchr(part, '='), *end;
        size_t at = 0, count = sizeof settings / sizeof *settings;
        if (!value)
            return false;
        *value++ = 0;
        while (at < count && strcmp(settings[at].name, part))
            at++;
        double found = strtod(value, &end);
        if (at == count || end == value || *end || !(found >= 0 && found <= settings[at].most))
            return false;
        *settings[at].value = found;
    }
    return true;
}

static inline const char *word(size_t at)
{
    static const char *words[] = {" Hello!", " How",  " can",  " I",     " help",
                                  " you",    " with", " that", " today?"};
    return words[at % 9] + (at == 0);
}

#define ANSWER_HEAD                                                                                \
    "HTTP/1.1 200 OK\r\ndate: Tue, 24 Nov 2026 12:00:00 GMT\r\ncontent-type: %s\r\n"               \
    "x-request-id: req_stub\r\nopenai-processing-ms: 5\r\n"                                        \
    "x-ratelimit-limit-requests: 10000\r\n"

static inline void put_usage(FILE *out, const struct behaviour *behaviour)
{
    long long prompt = (long long)behaviour->prompt;
    long long output = (long long)(behaviour->output < 0 ? behaviour->events : behaviour->output);
    fprintf(out,
            "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
            "\"prompt_tokens_details\":{\"cached_tokens\":0},"
            "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
            prompt, output, prompt + output);
}

static inline void put_padding(FILE *out, const char *name, size_t size)
{
    if (!size)
        return;
    fprintf(out, ",\"%s\":\"", name);
    while (size--)
        putc('x', out);
    putc('"', out);
}

/* The text that was put into a memory stream, ended by a zero that does not count. */
static inline char *taken(FILE *out, char **text)
{
    if (fclose(out))
        give_up("memory");
    return *text;
}

static inline void plan_json(struct plan *plan, const struct behaviour *behaviour)
{
    char *body;
    size_t size;
    FILE *out = need(open_memstream(&body, &size));
    fputs("{\"id\":\"chatcmpl-stub\",\"object\":\"chat.completion\",\"created\":1700000000,"
          "\"model\":\"gpt-3.5-turbo\",\"choices\":[{\"index\":0,\"finish_reason\":\"stop\","
          "\"logprobs\":null,\"message\":{\"role\":\"assistant\",\"content\":\"",
          out);
    for (size_t at = 0; at < (size_t)behaviour->events; at++)
        fputs(word(at), out);
    fputs("\"}}],\"usage\":", out);
    put_usage(out, behaviour);
    put_padding(out, "pad", (size_t)behaviour->pad);
    fputc('}', out);
    taken(out, &body);
    out = need(open_memstream(&plan->bytes, &plan->size));
    fprintf(out, ANSWER_HEAD "content-length: %zu\r\n\r\n%s", "application/json", size, body);
    taken(out, &plan->bytes);
    free(body);
}

static inline void put_event(FILE *out, const struct plan *plan, const struct behaviour *behaviour,
                             size_t at)
{
    size_t deltas = (size_t)behaviour->events;
    bool asked = plan->kind == STREAM_WITH_USAGE;
    if (at == deltas + 1 + asked) {
        fputs("data: [DONE]\n\n", out);
        return;
    }
    fprintf(out,
            "data: " STAMP_BEFORE "%s\",\"object\":\"chat.completion.chunk\","
            "\"created\":1700000000,\"model\":\"gpt-3.5-turbo\",\"choices\":[",
            plan->events ? "0000000000000000000" : "stub");
    if (at < deltas)
        fprintf(out, "{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"finish_reason\":null}]",
                at ? "" : "\"role\":\"assistant\",", word(at));
    else if (at == deltas)
        fputs("{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]", out);
    else
        fputs("]", out);
    if (at > deltas) {
        fputs(",\"usage\":", out);
        put_usage(out, behaviour);
    } else if (asked) {
        fputs(",\"usage\":null", out);
    }
    put_padding(out, "obfuscation", (size_t)behaviour->pad);
    fputs("}\n\n", out);
}

static inline void plan_stream(struct plan *plan, const struct behaviour *behaviour)
{
    plan->number = (size_t)behaviour->events + 2 + (plan->kind == STREAM_WITH_USAGE);
    if (plan->pace)
        plan->events = need(calloc(plan->number, sizeof *plan->events));
    FILE *out = need(open_memstream(&plan->bytes, &plan->size));
    fprintf(out, ANSWER_HEAD "transfer-encoding: chunked\r\n\r\n", "text/event-stream");
    for (size_t at = 0; at < plan->number; at++) {
        char *text;
        size_t size;
        FILE *event = need(open_memstream(&text, &size));
        put_event(event, plan, behaviour, at);
        taken(event, &text);
        fprintf(out, "%zx\r\n", size);
        long begin = ftell(out);
        fprintf(out, "%s\r\n%s", text, at + 1 == plan->number ? "0\r\n\r\n" : "");
        free(text);
        if (plan->events) {
            plan->events[at].end = (size_t)ftell(out);
            if (at + 1 < plan->number)
                plan->events[at].stamp = (size_t)begin + sizeof "data: " STAMP_BEFORE - 1;
        }
    }
    taken(out, &plan->bytes);
}

/* Fills an empty plan. False where the text asks for what this provider has not. */
static inline bool plan_make(struct plan *plan, const struct behaviour *usual, struct span text,
                             enum kind kind)
{
    struct behaviour behaviour = *usual;
    if (!change(&behaviour, text.at, text.size) ||
        (behaviour.events + 3) * (behaviour.pad + 300) > (double)PLAN_BYTES_MAX)
        return false;
    memcpy(plan->text, text.at, text.size);
    plan->text_size = text.size;
    plan->kind = kind;
    plan->first = (int64_t)(behaviour.first * 1e9);
    if (kind == JSON) {
        plan_json(plan, &behaviour);
    } else {
        plan->pace = (int64_t)(behaviour.pace * 1e9);
        plan_stream(plan, &behaviour);
    }
    return true;
}

#endif
