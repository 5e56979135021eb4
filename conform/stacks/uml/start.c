/* Start a program, User-Mode Linux, with the host's ptrace as it was before extended register states, and with a SIGIO
 * now and then.
 *
 * A kernel of 6.1 keeps these in a buffer of one size, smaller than what processors with AMX have, and each process that
 * it begins then ends in "ptrace set fp regs failed". It asks the host once whether there are such states, and does with
 * the older call where there are none: a filter says so.
 *
 * Its interrupts are SIGIO, after which it asks epoll what there is. The host's TUN device sends SIGIO for a packet before
 * it tells epoll of it (tun_net_xmit). Where User-Mode Linux is the faster it finds nothing, and the packet lies there until
 * the next SIGIO, in a quiet trial for ever. So there is one every 20 ms.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __x86_64__
#error "only an x86-64 host has been tried"
#endif

#define GETREGSET 0x4204
#define X86_XSTATE 0x202
#define LOAD(what) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, what))
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)

static void interrupt(pid_t kernel)
{
	syscall(SYS_close_range, 0, ~0U, 0); /* the channel ends with the kernel */
	while (getppid() == kernel) {
		usleep(20000);
		kill(kernel, SIGIO);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sock_filter filter[] = {
		LOAD(nr), UNLESS(SYS_ptrace, 5),
		LOAD(args[0]), UNLESS(GETREGSET, 3),
		LOAD(args[2]), UNLESS(X86_XSTATE, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
	if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program) < 0) {
		perror("seccomp");
		return 1;
	}
	pid_t kernel = getpid();
	signal(SIGIO, SIG_IGN); /* until it handles it */
	if (fork() == 0)
		interrupt(kernel);
	execvp(argv[1], argv + 1);
	perror(argv[1]);
	return 1;
}
