/* POSIX sockets; what only Linux has is left out elsewhere. */
#include "agent.h"

#if !defined(LWIP) && !defined(LWIPV6)

#ifdef __linux__
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>

#define STATES "/proc/net/tcp"
#define COOKIE 57 /* SO_COOKIE, which not every libc has */
#endif

const char platform_name[] = "posix";
const bool platform_renewed = false;
const int platform_flags = ~0;

void platform_capabilities(struct text *to)
{
	put(to, "\"calls\",\"overlap\",\"dup\",\"sigpipe\",\"urgent\",\"shutdown-read\"");
#ifdef SO_REUSEPORT
	put(to, ",\"reuse-port\"");
#endif
#ifdef __linux__
	put(to, ",\"linger\",\"tcp-info\",\"repair\",\"fast-open\"%s", access(STATES, R_OK) ? "" : ",\"states\"");
#endif
}

const char *platform_start(char **argv)
{
	(void)argv;
	return NULL; /* the system's own stack runs, and has its addresses */
}

const char *platform_trial(void)
{
	int fd = socket(trial.family, SOCK_STREAM, 0);
	if (fd < 0)
		return strerror(errno);
	close(fd);
	return NULL;
}

static int unblocked(int fd)
{
	if (fd >= 0)
		fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	return fd;
}

int platform_socket(int family)
{
	return unblocked(socket(family, SOCK_STREAM, 0));
}

int platform_accept(int fd, struct sockaddr *address, socklen_t *size)
{
	return unblocked(accept(fd, address, size));
}

int platform_dup(int fd)
{
	return dup(fd);
}

void platform_abandon(int fd, const struct file *file)
{
	(void)file;
	struct linger zero = {1, 0};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &zero, sizeof zero);
	close(fd);
}

short platform_ready(int fd, short events)
{
	struct pollfd found = {.fd = fd, .events = events};
	return poll(&found, 1, 0) > 0 ? found.revents : 0;
}

void platform_watch(const struct call *call)
{
	(void)call;
}

const char *platform_signal(void)
{
	sigset_t set;
	struct timespec none = {0, 0};
	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	return sigtimedwait(&set, NULL, &none) == SIGPIPE ? "SIGPIPE" : NULL;
}

/* By the numbers of <linux/tcp.h> (net/tcp_states.h), in RFC 9293's spelling. NEW_SYN_RECV is SYN-RECEIVED too. */
const char *tcp_state_name(int state)
{
	static const char *const names[] = {
		"CLOSED", "ESTABLISHED", "SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED",
		"CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING", "SYN-RECEIVED",
	};
	return state >= 0 && (size_t)state < sizeof names / sizeof *names ? names[state] : "CLOSED";
}

#ifdef __linux__

/* struct tcp_info of <linux/tcp.h>, which not every libc has in full: a letter for a field's octets (1, 2, 4, 8), then
 * its name. The kernel may give less of it, or more. Two octets hold bit fields. */
static const char *const info_fields[] = {
	"1state", "1ca_state", "1retransmits", "1probes", "1backoff", "1options", "1", "1", "4rto", "4ato", "4snd_mss",
	"4rcv_mss", "4unacked", "4sacked", "4lost", "4retrans", "4fackets", "4last_data_sent", "4last_ack_sent",
	"4last_data_recv", "4last_ack_recv", "4pmtu", "4rcv_ssthresh", "4rtt", "4rttvar", "4snd_ssthresh", "4snd_cwnd",
	"4advmss", "4reordering", "4rcv_rtt", "4rcv_space", "4total_retrans", "8pacing_rate", "8max_pacing_rate",
	"8bytes_acked", "8bytes_received", "4segs_out", "4segs_in", "4notsent_bytes", "4min_rtt", "4data_segs_in",
	"4data_segs_out", "8delivery_rate", "8busy_time", "8rwnd_limited", "8sndbuf_limited", "4delivered",
	"4delivered_ce", "8bytes_sent", "8bytes_retrans", "4dsack_dups", "4reord_seen", "4rcv_ooopack", "4snd_wnd",
	"4rcv_wnd", "4rehash", "2total_rto", "2total_rto_recoveries", "4total_rto_time",
};

