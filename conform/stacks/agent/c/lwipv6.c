/* LWIPv6 1.5a. Its sockets block, but for recv; its poll is made of lwip_event_subscribe, which tells by a callback. */
#include "agent.h"

#ifdef LWIPV6

#define LEAST_ROOM (32768 / 2) /* TCP_SNDLOWAT: more than that is free in the send buffer where POLLOUT is said */
#define MOST_ROOM 32768        /* TCP_SND_BUF */
#define MOST_SOCKETS 1024

static struct stack *stack;
static struct netif *netif;
static char tap[32] = "tap0";
/* recv has returned 0 once. The library does not count that as an event, and says "would block" from then on; a call
 * that may block returns 0 again. */
static bool ended[MOST_SOCKETS];

const char platform_name[] = "lwipv6";
/* No call resets a connection, and a stack that is deleted leaves its threads behind. */
const bool platform_renewed = true;
const int platform_flags = MSG_PEEK | MSG_DONTWAIT | MSG_TRUNC;

void platform_capabilities(struct text *to)
{
	put(to, "\"calls\",\"overlap\"");
}

static const char *add_address(const char *address, int prefix)
{
	static struct ip_addr has[2]; /* which it does not take twice */
	struct ip_addr made = {{0, 0, IP64_PREFIX, 0}}, mask;
	bool four = inet_pton(AF_INET, address, &made.addr[3]) == 1;
	if (!four && inet_pton(AF_INET6, address, &made) != 1)
		return "no address";
	if (!memcmp(&has[four], &made, sizeof made))
		return NULL;
	has[four] = made;
	int ones = four ? 96 + prefix : prefix; /* IPv4 addresses are mapped ones */
	for (int i = 0; i < 4; i++, ones -= 32)
		mask.addr[i] = htonl(ones >= 32 ? 0xffffffff : ones <= 0 ? 0 : 0xffffffff << (32 - ones));
	return lwip_add_addr(netif, &made, &mask) < 0 ? "LWIPv6 does not take the address" : NULL;
}

static const char *start(void)
{
	if (stack)
		return NULL;
	stack = lwip_add_stack(0);
	netif = stack ? lwip_add_tapif(stack, tap, 0) : NULL; /* no autoconfiguration: it does not speak by itself */
	if (!netif)
		return "LWIPv6 does not take the interface";
	lwip_ifup_flags(netif, 0);
	return NULL;
}

/* argv: [INTERFACE [ADDRESS/PREFIX]...], to be reachable before the first hello. "/" is an address left out. */
const char *platform_start(char **argv)
{
	if (!argv[1])
		return NULL;
	if (strlen(argv[1]) >= sizeof tap)
		return "no interface";
	strcpy(tap, argv[1]);
	const char *why = start();
	for (char **each = argv + 2; !why && *each; each++) {
		char address[64] = "";
		if (**each == '/')
			continue;
		size_t length = strcspn(*each, "/");
		memcpy(address, *each, length < sizeof address ? length : 0);
		why = add_address(address, (*each)[length] ? atoi(*each + length + 1) : 24);
	}
	return why;
}

const char *platform_trial(void)
{
	if (!stack && trial.interface[0])
		strcpy(tap, trial.interface);
	const char *why = start();
	return why ? why : add_address(trial.stack, trial.prefix ? trial.prefix : trial.family == AF_INET ? 24 : 64);
}

/* The stack is in this process, and ends with it: no connection outlives it. */
void platform_reset(void) {}
void platform_abandon(int fd, const struct file *file)
{
	(void)fd, (void)file;
}
void platform_destroy(const struct call *call)
{
	(void)call;
}

static int made(int fd)
{
	if (fd >= 0) {
		lwip_fcntl(fd, F_SETFL, O_NONBLOCK);
		if (fd < MOST_SOCKETS)
			ended[fd] = false;
	}
	return fd;
}

int platform_socket(int family)
{
	return made(lwip_msocket(stack, family, SOCK_STREAM, 0));
}

