/* lwIP 2.1: its sockets API, its unix port's TAP interface, and its own lists of connections. */
#include "agent.h"

#ifdef LWIP

#include "lwip/api.h"
#include "lwip/memp.h"
#include "lwip/netif.h"
#include "lwip/priv/sockets_priv.h"
#include "lwip/priv/tcp_priv.h"
#include "lwip/tcpip.h"
#include "netif/tapif.h"

static struct netif netif;
static bool started;
static char tap[32] = "tap0";
static netconn_callback original;

/* Debian's memp.c takes TCP_MSS from <netinet/tcp.h>, 512, and makes the buffers of the pbuf pool of 592 octets; pbuf.c
 * fills them with up to 1536, so that a frame of more than 592 overruns the heap. The linker prefers this one. */
#if MEMP_MEM_MALLOC && !MEMP_OVERFLOW_CHECK && !LWIP_STATS
__attribute__((weak)) const struct memp_desc memp_PBUF_POOL = {
	.size = LWIP_MEM_ALIGN_SIZE(sizeof(struct pbuf)) + 1536, /* PBUF_POOL_BUFSIZE with a TCP_MSS of 1460 */
};
#endif

const char platform_name[] = "lwip";
const bool platform_renewed = false;
const int platform_flags = MSG_PEEK | MSG_DONTWAIT | MSG_MORE;

void platform_capabilities(struct text *to)
{
	put(to, "\"calls\",\"overlap\",\"linger\",\"shutdown-read\",\"states\"");
}

static void up(void *done)
{
	sys_sem_signal(done);
}

/* An address with the length of its prefix: 192.0.2.1/24. With the core locked. */
static const char *add_address(const char *address, int prefix)
{
	ip_addr_t made;
	if (!ipaddr_aton(address, &made))
		return "no address";
	if (IP_IS_V4(&made)) {
		ip4_addr_t mask = {lwip_htonl(prefix > 0 ? ~(u32_t)0 << (32 - prefix) : 0)};
		netif_set_addr(&netif, ip_2_ip4(&made), &mask, IP4_ADDR_ANY4);
	} else {
		/* The first place is the link-local address's, from which neighbours are solicited: it serves as well, and there
		 * is nothing for duplicate address detection to be late about. The prefix is always 64 (nd6.c). */
		netif_ip6_addr_set(&netif, 0, ip_2_ip6(&made));
		netif_ip6_addr_set_state(&netif, 0, IP6_ADDR_PREFERRED);
	}
	return NULL;
}

static const char *start(void)
{
	const char *why = NULL;
	sys_sem_t done;
	if (started)
		return NULL;
	setenv("PRECONFIGURED_TAPIF", tap, 1); /* opened by name, and not configured: conform has made it */
	if (sys_sem_new(&done, 0) != ERR_OK)
		return "lwIP does not start";
	tcpip_init(up, &done);
	sys_arch_sem_wait(&done, 0);
	sys_sem_free(&done);
	LOCK_TCPIP_CORE();
	if (!netif_add(&netif, IP4_ADDR_ANY4, IP4_ADDR_ANY4, IP4_ADDR_ANY4, NULL, tapif_init, tcpip_input))
		why = "lwIP does not take the interface";
	netif.flags |= NETIF_FLAG_MLD6; /* else no group is joined, and no neighbour solicitation heard */
	netif_set_default(&netif);
	netif_set_up(&netif);
	netif.rs_count = 0; /* no router solicitations: the stack does not speak by itself */
	UNLOCK_TCPIP_CORE();
	started = true;
	return why;
}

/* argv: [INTERFACE [ADDRESS/PREFIX]...], to be reachable before the first hello. "/" is an address left out. */
const char *platform_start(char **argv)
{
	const char *why = NULL, *told = getenv("PRECONFIGURED_TAPIF");
	if (told && strlen(told) < sizeof tap)
		strcpy(tap, told);
	if (!argv[1])
		return NULL;
	if (strlen(argv[1]) >= sizeof tap)
		return "no interface";
	strcpy(tap, argv[1]);
	why = start();
	for (char **each = argv + 2; !why && *each; each++) {
		char *prefix = strchr(*each, '/');
		if (prefix == *each)
			continue;
		if (prefix)
			*prefix = 0;
		LOCK_TCPIP_CORE();
		why = add_address(*each, prefix ? atoi(prefix + 1) : 24);
		UNLOCK_TCPIP_CORE();
	}
	return why;
}

const char *platform_trial(void)
{
	if (!started && trial.interface[0])
		strcpy(tap, trial.interface);
	const char *why = start();
	if (why)
		return why;
	LOCK_TCPIP_CORE();
	why = add_address(trial.stack, trial.prefix ? trial.prefix : 24);
	if (trial.mtu) {
		u16_t mtu = (u16_t)LWIP_MIN(trial.mtu, 1500); /* tapif's buffers */
		netif.mtu = mtu;
		netif.mtu6 = mtu;
	}
	UNLOCK_TCPIP_CORE();
	return why;
}

