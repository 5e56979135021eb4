/* The calls of the protocol, by name, on named descriptors. */
#include "agent.h"

#define MOST_RECEIVED (64 << 20)

/* SLEEPS: would block. THREAD: can only be made blocking, and is to be. */
enum outcome { ENDED, SLEEPS, THREAD };

struct method {
	const char *name;
	enum outcome (*run)(struct call *call);
	short waits_for; /* poll events after which a call that slept is made again; 0: as its request says */
	bool on_listener, no_descriptor;
};

/* A name that was given to a descriptor; fd is -1 once that was closed. */
struct name {
	struct name *next;
	struct file *file;
	int fd;
	char name[];
};

struct value {
	const char *name;
	int value;
};

struct trial trial;
struct call *sleeping;
static struct call *running; /* in threads */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of `over` */
static struct name *names;
static enum outcome do_close(struct call *call);
static const struct method closing = {"close", do_close, 0, false, false};

static const struct value flag_names[] = {
	{"MSG_OOB", MSG_OOB}, {"MSG_PEEK", MSG_PEEK}, {"MSG_DONTWAIT", MSG_DONTWAIT}, {"MSG_WAITALL", MSG_WAITALL},
	{"MSG_NOSIGNAL", MSG_NOSIGNAL}, {"MSG_TRUNC", MSG_TRUNC}, {"MSG_CTRUNC", MSG_CTRUNC}, {"MSG_EOR", MSG_EOR},
#ifdef __linux__
	{"MSG_ERRQUEUE", MSG_ERRQUEUE}, {"MSG_MORE", MSG_MORE}, {"MSG_FASTOPEN", 0x20000000},
#endif
	{NULL, 0},
};

static const struct value event_names[] = {
	{"in", POLLIN}, {"pri", POLLPRI}, {"out", POLLOUT}, {"err", POLLERR}, {"hup", POLLHUP},
#ifdef POLLRDHUP
	{"rdhup", POLLRDHUP},
#endif
	{NULL, 0},
};

#define E(name) {#name, name}
static const struct value errno_names[] = {
	E(EAGAIN), E(EOPNOTSUPP), /* first, where two names share a number */
	E(EACCES), E(EADDRINUSE), E(EADDRNOTAVAIL), E(EAFNOSUPPORT), E(EALREADY), E(EBADF), E(ECONNABORTED),
	E(ECONNREFUSED), E(ECONNRESET), E(EDESTADDRREQ), E(EEXIST), E(EFAULT), E(EHOSTDOWN), E(EHOSTUNREACH),
	E(EINPROGRESS), E(EINTR), E(EINVAL), E(EIO), E(EISCONN), E(EMFILE), E(EMSGSIZE), E(ENETDOWN), E(ENETRESET),
	E(ENETUNREACH), E(ENFILE), E(ENOBUFS), E(ENODEV), E(ENOENT), E(ENOMEM), E(ENOPROTOOPT), E(ENOSYS), E(ENOTCONN),
	E(ENOTSOCK), E(EPERM), E(EPIPE), E(EPROTO), E(EPROTONOSUPPORT), E(EPROTOTYPE), E(ESHUTDOWN), E(ETIMEDOUT),
	{NULL, 0},
};

