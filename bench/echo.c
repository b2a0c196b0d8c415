/*
 * echo.c - a thread that answers each write to one eventfd with a write to another: the floor under every cross-thread
 * round trip (bench/aio_bench.py compiles and loads it). The thread blocks in read and ends when it reads 1000 or more.
 */
#include <pthread.h>
#include <stdint.h>
#include <sys/eventfd.h>

int echo_start(int to, int from);

static void *echo_run(void *arg) {
    int to = (int)((uintptr_t)arg >> 16), from = (int)((uintptr_t)arg & 0xffff);
    eventfd_t value;
    while (eventfd_read(to, &value) == 0 && value < 1000)
        eventfd_write(from, 1);
    return NULL;
}

/* File descriptors below 65536. 0, or a positive errno. */
int echo_start(int to, int from) {
    pthread_t thread;
    int result = pthread_create(&thread, NULL, echo_run, (void *)(((uintptr_t)to << 16) | (uintptr_t)from));
    if (result == 0)
        pthread_detach(thread);
    return result;
}
