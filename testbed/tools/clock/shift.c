/*
 * A library to preload: the process sees the system's clock VENDUE_CLOCK_SHIFT_MS milliseconds later (earlier if
 * negative). The clock that only counts is as it is. Programs that ask the kernel without the C library are not moved.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long shift_ms;

__attribute__((constructor)) static void read_shift(void) {
    const char *text = getenv("VENDUE_CLOCK_SHIFT_MS");
    shift_ms = text ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return failed;
    long nanoseconds = now->tv_nsec + shift_ms % 1000 * 1000000;
    now->tv_sec += shift_ms / 1000 + (nanoseconds >= 1000000000) - (nanoseconds < 0);
    now->tv_nsec = (nanoseconds + 1000000000) % 1000000000;
    return 0;
}
