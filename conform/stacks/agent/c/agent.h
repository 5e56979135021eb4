/* An agent in C: makes socket calls in a stack, as it is told on standard input (docs/agent-protocol.md).
 *
 * One thread makes the calls, and none of them blocks: sockets are O_NONBLOCK underneath, and blocking for the case. A
 * call that would sleep is put aside and made again when its descriptor is ready. So `blocked` is said exactly when the
 * call without blocking ended in "would block", a call can be dropped at any time, and a stack whose sockets may not be
 * used by two threads at once (lwIP without LWIP_NETCONN_FULLDUPLEX) is used by one. The few calls that a platform has
 * in a blocking form only are made in a thread of their own.
 *
 * json.c reads and writes lines, calls.c makes the calls, main.c is the loop; posix.c, lwip.c and lwipv6.c are the
 * platforms, of which one is compiled in: -DLWIP for lwIP, -DLWIPV6 for LWIPv6, else POSIX.
 */
#ifndef AGENT_H
#define AGENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* POLLRDHUP, sigtimedwait, TCP_* */
#endif

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* ---- json.c ------------------------------------------------------------------------------------------------------ */

/* A growing line of output. */
struct text {
	char *at;
	size_t length, room;
};

enum kind { NOTHING, FALSE, TRUE, NUMBER, TEXT, ARRAY, OBJECT };

/* A value. `text` is a text without its escapes, or a number as it was written. */
struct json {
	enum kind kind;
	char *key, *text;
	double number;
	struct json *first, *next;
};

/* The value that a line is, or NULL with *why. The line is changed, and must live as long as the value. */
struct json *json_read(char *line, size_t length, const char **why);
void json_free(struct json *value);
/* The member of that name, NULL where there is none. */
const struct json *json_get(const struct json *object, const char *key);
/* As text: NULL where there is none or it is no text. */
const char *json_text(const struct json *object, const char *key);
/* Whether the value is a whole number from low to high; *number is then set. */
bool json_whole(const struct json *value, double low, double high, double *number);

void put(struct text *to, const char *format, ...) __attribute__((format(printf, 2, 3)));
void put_quoted(struct text *to, const char *string);
void put_hex(struct text *to, const void *octets, size_t count);
/* malloc and realloc that end the agent, with a last line, where there is no memory. */
void *allot(void *old, size_t size);

/* ---- calls.c ----------------------------------------------------------------------------------------------------- */

/* What descriptors made by dup share. Times in seconds, 0 for none. */
struct file {
	int references;
	bool nonblocking;
	bool connected; /* it was accepted, or its SYN went out */
	bool lingers;   /* SO_LINGER with a time: the last close may sleep */
	bool low_water; /* SO_RCVLOWAT asks for more than one octet */
	double receive_timeout, send_timeout;
};

/* A request under way. */
struct call {
	struct call *next;
	struct json *request;
	char *line;
	const struct method *method;
	struct file *file;
	int fd;
	bool own_fd;   /* the call has a descriptor of its own, which closing the name does not close */
	bool overlap;  /* says when it sleeps */
	bool begun;    /* a connect whose SYN is out */
	bool faulty;   /* `members` are a fault */
	bool known;    /* a call in a thread: that it sleeps is known */
	bool over;     /* a call in a thread: that is through with it */
	bool dropped;  /* a call in a thread: nobody waits for its reply any more */
	int flags;
	struct sockaddr_storage own, peer; /* a close in a thread: whose connection it is, family 0 where that is unknown */
	uint32_t cookie[2];
	char *octets;  /* to be sent, or received so far */
	size_t size, done;
	double deadline, given_up; /* of the socket's own time-outs; of the request's. On `now`'s clock, 0 for none */
	struct text members;       /* of the reply, with a comma before each */
};

/* The trial, as hello tells of it. */
struct trial {
	int family;
	char stack[64], tester[64], interface[32];
	int prefix, mtu; /* 0 where hello did not tell */
};
extern struct trial trial;

