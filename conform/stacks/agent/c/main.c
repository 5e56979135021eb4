/* The channel and the loop: lines from standard input, replies to standard output. */
#include "agent.h"

#include <sys/mman.h>

#define READ_SIZE 65536
#define INPUT "CONFORM_AGENT_INPUT" /* a descriptor to be heard before standard input */

static int channel; /* the real standard output: what a library prints goes to standard error */
static int waker[2];
static char *input;
static size_t filled, room, searched;
static bool greeted;
static char **arguments;

double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void wake(void)
{
	ssize_t written = write(waker[1], "", 1); /* full: the loop wakes anyway */
	(void)written;
}

static void leave(int status) __attribute__((noreturn));
static void leave(int status)
{
	static bool leaving;
	if (!leaving) {
		leaving = true;
		calls_reset();
	}
	_exit(status);
}

void say(const struct text *line)
{
	for (size_t done = 0; done < line->length;) {
		ssize_t written = write(channel, line->at + done, line->length - done);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			leave(1); /* conform is gone */
		done += (size_t)written;
	}
}

void last_words(const char *why)
{
	char line[256]; /* there may be no memory */
	int length = snprintf(line, sizeof line, "{\"broke\":\"%s\"}\n", why);
	ssize_t written = write(channel, line, (size_t)length);
	(void)written;
	_exit(1);
}

static void refuse(const struct json *id, const char *why)
{
	struct text line = {0};
	put(&line, "{\"id\":%s,\"fault\":", id && id->kind == NUMBER ? id->text : "null");
	put_quoted(&line, why);
	put(&line, "}\n");
	say(&line);
	free(line.at);
}

static bool keep(char *to, size_t size, const char *text)
{
	if (!text || strlen(text) >= size)
		return false;
	strcpy(to, text);
	return true;
}

static const char *read_hello(const struct json *request)
{
	double version, ip, number;
	struct trial told = {.family = AF_INET};
	unsigned char binary[16];
	if (!json_whole(json_get(request, "hello"), 1, 1, &version))
		return "this agent speaks version 1 of the protocol alone";
	if (!json_whole(json_get(request, "ip"), 4, 6, &ip) || ip == 5)
		return "ip: expected 4 or 6";
	if (ip == 6)
		told.family = AF_INET6;
	if (!keep(told.stack, sizeof told.stack, json_text(request, "stack")) || inet_pton(told.family, told.stack, binary) != 1)
		return "stack: expected an address of that IP version";
	if (!keep(told.tester, sizeof told.tester, json_text(request, "tester")) || inet_pton(told.family, told.tester, binary) != 1)
		return "tester: expected an address of that IP version";
	if (json_get(request, "interface") && !keep(told.interface, sizeof told.interface, json_text(request, "interface")))
		return "interface: expected a name";
	if (json_whole(json_get(request, "prefix"), 0, 128, &number))
		told.prefix = (int)number;
	if (json_whole(json_get(request, "mtu"), 68, 65535, &number))
		told.mtu = (int)number;
	trial = told;
	return NULL;
}

/* Run this program afresh, to hear the line, and what else was read already, before the channel. */
static void renew(const char *line)
{
	char number[16];
	int fd = memfd_create("input", 0);
	FILE *kept = fdopen(dup(fd), "w");
	if (!kept || fprintf(kept, "%s\n", line) < 0 || fwrite(input, 1, filled, kept) < filled || fclose(kept))
		last_words("a fresh process cannot be begun");
	lseek(fd, 0, SEEK_SET);
	snprintf(number, sizeof number, "%d", fd);
	setenv(INPUT, number, 1);
	dup2(channel, STDOUT_FILENO);
	for (int i = 3; i < 1024; i++) /* the library's device among them, whose thread still reads it */
		if (i != fd)
			fcntl(i, F_SETFD, FD_CLOEXEC);
	execv("/proc/self/exe", arguments);
	_exit(1);
}

static void hello(const struct json *request, const char *line)
{
	struct trial before = trial;
	const char *why = read_hello(request);
	if (!why) {
		if (greeted && platform_renewed)
			renew(line);
		if (greeted)
			calls_reset();
		why = platform_trial();
	}
	if (why) {
		trial = before;
		refuse(json_get(request, "id"), why);
		return;
	}
	greeted = true;
	struct text reply = {0};
	put(&reply, "{\"hello\":1,\"agent\":\"conform-c-%s\",\"capabilities\":[", platform_name);
	platform_capabilities(&reply);
	put(&reply, "]}\n");
	say(&reply);
	free(reply.at);
}