int platform_accept(int fd, struct sockaddr *address, socklen_t *size)
{
	if (!(platform_ready(fd, POLLIN) & POLLIN)) {
		errno = EAGAIN;
		return -1;
	}
	socklen_t none = 0;
	int accepted = made(lwip_accept(fd, address, &none)); /* it would give an address of whatever the memory held */
	if (accepted >= 0)
		lwipv6_getpeername(accepted, address, size);
	return accepted;
}

int platform_dup(int fd)
{
	(void)fd;
	errno = ENOSYS;
	return -1;
}

short platform_ready(int fd, short events)
{
	int found = lwip_event_subscribe(NULL, NULL, fd, events & (POLLIN | POLLOUT));
	if (fd < MOST_SOCKETS && ended[fd])
		found |= events & POLLIN;
	return (short)found;
}

/* One subscription a descriptor, for what all its calls wait for: the library drops those of one mark together. */
void platform_watch(const struct call *call)
{
	static char mark;
	int events = 0;
	for (const struct call *each = sleeping; each; each = each->next)
		if (each->fd == call->fd)
			events |= call_events(each) & (POLLIN | POLLOUT);
	lwip_event_subscribe(NULL, &mark, call->fd, events);
	if (events && lwip_event_subscribe(wake, &mark, call->fd, events))
		wake();
}

/* connect waits for the SYN's answer, which cannot be there yet; send for room, all that is known of which is whether
 * more than half of it is free. */
bool platform_threaded(struct call *call, const char *method)
{
	if (!strcmp(method, "connect")) {
		call->known = true;
		return true;
	}
	if (strncmp(method, "send", 4))
		return false;
	bool half = platform_ready(call->fd, POLLOUT);
	call->known = call->size > (half ? MOST_ROOM : LEAST_ROOM);
	return !half || call->size > LEAST_ROOM;
}

#undef lwip_recv
#undef lwip_recvmsg
#undef lwip_getsockname
#undef lwip_setsockopt
#undef lwip_getsockopt

static ssize_t end(int fd, ssize_t got, size_t size)
{
	if (fd < MOST_SOCKETS && got == 0 && size > 0)
		ended[fd] = true;
	return got;
}

ssize_t lwipv6_recv(int fd, void *to, size_t size, int flags)
{
	if (fd < MOST_SOCKETS && ended[fd])
		return 0;
	return end(fd, lwip_recv(fd, to, (int)size, (unsigned)flags), size);
}

ssize_t lwipv6_recvmsg(int fd, struct msghdr *message, int flags)
{
	return lwipv6_recv(fd, message->msg_iov->iov_base, message->msg_iov->iov_len, flags); /* which is all that it does */
}

/* Its numbers are Linux's but at IPPROTO_TCP, where another option has TCP_MAXSEG's. */
static bool has_option(int level, int option)
{
	errno = ENOPROTOOPT;
	return level != IPPROTO_TCP || option == TCP_NODELAY;
}

int lwipv6_setsockopt(int fd, int level, int option, const void *value, socklen_t size)
{
	return has_option(level, option) ? lwip_setsockopt(fd, level, option, value, size) : -1;
}

int lwipv6_getsockopt(int fd, int level, int option, void *value, socklen_t *size)
{
	return has_option(level, option) ? lwip_getsockopt(fd, level, option, value, size) : -1;
}

/* The library's own getsockname gives the peer's address, and its getpeername what the memory held before. */
int lwipv6_getsockname(int fd, struct sockaddr *name, socklen_t *size)
{
	(void)fd, (void)name, (void)size;
	errno = EOPNOTSUPP;
	return -1;
}

int lwipv6_getpeername(int fd, struct sockaddr *name, socklen_t *size)
{
	return lwip_getsockname(fd, name, size);
}

const char *platform_signal(void)
{
	return NULL;
}

int platform_info(int fd, struct text *to)
{
	(void)fd, (void)to;
	errno = ENOPROTOOPT;
	return -1;
}

const char *platform_state(int port, int peer)
{
	(void)port, (void)peer;
	return NULL; /* its lists hang on struct stack, which no header tells of */
}

const char *platform_set(const char *name, const char *value, struct text *before)
{
	(void)name, (void)value, (void)before;
	return "unknown setting '%s'";
}

#endif
