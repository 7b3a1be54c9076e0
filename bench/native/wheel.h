/* Timers in a wheel that has a slot for each millisecond; a timer of another round stays in its slot
   until its time has come. Adding and removing cost the same however many there are. */
#ifndef WHEEL_H
#define WHEEL_H

#include <sys/timerfd.h>

#include "wire.h"

#define SLOTS 4096
#define MILLISECOND INT64_C(1000000)

struct timer {
    struct timer *before, *after; /* in its slot */
    int64_t tick;                 /* the millisecond that it is due in; 0: it is in no slot */
};

struct wheel {
    int fd; /* of the kernel's timer */
    struct timer *slots[SLOTS];
    uint64_t occupied[SLOTS / 64];
    int64_t turned; /* the latest millisecond that was served */
    int64_t armed;  /* the one that the kernel wakes us in */
};

static inline int wheel_begin(struct wheel *wheel)
{
    wheel->turned = now_ns() / MILLISECOND;
    return wheel->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
}

/* `due`: nanoseconds. A timer is never early. */
static inline void wheel_add(struct wheel *wheel, struct timer *timer, int64_t due)
{
    timer->tick = (due + MILLISECOND - 1) / MILLISECOND;
    if (timer->tick <= wheel->turned)
        timer->tick = wheel->turned + 1;
    size_t slot = (size_t)timer->tick % SLOTS;
    timer->before = NULL;
    timer->after = wheel->slots[slot];
    if (timer->after)
        timer->after->before = timer;
    wheel->slots[slot] = timer;
    wheel->occupied[slot / 64] |= UINT64_C(1) << slot % 64;
}

static inline void wheel_remove(struct wheel *wheel, struct timer *timer)
{
    size_t slot = (size_t)timer->tick % SLOTS;
    if (!timer->tick)
        return;
    if (timer->after)
        timer->after->before = timer->before;
    if (timer->before)
        timer->before->after = timer->after;
    else if (!(wheel->slots[slot] = timer->after))
        wheel->occupied[slot / 64] &= ~(UINT64_C(1) << slot % 64);
    timer->tick = 0;
}

/* Take out what is due and call `fire` for it, which may add the timer again and may free it, but
   no other timer. */
static inline void wheel_turn(struct wheel *wheel, void (*fire)(struct timer *timer, int64_t now))
{
    int64_t now = now_ns(), tick = now / MILLISECOND;
    if (wheel->turned < tick - SLOTS)
        wheel->turned = tick - SLOTS;
    for (; wheel->turned < tick; wheel->turned++) {
        struct timer *after;
        for (struct timer *timer = wheel->slots[(size_t)(wheel->turned + 1) % SLOTS]; timer;
             timer = after) {
            after = timer->after;
            if (timer->tick > wheel->turned + 1)
                continue;
            wheel_remove(wheel, timer);
            fire(timer, now);
        }
    }
}

/* Have the kernel wake us in the next millisecond whose slot is not empty. */
static inline void wheel_arm(struct wheel *wheel)
{
    size_t first = (size_t)(wheel->turned + 1) % SLOTS;
    for (size_t step = 0; step <= SLOTS / 64; step++) {
        size_t word = (first / 64 + step) % (SLOTS / 64);
        uint64_t bits = wheel->occupied[word];
        if (step == 0)
            bits &= ~UINT64_C(0) << first % 64;
        if (!bits)
            continue;
        size_t slot = word * 64 + (size_t)__builtin_ctzll(bits);
        int64_t tick = wheel->turned + 1 + (int64_t)((slot + SLOTS - first) % SLOTS);
        if (tick != wheel->armed) {
            struct itimerspec when = {.it_value = {tick / 1000, tick % 1000 * MILLISECOND}};
            wheel->armed = tick;
            timerfd_settime(wheel->fd, TFD_TIMER_ABSTIME, &when, NULL);
        }
        return;
    }
}

#endif