enum shape { BOOL, INT, U32, LINGER, TIMEVAL, ERRNO, WORDS, OCTETS, INFO };
static const struct option {
	const char *name;
	int level, number;
	enum shape shape;
} options[] = {
	{"SO_LINGER", SOL_SOCKET, SO_LINGER, LINGER}, {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, BOOL},
	{"SO_REUSEPORT", SOL_SOCKET, SO_REUSEPORT, BOOL}, {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, BOOL},
	{"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, BOOL}, {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, INT},
	{"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, INT}, {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, INT},
	{"SO_SNDLOWAT", SOL_SOCKET, SO_SNDLOWAT, INT}, {"SO_RCVTIMEO", SOL_SOCKET, SO_RCVTIMEO, TIMEVAL},
	{"SO_SNDTIMEO", SOL_SOCKET, SO_SNDTIMEO, TIMEVAL}, {"SO_ERROR", SOL_SOCKET, SO_ERROR, ERRNO},
	{"SO_TYPE", SOL_SOCKET, SO_TYPE, INT}, {"SO_ACCEPTCONN", SOL_SOCKET, SO_ACCEPTCONN, BOOL},
	{"IP_TOS", IPPROTO_IP, IP_TOS, INT}, {"IP_TTL", IPPROTO_IP, IP_TTL, INT},
	{"IPV6_TCLASS", IPPROTO_IPV6, IPV6_TCLASS, INT}, {"IPV6_UNICAST_HOPS", IPPROTO_IPV6, IPV6_UNICAST_HOPS, INT},
	{"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, BOOL}, {"TCP_MAXSEG", IPPROTO_TCP, TCP_MAXSEG, INT},
	/* Numbers that not every libc has: those of <linux/tcp.h>. A stack without them says so itself. */
	{"TCP_CORK", IPPROTO_TCP, 3, BOOL}, {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, INT},
	{"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, INT}, {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, INT},
	{"TCP_SYNCNT", IPPROTO_TCP, 7, INT}, {"TCP_LINGER2", IPPROTO_TCP, 8, INT},
	{"TCP_DEFER_ACCEPT", IPPROTO_TCP, 9, INT}, {"TCP_WINDOW_CLAMP", IPPROTO_TCP, 10, INT},
	{"TCP_INFO", IPPROTO_TCP, 11, INFO}, {"TCP_QUICKACK", IPPROTO_TCP, 12, BOOL},
	{"TCP_CONGESTION", IPPROTO_TCP, 13, WORDS}, {"TCP_USER_TIMEOUT", IPPROTO_TCP, 18, INT},
	{"TCP_REPAIR", IPPROTO_TCP, 19, INT}, {"TCP_REPAIR_QUEUE", IPPROTO_TCP, 20, INT},
	{"TCP_QUEUE_SEQ", IPPROTO_TCP, 21, U32}, {"TCP_FASTOPEN", IPPROTO_TCP, 23, INT},
	{"TCP_NOTSENT_LOWAT", IPPROTO_TCP, 25, U32}, {"TCP_FASTOPEN_CONNECT", IPPROTO_TCP, 30, BOOL},
	{"TCP_FASTOPEN_KEY", IPPROTO_TCP, 33, OCTETS}, {"TCP_FASTOPEN_NO_COOKIE", IPPROTO_TCP, 34, BOOL},
};

/* ---- replies ----------------------------------------------------------------------------------------------------- */

static enum outcome fault(struct call *call, const char *why, const char *name)
{
	struct text text = {0};
	put(&text, why, name ? name : "");
	call->members.length = 0;
	put(&call->members, ",\"fault\":");
	put_quoted(&call->members, text.at);
	free(text.at);
	call->faulty = true;
	return ENDED;
}

static void put_error(struct text *to, int number)
{
	const struct value *found = errno_names;
	while (found->name && found->value != number)
		found++;
	if (found->name)
		put(to, "\"%s\"", found->name);
	else
		put(to, "\"E%d\"", number);
}

static enum outcome result(struct call *call, long returned)
{
	int number = errno;
	if (returned >= 0) {
		put(&call->members, ",\"returned\":%ld", returned);
	} else {
		put(&call->members, ",\"returned\":-1,\"error\":");
		put_error(&call->members, number);
	}
	return ENDED;
}

static enum outcome failure(struct call *call, int number)
{
	errno = number;
	return result(call, -1);
}

static void reply(struct call *call, const char *members)
{
	const struct json *id = json_get(call->request, "id");
	struct text line = {0};
	put(&line, "{\"id\":%s%s}\n", id && id->kind == NUMBER ? id->text : "null", members);
	say(&line);
	free(line.at);
}

static void release(struct file *file)
{
	if (file && --file->references == 0)
		free(file);
}

static void take_out(struct call **list, struct call *call)
{
	while (*list && *list != call)
		list = &(*list)->next;
	if (*list)
		*list = call->next;
}

static void add(struct call **list, struct call *call)
{
	while (*list)
		list = &(*list)->next;
	call->next = NULL;
	*list = call;
}

static void *in_thread(void *call);

/* Make the call in a thread. 0, or the error. */
static int start(struct call *call)
{
	pthread_t thread;
	add(&running, call);
	int error = pthread_create(&thread, NULL, in_thread, call);
	if (error)
		take_out(&running, call);
	else
		pthread_detach(thread);
	return error;
}

/* The last descriptor of a file whose close may sleep: nobody waits for it, and the loop is not to either. */
static bool close_later(struct call *call)
{
	if (!call->own_fd || !platform_threaded(call, "close"))
		return false;
	const struct method *was = call->method;
	call->method = &closing;
	call->own_fd = false;
	call->dropped = true;
	if (start(call) == 0)
		return true;
	call->method = was;
	call->own_fd = true;
	return false;
}

static void call_free(struct call *call)
{
	if (close_later(call))
		return;
	if (call->own_fd)
		S(close)(call->fd);
	release(call->file);
	json_free(call->request);
	free(call->line);
	free(call->octets);
	free(call->members.at);
	free(call);
}

static void end(struct call *call)
{
	reply(call, call->members.at ? call->members.at : "");
	call_free(call);
}

/* ---- arguments --------------------------------------------------------------------------------------------------- */

static struct name *find(const char *name)
{
	struct name *each = names;
	while (each && strcmp(each->name, name))
		each = each->next;
	return each;
}

/* The name that a call makes; NULL, with a fault, where it is taken. */
static const char *free_name(struct call *call, const char *otherwise)
{
	const struct json *as = json_get(call->request, "as");
	const char *name = as && as->kind == TEXT ? as->text : NULL;
	if (as && as->kind != TEXT && as->kind != NOTHING)
		fault(call, "as: expected a name", NULL);
	else if (!name && !(name = otherwise))
		fault(call, "as is missing: the new descriptor's name", NULL);
	else if (find(name) && find(name)->fd >= 0)
		fault(call, "the name '%s' belongs to a descriptor that is open", name);
	return call->faulty ? NULL : name;
}

static struct file *give(const char *name, int fd, struct file *file)
{
	struct name *found = find(name);
	if (!found) {
		found = allot(NULL, sizeof *found + strlen(name) + 1);
		strcpy(found->name, name);
		found->next = names;
		names = found;
	}
	if (!file) {
		file = allot(NULL, sizeof *file);
		*file = (struct file){0};
	}
	file->references++;
	found->file = file;
	found->fd = fd;
	return file;
}

/* What an accepted socket has of its listener. lwIP's sockets inherit nothing. */
static void inherit(int fd, struct file *file)
{
#if !defined(LWIP) && !defined(LWIPV6)
	struct linger linger;
	struct timeval time;
	int octets;
	socklen_t size = sizeof linger;
	if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0)
		file->lingers = linger.l_onoff && linger.l_linger;
	size = sizeof time;
	if (getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, &size) == 0)
		file->receive_timeout = (double)time.tv_sec + (double)time.tv_usec / 1e6;
	size = sizeof time;
	if (getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, &size) == 0)
		file->send_timeout = (double)time.tv_sec + (double)time.tv_usec / 1e6;
	size = sizeof octets;
	if (getsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &octets, &size) == 0)
		file->low_water = octets > 1;
#else
	(void)fd, (void)file;
#endif
}