/* SO_LINGER of zero resets only what has octets left to send or to be acknowledged, and nobody has a connection in the
 * closing states any more: abort each, from the stack's own lists. */
void platform_reset(void)
{
	if (!started)
		return;
	LOCK_TCPIP_CORE();
	while (tcp_active_pcbs)
		tcp_abort(tcp_active_pcbs);
	for (struct tcp_pcb *pcb; (pcb = tcp_tw_pcbs);) {
		/* tcp_abandon() tells nobody that one in TIME-WAIT is gone: a socket that was only shut down still points to it. */
		tcp_err_fn errf = pcb->errf;
		void *arg = pcb->callback_arg;
		tcp_abort(pcb);
		if (errf)
			errf(arg, ERR_ABRT);
	}
	UNLOCK_TCPIP_CORE();
}

static void woken(struct netconn *conn, enum netconn_evt event, u16_t length)
{
	original(conn, event, length);
	wake();
}

int platform_socket(int family)
{
	int fd = lwip_socket(family, SOCK_STREAM, 0);
	if (fd < 0)
		return -1;
	/* What tells lwip_poll of an event tells us, too. Accepted connections have their listener's. */
	struct netconn *conn = lwip_socket_dbg_get_socket(fd)->conn;
	original = conn->callback;
	conn->callback = woken;
	lwip_fcntl(fd, F_SETFL, O_NONBLOCK);
	return fd;
}

int platform_accept(int fd, struct sockaddr *address, socklen_t *size)
{
	int made = lwip_accept(fd, address, size);
	if (made >= 0)
		lwip_fcntl(made, F_SETFL, O_NONBLOCK);
	return made;
}

int platform_dup(int fd)
{
	(void)fd;
	errno = ENOSYS;
	return -1;
}

/* What it was connected to, platform_reset has aborted. But when TIME-WAIT expires lwIP frees the connection and tells no
 * socket: one that was only shut down still points there, to nothing or to another's, and would free it once more. */
void platform_abandon(int fd, const struct file *file)
{
	if (file->connected) {
		LOCK_TCPIP_CORE();
		lwip_socket_dbg_get_socket(fd)->conn->pcb.tcp = NULL;
		UNLOCK_TCPIP_CORE();
	}
	lwip_close(fd);
}

void platform_destroy(const struct call *call)
{
	(void)call; /* platform_reset has */
}

short platform_ready(int fd, short events)
{
	struct pollfd found = {.fd = fd, .events = events};
	return lwip_poll(&found, 1, 0) > 0 ? found.revents : 0;
}

void platform_watch(const struct call *call)
{
	(void)call; /* the sockets' callback wakes the loop */
}

/* A close with SO_LINGER and a time sleeps while octets are unacknowledged; on a socket that does not block it would fail
 * and leave the connection to nobody (lwip_netconn_do_close_internal). */
bool platform_threaded(struct call *call, const char *method)
{
	if (!call->file->lingers || strcmp(method, "close"))
		return false;
	LOCK_TCPIP_CORE();
	const struct tcp_pcb *pcb = lwip_socket_dbg_get_socket(call->fd)->conn->pcb.tcp, *each = tcp_active_pcbs;
	while (each && each != pcb) /* it may be gone (platform_abandon) */
		each = each->next;
	call->known = each && (each->unsent || each->unacked);
	UNLOCK_TCPIP_CORE();
	lwip_fcntl(call->fd, F_SETFL, 0);
	return true;
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
	static const char *const names[] = { /* enum tcp_state */
		"CLOSED", "LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT",
		"CLOSING", "LAST-ACK", "TIME-WAIT",
	};
	int found = CLOSED;
	LOCK_TCPIP_CORE();
	struct tcp_pcb *lists[] = {tcp_active_pcbs, tcp_tw_pcbs};
	for (int i = 0; i < 2 && peer; i++)
		for (struct tcp_pcb *pcb = lists[i]; pcb; pcb = pcb->next)
			if (pcb->local_port == port && pcb->remote_port == peer)
				found = pcb->state;
	for (struct tcp_pcb_listen *pcb = tcp_listen_pcbs.listen_pcbs; pcb && !peer; pcb = pcb->next)
		if (pcb->local_port == port)
			found = LISTEN;
	UNLOCK_TCPIP_CORE();
	return names[found];
}

const char *platform_set(const char *name, const char *value, struct text *before)
{
	(void)name, (void)value, (void)before;
	return "unknown setting '%s'"; /* all are chosen when lwIP is compiled */
}

#endif