static void hear(char *line, size_t length)
{
	const char *why = NULL;
	char *copy = strcpy(allot(NULL, length + 1), line);
	struct json *request = json_read(line, length, &why);
	bool taken = false;
	if (!request || request->kind != OBJECT) {
		struct text text = {0};
		put(&text, "malformed request: %s", request ? "no object" : why);
		refuse(NULL, text.at);
		free(text.at);
	} else if (json_get(request, "hello")) {
		hello(request, copy);
	} else if (!greeted) {
		refuse(json_get(request, "id"), "hello comes first");
	} else {
		call_begin(request, line);
		taken = true;
	}
	if (!taken) {
		json_free(request);
		free(line);
	}
	free(copy);
}

static void hear_all(void)
{
	char *end;
	while ((end = memchr(input + searched, '\n', filled - searched))) {
		size_t length = (size_t)(end - input);
		char *line = allot(NULL, length + 1);
		memcpy(line, input, length);
		line[length] = 0;
		filled -= length + 1;
		memmove(input, end + 1, filled);
		searched = 0;
		if (length > 0)
			hear(line, length);
		else
			free(line);
	}
	searched = filled;
}

/* False at its end. */
static bool hear_more(int from)
{
	if (room - filled < READ_SIZE) {
		room = 2 * room + READ_SIZE;
		input = allot(input, room);
	}
	ssize_t got = read(from, input + filled, room - filled);
	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return true;
	if (got <= 0)
		return false;
	filled += (size_t)got;
	hear_all();
	return true;
}

static struct pollfd *watched;

#if !defined(LWIP) && !defined(LWIPV6)
/* Calls that went to sleep since the loop waited are behind those that it waited for: they are looked at next time. */
static size_t watched_count;

static bool ready(const struct call *call)
{
	for (size_t i = 2; i < watched_count; i++)
		if (watched[i].fd == call->fd)
			return watched[i].revents != 0;
	return false;
}
#endif

static void turn(void)
{
	size_t count = 2;
	for (struct call *each = sleeping; each; each = each->next)
		count++;
	watched = allot(watched, count * sizeof *watched);
	watched[0] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
	watched[1] = (struct pollfd){.fd = waker[0], .events = POLLIN};
	count = 2;
	for (struct call *each = sleeping; each; each = each->next) {
#if defined(LWIP) || defined(LWIPV6)
		platform_watch(each); /* its descriptor is no descriptor of this system's */
#else
		watched[count++] = (struct pollfd){.fd = each->fd, .events = call_events(each)};
#endif
	}
	double due = calls_due();
	int wait = due == 0 ? -1 : due <= now() ? 0 : due - now() > 1e6 ? 1000000000 : (int)((due - now()) * 1e3) + 1;
	if (poll(watched, count, wait) < 0 && errno != EINTR)
		last_words("poll failed");
	bool woken = watched[1].revents != 0;
	if (woken) {
		char octets[256];
		while (read(waker[0], octets, sizeof octets) > 0) {
		}
	}
#if defined(LWIP) || defined(LWIPV6)
	if (woken)
		calls_again(NULL);
#else
	watched_count = count;
	calls_again(ready);
#endif
	calls_finish();
	if (watched[0].revents && !hear_more(STDIN_FILENO))
		leave(0);
}

int main(int argc, char **argv)
{
	sigset_t blocked;
	const char *before = getenv(INPUT);
	(void)argc;
	arguments = argv;
	channel = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
	if (channel < 0 || dup2(STDERR_FILENO, STDOUT_FILENO) < 0 || pipe(waker) < 0)
		return 1;
	for (int i = 0; i < 2; i++) {
		fcntl(waker[i], F_SETFD, FD_CLOEXEC);
		fcntl(waker[i], F_SETFL, O_NONBLOCK);
	}
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGPIPE); /* it goes to the thread that wrote, and waits there to be seen */
	pthread_sigmask(SIG_BLOCK, &blocked, NULL);
	const char *why = platform_start(argv);
	if (why)
		last_words(why);
	if (before) {
		int fd = atoi(before);
		unsetenv(INPUT);
		while (hear_more(fd)) {
		}
		close(fd);
	}
	for (;;)
		turn();
}