static bool lookup(const struct value *table, const char *name, int *bits)
{
	for (; table->name; table++) {
		if (!strcmp(table->name, name)) {
			*bits |= table->value;
			return true;
		}
	}
	return false;
}

/* The bits of an array of names; false with a fault. */
static bool bits(struct call *call, const char *key, const struct value *table, int *found)
{
	const struct json *list = json_get(call->request, key);
	*found = 0;
	if (list && list->kind != ARRAY && list->kind != NOTHING) {
		fault(call, "%s: expected an array of names", key);
		return false;
	}
	for (const struct json *each = list ? list->first : NULL; each; each = each->next) {
		if (each->kind != TEXT || !lookup(table, each->text, found)) {
			fault(call, "unknown flag or event '%s'", each->kind == TEXT ? each->text : "");
			return false;
		}
	}
	return true;
}

static void put_bits(struct call *call, const char *key, const struct value *table, int found)
{
	const char *comma = "";
	put(&call->members, ",\"%s\":[", key);
	for (; table->name; table++) {
		if (found & table->value) {
			put(&call->members, "%s\"%s\"", comma, table->name);
			comma = ",";
		}
	}
	put(&call->members, "]");
}

/* The request's address and port; false with a fault. */
static bool address(struct call *call, const char *otherwise, struct sockaddr_storage *to, socklen_t *size)
{
	const struct json *given = json_get(call->request, "address"), *port = json_get(call->request, "port");
	const char *text = otherwise;
	double number = 0;
	if (given && given->kind != NOTHING)
		text = given->kind == TEXT ? given->text : "";
	if (!strcmp(text, "stack"))
		text = trial.stack;
	else if (!strcmp(text, "tester"))
		text = trial.tester;
	else if (!strcmp(text, "any"))
		text = trial.family == AF_INET ? "0.0.0.0" : "::";
	bool any = !port || port->kind == NOTHING || (port->kind == TEXT && !strcmp(port->text, "any"));
	if (any ? call->method->waits_for != 0 : !json_whole(port, 0, 65535, &number)) {
		fault(call, "port: expected a number of 0 to 65535", NULL);
		return false;
	}
	memset(to, 0, sizeof *to);
	struct sockaddr_in *four = (struct sockaddr_in *)to;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)to;
	to->ss_family = (sa_family_t)trial.family;
	four->sin_port = htons((uint16_t)number); /* where sin6_port is, too */
	*size = trial.family == AF_INET ? sizeof *four : sizeof *six;
	void *binary = trial.family == AF_INET ? (void *)&four->sin_addr : (void *)&six->sin6_addr;
	if (inet_pton(trial.family, text, binary) != 1) {
		fault(call, "'%s' is no address of the trial's IP version", text);
		return false;
	}
	return true;
}

static void put_address(struct call *call, const struct sockaddr_storage *from)
{
	const struct sockaddr_in *four = (const struct sockaddr_in *)from;
	const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)from;
	char text[INET6_ADDRSTRLEN] = "";
	const void *binary = trial.family == AF_INET ? (const void *)&four->sin_addr : (const void *)&six->sin6_addr;
	inet_ntop(trial.family, binary, text, sizeof text);
	put(&call->members, ",\"address\":{\"address\":\"%s\",\"port\":%u}", text, ntohs(four->sin_port));
}