int platform_info(int fd, struct text *to)
{
	unsigned char data[512];
	socklen_t size = sizeof data;
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, data, &size) < 0)
		return -1;
	size_t at = 0;
	for (size_t i = 0; i < sizeof info_fields / sizeof *info_fields; i++) {
		const char *name = info_fields[i] + 1;
		size_t octets = (size_t)(info_fields[i][0] - '0');
		union {
			uint8_t one;
			uint16_t two;
			uint32_t four;
			uint64_t eight;
		} value = {0};
		at += -at % octets;
		if (at + octets > size)
			break;
		memcpy(&value, data + at, octets);
		unsigned long long number = octets == 1 ? value.one : octets == 2 ? value.two : octets == 4 ? value.four : value.eight;
		put(to, i ? "," : "{");
		if (*name)
			put(to, "\"tcpi_%s\":%llu", name, number);
		else if (at == 6)
			put(to, "\"tcpi_snd_wscale\":%llu,\"tcpi_rcv_wscale\":%llu", number & 15, number >> 4);
		else
			put(to, "\"tcpi_delivery_rate_app_limited\":%llu,\"tcpi_fastopen_client_fail\":%llu", number & 1, number >> 1 & 3);
		at += octets;
	}
	put(to, "}");
	return 0;
}

/* close(2) sleeps with SO_LINGER and a time, O_NONBLOCK or not, until the FIN is acknowledged. */
bool platform_threaded(struct call *call, const char *method)
{
	unsigned char state = 0;
	int unread = 0;
	socklen_t size = sizeof state;
	if (!call->file->lingers || call->file->references > 1 || strcmp(method, "close"))
		return false;
	/* What nobody has read is answered by a reset, at once. An urgent octet at the mark FIONREAD does not count. */
	bool resets = (ioctl(call->fd, FIONREAD, &unread) == 0 && unread > 0) || sockatmark(call->fd) == 1;
	if (getsockopt(call->fd, IPPROTO_TCP, TCP_INFO, &state, &size) == 0 && !resets)
		call->known = state && strchr("\1\3\4\10\11\13", state); /* in these a FIN is yet to be acknowledged */
	size = sizeof call->own;
	if (getsockname(call->fd, (struct sockaddr *)&call->own, &size) < 0)
		call->own.ss_family = 0;
	size = sizeof call->peer;
	if (getpeername(call->fd, (struct sockaddr *)&call->peer, &size) < 0)
		call->own.ss_family = 0;
	size = sizeof call->cookie;
	if (getsockopt(call->fd, SOL_SOCKET, COOKIE, call->cookie, &size) < 0)
		call->own.ss_family = 0;
	return true;
}

/* No descriptor leads to it any more: by SOCK_DESTROY, which wants CAP_NET_ADMIN and CONFIG_INET_DIAG_DESTROY. Where
 * that is not to be had the connection lasts until its own timers end it. */
void platform_destroy(const struct call *call)
{
	struct {
		struct nlmsghdr header;
		struct inet_diag_req_v2 wanted;
	} request = {.header = {.nlmsg_len = sizeof request, .nlmsg_type = SOCK_DESTROY, .nlmsg_flags = NLM_F_REQUEST}};
	struct inet_diag_sockid *id = &request.wanted.id;
	const struct sockaddr_in *own = (const void *)&call->own, *peer = (const void *)&call->peer;
	const struct sockaddr_in6 *own6 = (const void *)&call->own, *peer6 = (const void *)&call->peer;
	bool four = call->own.ss_family == AF_INET;
	if (!call->own.ss_family)
		return;
	request.wanted.sdiag_family = (uint8_t)call->own.ss_family;
	request.wanted.sdiag_protocol = IPPROTO_TCP;
	request.wanted.idiag_states = ~0U;
	id->idiag_sport = own->sin_port; /* where sin6_port is, too */
	id->idiag_dport = peer->sin_port;
	memcpy(id->idiag_src, four ? (const void *)&own->sin_addr : &own6->sin6_addr, four ? 4 : 16);
	memcpy(id->idiag_dst, four ? (const void *)&peer->sin_addr : &peer6->sin6_addr, four ? 4 : 16);
	id->idiag_if = four ? 0 : own6->sin6_scope_id;
	memcpy(id->idiag_cookie, call->cookie, sizeof call->cookie);
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	if (fd < 0)
		return;
	send(fd, &request, sizeof request, 0); /* once it returns it is done, or refused */
	close(fd);
}

