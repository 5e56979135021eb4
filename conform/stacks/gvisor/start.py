"""Starts gVisor (runsc) with conform's agent in it, its network stack on this network namespace's devices.

``start.py DIRECTORY PROGRAM ARGUMENT...``: PROGRAM is the sandbox's first process, on this process's standard input and
output. It sees the machine's files, and cannot write them. DIRECTORY takes the OCI bundle and runsc's state; nothing is
left elsewhere: what is mounted is mounted in a mount namespace of its own, and all of runsc dies with the process that
this one becomes (PR_SET_PDEATHSIG). Run as root, or as root of a user namespace that owns the network namespace.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

_CLONE_NEWNS = 0x20000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 0x4000, 0x80000
#: The user that runsc's kernel runs as.
_NOBODY = 65534
#: What runsc is told, where it knows the flag: which ones there are differs between its versions.
_FLAGS = {
    "ignore-cgroups": "true",  # they need privileges, and bring nothing here
    "network": "sandbox",
    # Else segments come larger than the link, and without checksums, and none that arrives is verified.
    "gso": "false",
    "software-gso": "false",
    "tx-checksum-offload": "false",
    "rx-checksum-offload": "false",
    # Where the kernel in the sandbox panics its last words are shown; they are of interest for the first lines.
    "panic-log": "/dev/stderr",
    "traceback": "single",
    # Files may change under it: conform's own, while it is worked on.
    "file-access": "shared",
}
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None), f"mount {target}")


def hide_proc() -> None:
    """Be in a mount namespace whose /proc is this PID namespace's, and does not look like the machine's own network's.

    runsc writes /proc/PID/uid_map with the process ids that it knows, and refuses a network where
    /proc/sys/net/core/rmem_default is, which newer kernels have in every network namespace.
    """
    _check(_libc.unshare(_CLONE_NEWNS), "a mount namespace")
    _mount("none", "/", "", _MS_REC | _MS_SLAVE)
    if os.readlink("/proc/self") != str(os.getpid()):
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if os.path.exists("/proc/sys/net/core"):
        _mount("none", "/proc/sys/net/core", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def bundle(command: list[str]) -> dict[str, Any]:
    """The OCI bundle's ``config.json``."""
    return {
        "ociVersion": "1.0.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": command,
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
            "cwd": "/",
        },
        "root": {"path": "/", "readonly": True},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "ipc", "uts", "mount")),
                {"type": "network", "path": "/proc/self/ns/net"},
            ]
        },
    }


def flags() -> list[str]:
    """The flags that this runsc knows, of those that it is to have. Raises OSError."""
    told = subprocess.run(["runsc", "flags"], capture_output=True, text=True, check=False)
    known = set(re.findall(r"^\s+--?([A-Za-z0-9-]+)", told.stdout + told.stderr, re.MULTILINE))
    chosen = [f"--{name}={value}" for name, value in _FLAGS.items() if name in known or name == "network"]
    if not _is_mapped(_NOBODY):
        # runsc runs its kernel as nobody, who does not exist in an ordinary user's own user namespace. Run as the user
        # instead, it lacks a wall between itself and the machine's files that conform's own agent does not need.
        chosen.append("--TESTONLY-unsafe-nonroot=true")
    return chosen


def _is_mapped(user: int) -> bool:
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= user < first + length for first, _, length in ranges)


def main(directory: Path, command: list[str]) -> NoReturn:
    """Become runsc. Raises OSError."""
    chosen = flags()
    hide_proc()
    state = directory / "runsc"
    state.mkdir(mode=0o700, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(bundle(command)))
    # The name is one within the network namespace (an abstract socket), and within the state directory.
    arguments = ["runsc", f"--root={state}", *chosen, "run", f"--bundle={directory}", "conform"]
    os.execvp("runsc", arguments)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]).resolve(), sys.argv[2:])
    except FileNotFoundError as error:
        sys.exit("runsc is not installed: sudo apt-get install runsc" if "runsc" in str(error) else str(error))
    except OSError as error:
        sys.exit(f"gVisor cannot be started: {error}")