/* Octets of hexadecimal text, or NULL. */
static char *unhex(const char *text, size_t *count)
{
	size_t length = strlen(text);
	char *octets = allot(NULL, length / 2);
	for (size_t i = 0; i < length; i++) {
		char c = text[i];
		int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
		if (digit < 0 || length % 2) {
			free(octets);
			return NULL;
		}
		octets[i / 2] = (char)(i % 2 ? octets[i / 2] | digit : digit << 4);
	}
	*count = length / 2;
	return octets;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

static bool may_sleep(const struct call *call)
{
	int never = MSG_DONTWAIT;
	if (call->method->waits_for == POLLIN) {
		never |= MSG_OOB; /* an urgent octet is there or is not */
#ifdef __linux__
		never |= MSG_ERRQUEUE;
#endif
	}
	return !call->file->nonblocking && !(call->flags & never);
}

static bool would_block(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK;
}

static enum outcome do_socket(struct call *call)
{
	const char *name = free_name(call, "listener");
	int fd = name ? platform_socket(trial.family) : -1;
	if (!name)
		return ENDED;
	if (fd >= 0)
		give(name, fd, NULL);
	return result(call, fd < 0 ? -1 : 0);
}

static enum outcome do_bind(struct call *call)
{
	struct sockaddr_storage to;
	socklen_t size;
	if (!address(call, "any", &to, &size))
		return ENDED;
	return result(call, S(bind)(call->fd, (struct sockaddr *)&to, size));
}

static enum outcome do_listen(struct call *call)
{
	double backlog = 16;
	const struct json *given = json_get(call->request, "backlog");
	if (given && !json_whole(given, INT32_MIN, INT32_MAX, &backlog))
		return fault(call, "backlog: expected a number", NULL);
	return result(call, S(listen)(call->fd, (int)backlog));
}

static enum outcome do_accept(struct call *call)
{
	struct sockaddr_storage from = {0};
	socklen_t size = sizeof from;
	const char *name = free_name(call, "c1");
	if (!name) /* where the call slept, another took it: what comes stays in the queue */
		return ENDED;
	int fd = platform_accept(call->fd, (struct sockaddr *)&from, &size);
	if (fd < 0 && would_block() && may_sleep(call))
		return SLEEPS;
	if (fd < 0)
		return result(call, -1);
	struct file *file = give(name, fd, NULL);
	file->connected = true;
	inherit(fd, file);
	result(call, 0);
	put_address(call, &from);
	return ENDED;
}

static enum outcome do_connect(struct call *call)
{
	struct sockaddr_storage to;
	socklen_t size;
	if (!address(call, "tester", &to, &size))
		return ENDED;
	if (call->begun) {
		int error = 0;
		socklen_t length = sizeof error;
		if (!(platform_ready(call->fd, POLLOUT) & (POLLOUT | POLLERR | POLLHUP)))
			return may_sleep(call) ? SLEEPS : failure(call, EINPROGRESS);
		S(getsockopt)(call->fd, SOL_SOCKET, SO_ERROR, &error, &length);
		return error ? failure(call, error) : result(call, 0);
	}
	if (platform_threaded(call, call->method->name))
		return THREAD;
	int returned = S(connect)(call->fd, (struct sockaddr *)&to, size);
	call->file->connected |= returned == 0 || errno == EINPROGRESS;
	if (returned < 0 && (errno == EINPROGRESS || errno == EALREADY) && may_sleep(call)) {
		call->begun = true;
		return SLEEPS;
	}
	return result(call, returned);
}

/* flags of send and recv; false with the reply. */
static bool message_flags(struct call *call)
{
	if (!bits(call, "flags", flag_names, &call->flags))
		return false;
	if (call->flags & ~(platform_flags | MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL)) {
		failure(call, EOPNOTSUPP);
		return false;
	}
	return true;
}

/* What went before an error is what a call returns; the error is the next call's (send(2), recv(2)). */
static bool broken_behind(const struct call *call)
{
	return call->done > 0 && platform_ready(call->fd, POLLIN | POLLOUT) & (POLLERR | POLLHUP);
}

/* The same for recv: after a half-close POLLHUP is the peer's FIN, and before an error there may be octets. */
static bool nothing_before_an_error(const struct call *call)
{
	int octets = 0;
	if (call->done == 0 || !(platform_ready(call->fd, POLLIN) & POLLERR))
		return false;
	return S(ioctl)(call->fd, FIONREAD, &octets) < 0 || octets <= 0;
}

static enum outcome do_send(struct call *call)
{
	if (!call->octets) {
		const char *payload = json_text(call->request, "payload");
		if (!message_flags(call))
			return ENDED;
		if (!payload || !(call->octets = unhex(payload, &call->size)))
			return fault(call, "payload: expected hexadecimal text", NULL);
		if (platform_threaded(call, call->method->name))
			return THREAD;
	}
	struct iovec part = {call->octets + call->done, call->size - call->done};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	if (broken_behind(call))
		return result(call, (long)call->done);
	int flags = call->flags & platform_flags;
	bool plain = !strcmp(call->method->name, "send");
	ssize_t sent = plain ? S(send)(call->fd, part.iov_base, part.iov_len, flags) : S(sendmsg)(call->fd, &message, flags);
	int number = errno;
	const char *raised = platform_signal();
	errno = number;
	if (sent < 0 && (would_block() || errno == EINPROGRESS) && may_sleep(call))
		return SLEEPS;
	if (sent >= 0) {
		call->done += (size_t)sent;
		if (call->done < call->size && may_sleep(call))
			return SLEEPS;
	}
	if (sent >= 0 || call->done > 0)
		return result(call, (long)call->done);
	result(call, -1);
	if (raised)
		put(&call->members, ",\"signals\":[\"%s\"]", raised);
	return ENDED;
}

/* Octets are there, but fewer than SO_RCVLOWAT and than are asked for: without blocking they would be returned. */
static bool too_few(const struct call *call)
{
	int octets = 0;
	if (!call->file->low_water || call->done > 0 || !may_sleep(call) || platform_ready(call->fd, POLLIN | POLLPRI))
		return false;
	return S(ioctl)(call->fd, FIONREAD, &octets) == 0 && octets > 0 && (size_t)octets < call->size;
}

static enum outcome do_recv(struct call *call)
{
	bool plain = !strcmp(call->method->name, "recv");
	if (!call->octets) {
		double size = 65536;
		const struct json *given = json_get(call->request, "size");
		if (given && given->kind != NOTHING && !json_whole(given, 0, MOST_RECEIVED, &size))
			return fault(call, "size: expected a number of octets", NULL);
		if (!message_flags(call))
			return ENDED;
		call->size = (size_t)size;
		call->octets = allot(NULL, call->size);
	}
	bool all = (call->flags & (MSG_WAITALL | MSG_PEEK)) == MSG_WAITALL;
	struct iovec part;
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	int flags = call->flags & platform_flags;
	ssize_t got;
	if (too_few(call))
		return SLEEPS;
	do {
		part = (struct iovec){call->octets + call->done, call->size - call->done};
		got = nothing_before_an_error(call) ? 0
		      : plain                       ? S(recv)(call->fd, part.iov_base, part.iov_len, flags)
		                                    : S(recvmsg)(call->fd, &message, flags);
		if (got < 0 && would_block() && may_sleep(call))
			return SLEEPS;
		if (got < 0 && call->done == 0)
			return result(call, -1);
		call->done += got > 0 ? (size_t)got : 0;
	} while (all && got > 0 && call->done < call->size && may_sleep(call));
	result(call, (long)call->done);
	if (!(call->flags & MSG_TRUNC)) { /* with it TCP discards the octets: nothing was copied (tcp(7)) */
		put(&call->members, ",\"data\":\"");
		put_hex(&call->members, call->octets, call->done);
		put(&call->members, "\"");
	}
	if (!plain)
		put_bits(call, "msg_flags", flag_names, got > 0 ? message.msg_flags : 0);
	return ENDED;
}

static enum outcome do_shutdown(struct call *call)
{
	const char *how = json_text(call->request, "how");
	static const struct value ways[] = {{"rd", SHUT_RD}, {"wr", SHUT_WR}, {"rdwr", SHUT_RDWR}, {NULL, 0}};
	int way = 0;
	if (!how || !lookup(ways, how, &way))
		return fault(call, "how: expected rd, wr or rdwr", NULL);
	return result(call, S(shutdown)(call->fd, way));
}

static enum outcome do_close(struct call *call)
{
	const char *name = json_text(call->request, "on");
	struct name *closed = find(name ? name : "c1");
	for (struct call *each = running; each; each = each->next)
		if (each->fd == call->fd && each->method->run != do_close)
			return fault(call, "a call sleeps on '%s', and this stack cannot close it meanwhile", closed->name);
	closed->fd = -1;
	release(closed->file);
	closed->file = NULL;
	/* Calls that sleep on a descriptor of their own go on. Those that do not must not meet another under its number. */
	for (struct call *each = sleeping, *next; each; each = next) {
		next = each->next;
		if (each->fd == call->fd && !each->own_fd && each != call) {
			take_out(&sleeping, each);
			failure(each, EBADF);
			end(each);
		}
	}
	return platform_threaded(call, "close") ? THREAD : result(call, S(close)(call->fd));
}

static const struct option *option(struct call *call)
{
	const char *name = json_text(call->request, "option");
	for (size_t i = 0; name && i < sizeof options / sizeof *options; i++)
		if (!strcmp(options[i].name, name))
			return &options[i];
	fault(call, "unknown socket option '%s'", name);
	return NULL;
}

/* Two whole numbers of an object, true and false among them. */
static bool pair(const struct json *value, const char *first, const char *second, long *one, long *two)
{
	long *to[] = {one, two};
	const char *keys[] = {first, second};
	for (int i = 0; i < 2; i++) {
		const struct json *member = json_get(value, keys[i]);
		double number = member && member->kind == TRUE;
		if (!member || (member->kind != TRUE && member->kind != FALSE && !json_whole(member, INT32_MIN, INT32_MAX, &number)))
			return false;
		*to[i] = (long)number;
	}
	return true;
}

static enum outcome do_setsockopt(struct call *call)
{
	const struct option *found = option(call);
	const struct json *value = json_get(call->request, "value");
	struct file *file = call->file;
	long one = 0, two = 0;
	double number = 0;
	int returned;
	if (!found)
		return ENDED;
	if (found->shape == LINGER) {
		if (!pair(value, "onoff", "linger", &one, &two))
			return fault(call, "SO_LINGER takes {onoff, linger}", NULL);
		struct linger linger = {(int)one, (int)two};
		returned = S(setsockopt)(call->fd, found->level, found->number, &linger, sizeof linger);
		if (returned == 0)
			file->lingers = one && two; /* Linux takes a negative time for a very long one */
	} else if (found->shape == TIMEVAL) {
		if (!pair(value, "sec", "usec", &one, &two))
			return fault(call, "%s takes {sec, usec}", found->name);
		struct timeval time = {one, two};
		returned = S(setsockopt)(call->fd, found->level, found->number, &time, sizeof time);
		if (returned == 0)
			*(found->number == SO_RCVTIMEO ? &file->receive_timeout : &file->send_timeout) = (double)one + (double)two / 1e6;
	} else if (found->shape == WORDS || found->shape == OCTETS) {
		const char *text = value && value->kind == TEXT ? value->text : NULL;
		size_t size = text ? strlen(text) : 0;
		char *octets = text && found->shape == OCTETS ? unhex(text, &size) : NULL;
		if (!text || (found->shape == OCTETS && !octets))
			return fault(call, "%s takes text", found->name);
		returned = S(setsockopt)(call->fd, found->level, found->number, octets ? octets : text, (socklen_t)size);
		int kept = errno;
		free(octets);
		errno = kept;
	} else {
		if (value && (value->kind == TRUE || value->kind == FALSE))
			number = value->kind == TRUE;
		else if (!json_whole(value, INT32_MIN, UINT32_MAX, &number))
			return fault(call, "%s takes a number", found->name);
		uint32_t octets = (uint32_t)(int64_t)number;
		returned = S(setsockopt)(call->fd, found->level, found->number, &octets, sizeof octets);
		if (returned == 0 && found->level == SOL_SOCKET && found->number == SO_RCVLOWAT)
			file->low_water = octets > 1;
	}
	return result(call, returned);
}

static enum outcome do_getsockopt(struct call *call)
{
	const struct option *found = option(call);
	union {
		int number;
		struct linger linger;
		struct timeval time;
		char text[64];
	} value = {.text = ""};
	socklen_t size = sizeof value.number;
	struct text *to = &call->members;
	if (!found)
		return ENDED;
	if (found->shape == INFO) {
		struct text fields = {0};
		if (platform_info(call->fd, &fields) < 0)
			return result(call, -1);
		put(to, ",\"returned\":0,\"value\":%s", fields.at);
		free(fields.at);
		return ENDED;
	}
	if (found->shape == LINGER)
		size = sizeof value.linger;
	else if (found->shape == TIMEVAL)
		size = sizeof value.time;
	else if (found->shape == WORDS || found->shape == OCTETS)
		size = sizeof value.text;
	if (S(getsockopt)(call->fd, found->level, found->number, &value, &size) < 0)
		return result(call, -1);
	put(to, ",\"returned\":0,\"value\":");
	switch (found->shape) {
	case LINGER:
		put(to, "{\"onoff\":%s,\"linger\":%d}", value.linger.l_onoff ? "true" : "false", value.linger.l_linger);
		break;
	case TIMEVAL:
		put(to, "{\"sec\":%ld,\"usec\":%ld}", (long)value.time.tv_sec, (long)value.time.tv_usec);
		break;
	case WORDS:
		value.text[sizeof value.text - 1] = 0;
		put_quoted(to, value.text);
		break;
	case OCTETS:
		put(to, "\"");
		put_hex(to, value.text, size);
		put(to, "\"");
		break;
	case ERRNO:
		if (value.number) {
			put_error(to, value.number);
			break;
		} /* fall through */
	case INT:
		put(to, "%d", value.number);
		break;
	case U32:
		put(to, "%u", (unsigned)value.number);
		break;
	default:
		put(to, "%s", value.number ? "true" : "false");
	}
	return ENDED;
}

static enum outcome do_getname(struct call *call)
{
	struct sockaddr_storage found = {0};
	socklen_t size = sizeof found;
	bool own = !strcmp(call->method->name, "getsockname");
	int returned = own ? S(getsockname)(call->fd, (struct sockaddr *)&found, &size)
	                   : S(getpeername)(call->fd, (struct sockaddr *)&found, &size);
	result(call, returned);
	if (returned == 0)
		put_address(call, &found);
	return ENDED;
}

static enum outcome do_poll(struct call *call)
{
	const struct json *timeout = json_get(call->request, "timeout");
	bool looks = timeout && timeout->kind == NUMBER && timeout->number <= 0;
	int events;
	if (!bits(call, "events", event_names, &events))
		return ENDED;
	int found = platform_ready(call->fd, (short)events);
	bool over = call->given_up > 0 && now() >= call->given_up;
	if (!found && !looks && !over)
		return SLEEPS;
	result(call, found ? 1 : 0);
	put_bits(call, "value", event_names, found);
	return ENDED;
}

static enum outcome do_set_nonblocking(struct call *call)
{
	const struct json *value = json_get(call->request, "value");
	call->file->nonblocking = !value || !(value->kind == FALSE || (value->kind == NUMBER && value->number == 0));
	return result(call, 0);
}

static enum outcome do_dup(struct call *call)
{
	const char *name = free_name(call, NULL);
	if (!name)
		return ENDED;
	int fd = platform_dup(call->fd);
	if (fd < 0 && errno == ENOSYS)
		return fault(call, "no descriptor of this stack can be duplicated", NULL);
	if (fd >= 0)
		give(name, fd, call->file);
	return result(call, fd < 0 ? -1 : 0);
}

static enum outcome do_state(struct call *call)
{
	double port = 0, peer = 0;
	if (!json_whole(json_get(call->request, "port"), 0, 65535, &port) ||
	    !json_whole(json_get(call->request, "peer"), 0, 65535, &peer))
		return fault(call, "port, peer: expected numbers", NULL);
	const char *state = platform_state((int)port, (int)peer);
	if (!state)
		return fault(call, "states cannot be read out of this stack", NULL);
	result(call, 0);
	put(&call->members, ",\"value\":\"%s\"", state);
	return ENDED;
}

static enum outcome do_set(struct call *call)
{
	const struct json *value = json_get(call->request, "value");
	const char *name = json_text(call->request, "name");
	if (!name || !value || (value->kind != TEXT && value->kind != NUMBER))
		return fault(call, "set wants a name, and a number or text as its value", NULL);
	struct text before = {0};
	const char *why = platform_set(name, value->text, &before);
	why ? fault(call, why, name) : result(call, 0);
	if (before.at) {
		put(&call->members, ",\"value\":");
		put_quoted(&call->members, before.at);
	}
	free(before.at);
	return ENDED;
}

static const struct method methods[] = {
	{"socket", do_socket, 0, false, true},
	{"bind", do_bind, 0, true, false},
	{"listen", do_listen, 0, true, false},
	{"accept", do_accept, POLLIN, true, false},
	{"connect", do_connect, POLLOUT, false, false},
	{"send", do_send, POLLOUT, false, false},
	{"sendmsg", do_send, POLLOUT, false, false},
	{"recv", do_recv, POLLIN, false, false},
	{"recvmsg", do_recv, POLLIN, false, false},
	{"shutdown", do_shutdown, 0, false, false},
	{"close", do_close, 0, false, false},
	{"setsockopt", do_setsockopt, 0, false, false},
	{"getsockopt", do_getsockopt, 0, false, false},
	{"getsockname", do_getname, 0, false, false},
	{"getpeername", do_getname, 0, false, false},
	{"poll", do_poll, 0, false, false},
	{"set-nonblocking", do_set_nonblocking, 0, false, false},
	{"dup", do_dup, 0, false, false},
	{"state", do_state, 0, false, true},
	{"set", do_set, 0, false, true},
};

/* ---- from beginning to end --------------------------------------------------------------------------------------- */

short call_events(const struct call *call)
{
	int events = call->method->waits_for;
	if (!events) { /* poll, whose events were looked at when it began */
		const struct json *list = json_get(call->request, "events");
		for (const struct json *each = list ? list->first : NULL; each; each = each->next)
			lookup(event_names, each->text, &events);
	}
	return (short)events;
}

/* In a thread: the call in its blocking form. */
static void *in_thread(void *argument)
{
	struct call *call = argument;
	struct sockaddr_storage to;
	socklen_t size;
	long returned = 0;
	if (!strcmp(call->method->name, "close")) {
		returned = S(close)(call->fd);
	} else if (!strcmp(call->method->name, "connect")) {
		if (address(call, "tester", &to, &size))
			returned = S(connect)(call->fd, (struct sockaddr *)&to, size);
	} else {
		for (ssize_t sent = 0; call->done < call->size; call->done += (size_t)sent)
			if ((sent = S(send)(call->fd, call->octets + call->done, call->size - call->done, 0)) <= 0)
				break;
		returned = call->done > 0 || call->size == 0 ? (long)call->done : -1;
	}
	if (!call->faulty)
		result(call, returned);
	pthread_mutex_lock(&lock);
	call->over = true;
	pthread_mutex_unlock(&lock);
	wake();
	return NULL;
}

static void begin_thread(struct call *call)
{
	if (call->overlap && call->known)
		reply(call, ",\"blocked\":true");
	int error = start(call);
	if (error) {
		fault(call, "no thread can be made for it: %s", strerror(error));
		end(call);
	}
}

static void fall_asleep(struct call *call)
{
	bool receives = call->method->waits_for == POLLIN;
	double time = call->method->waits_for ? receives ? call->file->receive_timeout : call->file->send_timeout : 0;
	if (time > 0)
		call->deadline = now() + time;
	int fd = platform_dup(call->fd); /* closing the name does not end a call that is under way */
	if (fd >= 0) {
		call->fd = fd;
		call->own_fd = true;
	} else if (errno != ENOSYS) {
		fault(call, "its descriptor cannot be duplicated: %s", strerror(errno));
		end(call);
		return;
	}
	add(&sleeping, call);
	if (call->overlap)
		reply(call, ",\"blocked\":true");
}

void call_begin(struct json *request, char *line)
{
	struct call *call = allot(NULL, sizeof *call);
	*call = (struct call){.request = request, .line = line};
	const char *method = json_text(request, "do");
	const struct json *timeout = json_get(request, "timeout"), *overlap = json_get(request, "overlap");
	double id;
	for (size_t i = 0; method && i < sizeof methods / sizeof *methods; i++)
		if (!strcmp(methods[i].name, method))
			call->method = &methods[i];
	if (!json_whole(json_get(request, "id"), INT64_MIN / 1024, INT64_MAX / 1024, &id))
		fault(call, "malformed request: its id is no integer", NULL);
	else if (!call->method)
		fault(call, "unknown call '%s'", method);
	else if (timeout && timeout->kind != NOTHING && (timeout->kind != NUMBER || timeout->number < 0))
		fault(call, "timeout: expected seconds", NULL);
	if (call->faulty) {
		end(call);
		return;
	}
	if (timeout && timeout->kind == NUMBER)
		call->given_up = now() + timeout->number;
	call->overlap = overlap && overlap->kind == TRUE;
	if (!call->method->no_descriptor) {
		const struct json *on = json_get(request, "on");
		const char *name = on ? json_text(request, "on") : call->method->on_listener ? "listener" : "c1";
		struct name *found = name ? find(name) : NULL;
		if (!found || found->fd < 0) {
			found ? failure(call, EBADF) : fault(call, "no descriptor has the name '%s'", name);
			end(call);
			return;
		}
		call->fd = found->fd;
		call->file = found->file;
		call->file->references++;
	}
	switch (call->method->run(call)) {
	case ENDED:
		end(call);
		break;
	case SLEEPS:
		fall_asleep(call);
		break;
	case THREAD:
		begin_thread(call);
	}
}

static void again(struct call *call)
{
	if (call->method->run(call) == ENDED) {
		take_out(&sleeping, call);
		end(call);
	}
}

void calls_again(bool (*ready)(const struct call *call))
{
	for (struct call *each = sleeping, *next; each; each = next) { /* in the order in which they went to sleep */
		next = each->next;
		if (!ready || ready(each))
			again(each);
	}
}

void calls_finish(void)
{
	double time = now();
	for (struct call *each = running, *next; each; each = next) {
		next = each->next;
		pthread_mutex_lock(&lock);
		bool over = each->over;
		pthread_mutex_unlock(&lock);
		if (!over)
			continue;
		take_out(&running, each);
		each->dropped ? call_free(each) : end(each);
	}
	for (struct call *each = sleeping, *next; each; each = next) {
		next = each->next;
		if (each->given_up > 0 && time >= each->given_up && each->method->waits_for) {
			put(&each->members, ",\"timeout\":true");
			take_out(&sleeping, each);
			end(each);
		} else if (each->given_up > 0 && time >= each->given_up) {
			again(each); /* poll, whose own argument it is */
		} else if (each->deadline > 0 && time >= each->deadline) {
			each->flags |= MSG_DONTWAIT; /* SO_RCVTIMEO, SO_SNDTIMEO: it ends as one that does not block */
			again(each);
		}
	}
}

double calls_due(void)
{
	double due = 0;
	for (struct call *each = sleeping; each; each = each->next) {
		if (each->given_up > 0 && (due == 0 || each->given_up < due))
			due = each->given_up;
		if (each->deadline > 0 && (due == 0 || each->deadline < due))
			due = each->deadline;
	}
	return due;
}

void calls_reset(void)
{
	platform_reset();
	for (struct call *call; (call = sleeping);) {
		sleeping = call->next;
		if (call->own_fd)
			platform_abandon(call->fd, call->file);
		call->own_fd = false;
		call_free(call);
	}
	for (struct name *name; (name = names);) {
		names = name->next;
		if (name->fd >= 0)
			platform_abandon(name->fd, name->file);
		release(name->file);
		free(name);
	}
	for (struct call *call = running; call; call = call->next) {
		call->dropped = true;
		if (call->method->run == do_close)
			platform_destroy(call);
	}
}
