/* /init of the User-Mode Linux that conform tests: brings up lo and eth0, then runs the agent on the second console.
 *
 * What it is told comes on the kernel's command line, whose unknown NAME=VALUE are init's environment: IP4 and IP6
 * (192.0.2.1/24, either may be absent), GW4 and GW6, MTU, and MODULES, the host's directory with a directory of modules
 * for each kernel: ipv6 is one. The first console, the kernel's, is standard error; the second is the channel, raw.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

struct in6_request { /* struct in6_ifreq of <linux/ipv6.h>, which does not go together with <net/if.h> */
	struct in6_addr address;
	unsigned prefix;
	int interface;
};

struct in6_route { /* struct in6_rtmsg */
	struct in6_addr destination, source, gateway;
	unsigned type;
	unsigned short destination_length, source_length;
	unsigned metric;
	unsigned long info;
	unsigned flags;
	int interface;
};

static void __attribute__((noreturn)) fail(const char *what)
{
	perror(what);
	reboot(RB_POWER_OFF);
	_exit(1);
}

#define MUST(what, call)            \
	do {                        \
		if ((call) < 0)     \
			fail(what); \
	} while (0)

static void write_to(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	MUST(path, fd);
	MUST(path, write(fd, text, strlen(text)));
	close(fd);
}

static void load(const char *modules, const char *name)
{
	static char path[512];
	struct utsname kernel;
	uname(&kernel);
	snprintf(path, sizeof path, "/host/%s/kernel/%s", kernel.release, name);
	mkdir("/host", 0755);
	MUST(modules, mount("none", "/host", "hostfs", MS_RDONLY, modules));
	int fd = open(path, O_RDONLY);
	MUST(path, fd);
	MUST(path, syscall(SYS_finit_module, fd, "", 0));
	close(fd);
	umount("/host");
}

/* The prefix's length, which is cut off. */
static int cut(char *address)
{
	char *slash = strchr(address, '/');
	if (!slash)
		fail(address);
	*slash = 0;
	return atoi(slash + 1);
}

static struct sockaddr_in *in4(struct sockaddr *at)
{
	return (struct sockaddr_in *)at;
}

static void up(int fd, const char *name)
{
	struct ifreq request = {0};
	strcpy(request.ifr_name, name);
	MUST(name, ioctl(fd, SIOCGIFFLAGS, &request));
	request.ifr_flags |= IFF_UP;
	MUST(name, ioctl(fd, SIOCSIFFLAGS, &request));
}

static void ipv4(int fd, char *address, const char *gateway)
{
	struct ifreq request = {.ifr_name = "eth0"};
	int length = cut(address);
	request.ifr_addr.sa_family = AF_INET;
	inet_pton(AF_INET, address, &in4(&request.ifr_addr)->sin_addr);
	MUST(address, ioctl(fd, SIOCSIFADDR, &request));
	in4(&request.ifr_addr)->sin_addr.s_addr = htonl(length ? ~0u << (32 - length) : 0);
	MUST("netmask", ioctl(fd, SIOCSIFNETMASK, &request));
	if (gateway) {
		struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
		route.rt_dst.sa_family = route.rt_genmask.sa_family = route.rt_gateway.sa_family = AF_INET;
		inet_pton(AF_INET, gateway, &in4(&route.rt_gateway)->sin_addr);
		MUST(gateway, ioctl(fd, SIOCADDRT, &route));
	}
}

static void ipv6(char *address, const char *gateway)
{
	int fd = socket(AF_INET6, SOCK_DGRAM, 0), interface = (int)if_nametoindex("eth0");
	MUST("IPv6", fd);
	struct in6_request request = {.prefix = (unsigned)cut(address), .interface = interface};
	inet_pton(AF_INET6, address, &request.address);
	MUST(address, ioctl(fd, SIOCSIFADDR, &request));
	if (gateway) {
		struct in6_route route = {.metric = 1, .flags = RTF_UP | RTF_GATEWAY, .interface = interface};
		inet_pton(AF_INET6, gateway, &route.gateway);
		MUST(gateway, ioctl(fd, SIOCADDRT, &route));
	}
	close(fd);
}

int main(void)
{
	char *address4 = getenv("IP4"), *address6 = getenv("IP6"), *mtu = getenv("MTU"), *modules = getenv("MODULES");
	struct termios raw;
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("none", "/dev", "devtmpfs", 0, NULL);
	mount("none", "/proc", "proc", 0, NULL);
	int console = open("/dev/tty0", O_RDWR | O_NOCTTY), channel = open("/dev/tty1", O_RDWR | O_NOCTTY);
	dup2(console, STDERR_FILENO);
	MUST("/dev/tty1", tcgetattr(channel, &raw));
	cfmakeraw(&raw);
	MUST("/dev/tty1", tcsetattr(channel, TCSANOW, &raw));
	dup2(channel, STDIN_FILENO);
	dup2(channel, STDOUT_FILENO);

	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	if (address6) {
		load(modules ? modules : "/usr/lib/uml/modules", "lib/crc-ccitt.ko");
		load(modules ? modules : "/usr/lib/uml/modules", "net/ipv6/ipv6.ko");
		/* no duplicate address detection, whose second would be awaited; nobody here advertises routes */
		write_to("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
		write_to("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
		write_to("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0");
	}
	if (mtu) {
		struct ifreq request = {.ifr_name = "eth0"};
		request.ifr_mtu = atoi(mtu);
		MUST("MTU", ioctl(fd, SIOCSIFMTU, &request));
	}
	/* what one trial's connection measured is nothing to the next trial's */
	write_to("/proc/sys/net/ipv4/tcp_no_metrics_save", "1");
	up(fd, "lo");
	up(fd, "eth0");
	if (address4)
		ipv4(fd, address4, getenv("GW4"));
	if (address6)
		ipv6(address6, getenv("GW6"));

	pid_t agent = fork();
	if (agent == 0) {
		execl("/agent", "/agent", (char *)NULL);
		fail("/agent");
	}
	close(STDIN_FILENO);
	close(STDOUT_FILENO);
	close(channel);
	int status = 0;
	while (wait(&status) != agent)
		;
	if (status)
		fprintf(stderr, "the agent ended with %s %d\n", WIFSIGNALED(status) ? "signal" : "status",
			WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	reboot(RB_POWER_OFF);
	return 1;
}