/* Begin what the request says; the reply may follow later. Takes over request and line. */
void call_begin(struct json *request, char *line);
/* Make again the calls that slept on a descriptor for which ready (may be NULL: any) says so. */
void calls_again(bool (*ready)(const struct call *call));
/* Collect what threads have finished; end what is due. */
void calls_finish(void);
/* When the next call is due, 0 for never. */
double calls_due(void);
/* The calls that sleep, for the platform to wait for. What each waits for: call_events. */
extern struct call *sleeping;
short call_events(const struct call *call);
/* Reset every connection, close every descriptor, forget every name and call. */
void calls_reset(void);

/* ---- main.c ------------------------------------------------------------------------------------------------------ */

double now(void); /* seconds on the monotonic clock */
void say(const struct text *line);
void wake(void); /* the loop, from any thread */
void last_words(const char *why) __attribute__((noreturn));

/* ---- the platform ------------------------------------------------------------------------------------------------ */

#if defined(LWIP) || defined(LWIPV6)
#define S(call) lwip_##call
#else
#define S(call) call
#endif
#ifndef LWIP
#include <sys/ioctl.h> /* lwIP has another FIONREAD */
#endif
#ifdef LWIP
#undef TCP_MSS /* <netinet/tcp.h> has one, which is not lwIP's */
#include "lwip/sockets.h"
#endif
#ifdef LWIPV6
#include <lwipv6.h>
/* Calls that the library makes otherwise than a socket's; lwipv6.c says how. */
#define lwip_recv lwipv6_recv
#define lwip_recvmsg lwipv6_recvmsg
#define lwip_getsockname lwipv6_getsockname
#define lwip_getpeername lwipv6_getpeername
#define lwip_setsockopt lwipv6_setsockopt
#define lwip_getsockopt lwipv6_getsockopt
ssize_t lwipv6_recv(int fd, void *to, size_t size, int flags);
ssize_t lwipv6_recvmsg(int fd, struct msghdr *message, int flags);
int lwipv6_setsockopt(int fd, int level, int option, const void *value, socklen_t size);
int lwipv6_getsockopt(int fd, int level, int option, void *value, socklen_t *size);
int lwipv6_getsockname(int fd, struct sockaddr *name, socklen_t *size);
int lwipv6_getpeername(int fd, struct sockaddr *name, socklen_t *size);
#endif

extern const char platform_name[];
/* A comma between, JSON. */
void platform_capabilities(struct text *to);
/* Start the stack, or give it the trial's address: NULL, or why that cannot be. argv: main's, for what it needs at
 * once. */
const char *platform_start(char **argv);
const char *platform_trial(void);
/* Before the descriptors are closed at a trial's end: reset what is theirs and what nobody has any more, and give back
 * what was set. */
void platform_reset(void);
/* Whether a fresh process must hear the next trial's hello, because nothing else resets the stack. */
extern const bool platform_renewed;
/* A descriptor that never blocks, or -1. */
int platform_socket(int family);
int platform_accept(int fd, struct sockaddr *address, socklen_t *size);
int platform_dup(int fd);
void platform_abandon(int fd, const struct file *file); /* close, by reset */
/* At a trial's end: reset the connection that a close in a thread still waits for. */
void platform_destroy(const struct call *call);
short platform_ready(int fd, short events);
/* The loop is about to sleep: have it woken when a sleeping call's descriptor is ready. */
void platform_watch(const struct call *call);
/* Whether the call, by its name or a close of its descriptor, can only be made blocking. Sets call->known where it is then
 * known to sleep. A close is asked about when its name is gone: the call's reference to the file is the last but for
 * dup's. */
bool platform_threaded(struct call *call, const char *method);
/* The flags of send(2) and recv(2) that the stack has. */
extern const int platform_flags;
/* SIGPIPE, if the call just made raised it. */
const char *platform_signal(void);
/* getsockopt(TCP_INFO), as JSON. -1 with errno. */
int platform_info(int fd, struct text *to);
/* NULL: cannot be told. */
const char *platform_state(int port, int peer);
/* Make a setting; what it was before is put, and given back by platform_reset. A fault, or NULL. */
const char *platform_set(const char *name, const char *value, struct text *before);
const char *tcp_state_name(int state); /* by the number in <linux/tcp.h> */

#endif
