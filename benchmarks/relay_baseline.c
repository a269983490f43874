/* Baseline and load for bench_relay.py; it compiles this file with `cc -O2`.
 *
 *   relay_baseline relay LEGS OWN_BASE PEER_BASE PACE_US
 *     An epoll relay: leg i listens on OWN_BASE+2i, is connected to PEER_BASE+2i, and forwards to
 *     leg i^1 with SSRC, sequence and timestamp rewritten. PACE_US > 0: sleep so long after a round.
 *     Prints "ready", serves until SIGTERM.
 *
 *   relay_baseline load LEGS OWN_BASE SECONDS < ports
 *     Phones: leg i sends 20 ms PCMU packets from OWN_BASE+2i to the i-th port read from stdin, all
 *     legs spread evenly over the 20 ms. Delays are taken with kernel receive timestamps. The first
 *     second warms up and is not measured. Prints "start" and "stop" around the measured time, then
 *     one line: sent received p50_us p95_us p99_us max_us.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PACKET 172
#define MAX_LEGS 4096

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int open_connected(int own, int peer) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = loopback(own), b = loopback(peer);
    if (fd < 0 || bind(fd, (void *)&a, sizeof a) || connect(fd, (void *)&b, sizeof b)) die("socket");
    return fd;
}

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static _Noreturn void relay(int legs, int own, int peer, int pace_us) {
    static int sockets[MAX_LEGS];
    static struct epoll_event events[512];
    int epoll = epoll_create1(0);
    for (int i = 0; i < legs; i++) {
        sockets[i] = open_connected(own + 2 * i, peer + 2 * i);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[i], &event)) die("epoll_ctl");
    }
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, 512, -1);
        for (int k = 0; k < ready; k++) {
            uint8_t data[2048];
            int i = events[k].data.u32;
            ssize_t size = recv(sockets[i], data, sizeof data, 0);
            if (size < 12 || data[0] >> 6 != 2) continue;
            uint16_t sequence;
            uint32_t timestamp, ssrc = htonl(1000 + i);
            memcpy(&sequence, data + 2, 2);
            sequence = htons(ntohs(sequence) + 17 * i);
            memcpy(data + 2, &sequence, 2);
            memcpy(&timestamp, data + 4, 4);
            timestamp = htonl(ntohl(timestamp) + 4711 * i);
            memcpy(data + 4, &timestamp, 4);
            memcpy(data + 8, &ssrc, 4);
            send(sockets[i ^ 1], data, size, 0);
        }
        if (pace_us) usleep(pace_us);
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int load(int legs, int own, int seconds) {
    static int sockets[MAX_LEGS];
    static uint16_t sequence[MAX_LEGS];
    static struct epoll_event events[512];
    int epoll = epoll_create1(0);
    for (int i = 0; i < legs; i++) {
        int port, on = 1;
        if (scanf("%d", &port) != 1) return 1;
        sockets[i] = open_connected(own + 2 * i, port);
        setsockopt(sockets[i], SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[i], &event)) die("epoll_ctl");
    }
    prctl(PR_SET_TIMERSLACK, 1);
    uint64_t total = (uint64_t)legs * 50 * (seconds + 1), warm = (uint64_t)legs * 50;
    uint32_t *delays = malloc(total * 2 * sizeof *delays);
    uint64_t sent = 0, received = 0, measured = 0, idle = 0;
    uint64_t step = 20000000ull / legs, begin = nanoseconds(CLOCK_MONOTONIC) + 10000000;
    uint64_t warm_until = 0;
    while (sent < total || idle < 40) {
        uint64_t now = nanoseconds(CLOCK_MONOTONIC);
        for (; sent < total && begin + sent * step <= now; sent++) {
            if (sent == warm) {
                warm_until = nanoseconds(CLOCK_REALTIME);
                printf("start\n");
                fflush(stdout);
            }
            int i = sent % legs;
            uint8_t data[PACKET] = {0x80, 0};
            uint16_t s = htons(sequence[i]);
            uint32_t t = htonl(sequence[i] * 160u), ssrc = htonl(77 + i);
            uint64_t stamp = nanoseconds(CLOCK_REALTIME);
            sequence[i]++;
            memcpy(data + 2, &s, 2);
            memcpy(data + 4, &t, 4);
            memcpy(data + 8, &ssrc, 4);
            memcpy(data + 12, &stamp, 8);
            send(sockets[i], data, PACKET, 0);
            if (sent + 1 == total) {
                printf("stop\n");
                fflush(stdout);
            }
        }
        int ready = epoll_wait(epoll, events, 512, 0);
        for (int k = 0; k < ready; k++) {
            uint8_t data[2048], control[128];
            struct iovec iov = {data, sizeof data};
            struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                                     .msg_controllen = sizeof control};
            if (recvmsg(sockets[events[k].data.u32], &message, 0) != PACKET) continue;
            uint64_t stamp, arrival = 0;
            memcpy(&stamp, data + 12, 8);
            for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPNS) {
                    struct timespec t;
                    memcpy(&t, CMSG_DATA(c), sizeof t);
                    arrival = t.tv_sec * 1000000000ull + t.tv_nsec;
                }
            if (warm_until && stamp >= warm_until) {
                received++;
                if (measured < total * 2) delays[measured++] = (arrival - stamp) / 1000;
            }
        }
        idle = sent < total || ready ? 0 : idle + 1;
        /* Up to 0.5 ms of phones send together: the generator must not eat the machine. */
        struct timespec nap = {0, sent < total ? (long)(step < 200000 ? 200000 : step) : 5000000};
        nanosleep(&nap, NULL);
    }
    qsort(delays, measured, sizeof *delays, ascending);
    if (measured == 0) {
        printf("%llu 0 0 0 0 0\n", (unsigned long long)(sent - warm));
        return 0;
    }
    printf("%llu %llu %u %u %u %u\n", (unsigned long long)(sent - warm), (unsigned long long)received,
           delays[measured / 2], delays[measured * 95 / 100], delays[measured * 99 / 100], delays[measured - 1]);
    return 0;
}

int main(int count, char **words) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (count == 6 && !strcmp(words[1], "relay"))
        relay(atoi(words[2]), atoi(words[3]), atoi(words[4]), atoi(words[5]));
    if (count == 5 && !strcmp(words[1], "load")) return load(atoi(words[2]), atoi(words[3]), atoi(words[4]));
    fprintf(stderr, "usage: relay LEGS OWN PEER PACE_US | load LEGS OWN SECONDS\n");
    return 2;
}
