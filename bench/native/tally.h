/* What the load counts, and how it is printed. Times are kept in log-linear buckets: 64 for each
   power of two, so that a percentile is off by at most 1.6 %. */
#ifndef TALLY_H
#define TALLY_H

#include "wire.h"

#define FINE 6
#define BUCKETS ((64 - FINE + 1) << FINE)
#define TEXTS 5
#define TEXT_SIZE 200

struct histogram {
    uint64_t number;
    uint32_t buckets[BUCKETS];
};

static inline void note(struct histogram *histogram, int64_t nanoseconds)
{
    uint64_t value = nanoseconds < 0 ? 0 : (uint64_t)nanoseconds;
    int shift = 63 - __builtin_clzll(value | 1) - FINE;
    shift = shift < 0 ? 0 : shift;
    histogram->buckets[((uint64_t)shift << FINE) + (value >> shift)]++;
    histogram->number++;
}

/* Milliseconds below which that share of the values lie; 0 where there is none. */
static inline double percentile(const struct histogram *histogram, double share)
{
    uint64_t rank = (uint64_t)(share * (double)histogram->number), seen = 0;
    for (uint64_t at = 0; at < BUCKETS; at++) {
        seen += histogram->buckets[at];
        if (seen > rank) {
            uint64_t shift = at >> FINE ? (at >> FINE) - 1 : 0;
            double least = (double)((at - (shift << FINE)) << shift);
            return (least + (double)(UINT64_C(1) << shift) / 2) / 1e6;
        }
    }
    return 0;
}

struct tally {
    uint64_t requests;   /* answers that came to their end, of any status */
    uint64_t errors;     /* statuses other than 2xx, and what came to no end */
    uint64_t succeeded;  /* answers 2xx that came to their end */
    uint64_t broken;     /* connections that failed, were cut or spoke no HTTP */
    uint64_t events;     /* `data:` lines of streams, [DONE] among them */
    uint64_t streams;    /* answers 2xx that were streams */
    uint64_t done;       /* [DONE] */
    uint64_t bytes;      /* received, heads too */
    uint64_t connected;
    uint64_t statuses[1000];
    struct histogram latency, first_byte, gap, age;
};

struct texts {
    int number;
    char text[TEXTS][TEXT_SIZE];
};

/* Keep what went wrong first. */
static inline void keep_text(struct texts *texts, const char *what, struct span more)
{
    if (texts->number < TEXTS)
        snprintf(texts->text[texts->number++], TEXT_SIZE, "%s%.*s", what,
                 (int)(more.size < TEXT_SIZE ? more.size : TEXT_SIZE), more.at ? more.at : "");
}

static inline void print_text(const char *text)
{
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text < ' ' || *text > '~' ? ' ' : *text);
    }
    putchar('"');
}

static inline void print_times(const char *name, const struct histogram *histogram)
{
    printf(",\"%s_p50\":%.4f,\"%s_p99\":%.4f", name, percentile(histogram, 0.5), name,
           percentile(histogram, 0.99));
}

/* One JSON object. `seconds` of wall time and of our own CPU. */
static inline void print_tally(const struct tally *tally, const struct tally *warm,
                               const struct texts *texts, uint64_t unfinished, double seconds,
                               double cpu)
{
    printf("{\"requests\":%llu,\"errors\":%llu,\"events\":%llu,\"seconds\":%.3f,"
           "\"requests_per_second\":%.1f,\"events_per_second\":%.1f",
           (unsigned long long)tally->requests, (unsigned long long)tally->errors,
           (unsigned long long)tally->events, seconds, (double)tally->requests / seconds,
           (double)tally->events / seconds);
    print_times("latency", &tally->latency);
    print_times("first_byte", &tally->first_byte);
    print_times("gap", &tally->gap);
    print_times("age", &tally->age);
    printf(",\"statuses\":{");
    for (int status = 0, number = 0; status < 1000; status++)
        if (tally->statuses[status])
            printf("%s\"%d\":%llu", number++ ? "," : "", status,
                   (unsigned long long)tally->statuses[status]);
    printf("},\"succeeded\":%llu,\"broken\":%llu,\"streams\":%llu,\"done\":%llu,\"bytes\":%llu,"
           "\"connected\":%llu,\"unfinished\":%llu,\"warmup_requests\":%llu,"
           "\"warmup_events\":%llu,\"cpu_seconds\":%.4f,\"cpu_share\":%.4f,\"first_errors\":[",
           (unsigned long long)tally->succeeded, (unsigned long long)tally->broken,
           (unsigned long long)tally->streams, (unsigned long long)tally->done,
           (unsigned long long)tally->bytes,
           (unsigned long long)(tally->connected + warm->connected),
           (unsigned long long)unfinished, (unsigned long long)warm->requests,
           (unsigned long long)warm->events, cpu, cpu / seconds);
    for (int at = 0; at < texts->number; at++) {
        if (at)
            putchar(',');
        print_text(texts->text[at]);
    }
    printf("]}\n");
}

#endif