const char *platform_state(int port, int peer)
{
	static const char *const files[] = {STATES, STATES "6"};
	int found = -1;
	for (int i = 0; i < 2; i++) {
		FILE *file = fopen(files[i], "re");
		char line[512];
		if (!file && i == 0)
			return NULL;
		while (file && found < 0 && fgets(line, sizeof line, file)) {
			unsigned local, remote, state;
			if (sscanf(line, " %*[0-9]: %*[0-9A-F]:%x %*[0-9A-F]:%x %x", &local, &remote, &state) == 3 &&
			    local == (unsigned)port && remote == (unsigned)peer)
				found = (int)state;
		}
		if (file)
			fclose(file);
	}
	return tcp_state_name(found);
}

/* A sysctl that was set, and what it was before. */
struct kept {
	struct kept *next;
	char path[256], value[4096];
};
static struct kept *kept;

/* What the file holds, without the end of its line. */
static bool read_setting(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, to, size - 1);
	if (fd >= 0)
		close(fd);
	while (got > 0 && to[got - 1] == '\n')
		got--;
	if (got >= 0)
		to[got] = 0;
	return got >= 0;
}

static bool write_setting(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written = fd < 0 ? -1 : write(fd, value, strlen(value));
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = error;
	return written >= 0;
}

/* A sysctl: net.ipv4.tcp_sack. */
const char *platform_set(const char *name, const char *value, struct text *before)
{
	struct kept *found = kept, *made = NULL;
	char path[256] = "/proc/sys/", was[4096], *dot;
	if (strncmp(name, "net.", 4) || strchr(name, '/') || strlen(name) > 200)
		return "unknown setting '%s'";
	strcat(path, name);
	while ((dot = strchr(path, '.')))
		*dot = '/';
	if (!read_setting(path, was, sizeof was))
		return errno == ENOENT ? "unknown setting '%s'" : "the setting '%s' cannot be read, to be given back later";
	while (found && strcmp(found->path, path))
		found = found->next;
	if (!found) {
		made = allot(NULL, sizeof *made);
		strcpy(made->path, path);
		strcpy(made->value, was);
	}
	if (!write_setting(path, value)) {
		free(made);
		return errno == EINVAL ? "the setting '%s' does not take that value" : "the setting '%s' cannot be written";
	}
	if (made) {
		made->next = kept;
		kept = made;
	}
	put(before, "%s", was);
	return NULL;
}

void platform_reset(void)
{
	for (struct kept *each; (each = kept);) { /* the last first: one may bound another */
		kept = each->next;
		if (!write_setting(each->path, each->value))
			last_words("a setting cannot be given back");
		free(each);
	}
}

#else

int platform_info(int fd, struct text *to)
{
	(void)fd, (void)to;
	errno = ENOPROTOOPT;
	return -1;
}

void platform_destroy(const struct call *call)
{
	(void)call;
}

bool platform_threaded(struct call *call, const char *method)
{
	(void)call, (void)method; /* SO_LINGER is no capability where nothing tells whether close sleeps */
	return false;
}

const char *platform_state(int port, int peer)
{
	(void)port, (void)peer;
	return NULL;
}

const char *platform_set(const char *name, const char *value, struct text *before)
{
	(void)name, (void)value, (void)before;
	return "unknown setting '%s'";
}

void platform_reset(void) {}

#endif
#endif
