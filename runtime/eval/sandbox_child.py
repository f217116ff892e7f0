"""Runs one program within limits. A script for `sandbox.py`, which starts it as `python -I -S sandbox_child.py FD`.

It imports nothing of this project. The job comes as JSON on the standard input; FD takes `ready`, and then one line: a
secret word if the program ran to its end, or what stopped it. Each layer below holds by itself, and those that a
system lacks are left out: limits and the audit hook are everywhere, the rest is Linux's.
"""

import contextlib
import ctypes
import io
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

FORBIDDEN_STATUS = 99
X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*, linux/audit.h
LIBC = ctypes.CDLL(None, use_errno=True)

# Numbers of system calls: linux/arch/x86/entry/syscalls/syscall_64.tbl, linux/include/uapi/asm-generic/unistd.h.
CLONE = {X86_64: 56, AARCH64: 220}
CLONE3 = 435
DENIED = {
    X86_64: {
        "socket": 41, "connect": 42, "sendto": 44, "sendmsg": 46, "bind": 49, "listen": 50, "fork": 57, "vfork": 58,
        "execve": 59, "kill": 62, "ptrace": 101, "setpgid": 109, "setsid": 112, "setrlimit": 160, "chroot": 161,
        "mount": 165, "umount2": 166, "tkill": 200, "tgkill": 234, "keyctl": 250, "unshare": 272, "prlimit64": 302,
        "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322,
        "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434,
    },
    AARCH64: {
        "umount2": 39, "mount": 40, "chroot": 51, "unshare": 97, "ptrace": 117, "kill": 129, "tkill": 130,
        "tgkill": 131, "setpgid": 154, "setsid": 157, "setrlimit": 164, "socket": 198, "bind": 200, "listen": 201,
        "connect": 203, "sendto": 206, "sendmsg": 211, "keyctl": 219, "execve": 221, "prlimit64": 261, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281,
        "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434,
    },
}  # fmt: skip
MACHINES = {"x86_64": X86_64, "aarch64": AARCH64}


def limit(seconds: float, memory: int, processes: bool) -> None:
    """Of this process: CPU, memory, files (which can hold nothing), core dumps, and, with `processes`, further ones,
    as which threads count too: where there is no seccomp to tell the two apart."""
    whole = max(1, int(-(-seconds // 1)))
    wanted = {
        resource.RLIMIT_CPU: (whole, whole + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
    }
    if processes and hasattr(resource, "RLIMIT_NPROC"):
        wanted[resource.RLIMIT_NPROC] = (0, 0)
    for what, values in wanted.items():
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit of address space
            resource.setrlimit(what, values)


def alone(parent: int) -> None:
    """No privileges to gain, the end when the parent ends, and namespaces without a network."""
    if not sys.platform.startswith("linux"):
        return
    LIBC.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        os._exit(1)
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    new_user, new_net, new_ipc = 0x10000000, 0x40000000, 0x08000000  # CLONE_NEW*, linux/sched.h
    LIBC.unshare(new_user | new_net | new_ipc)


def close_files(readable: list[str]) -> None:
    """Landlock (linux/landlock.h, Documentation/userspace-api/landlock.rst): nothing but these folders can be read,
    nothing can be written or run, and no TCP port used."""
    abi = LIBC.syscall(444, None, 0, 1) if sys.platform.startswith("linux") else -1
    if abi < 1:
        return
    files = (1 << 13) - 1  # what the first version knows: execute, write, read, and making and removing
    files |= (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0)  # refer, truncate
    attributes = struct.pack("=QQ", files, 3) if abi >= 4 else struct.pack("=Q", files)  # 3: bind and connect
    rules = LIBC.syscall(444, attributes, len(attributes), 0)
    if rules < 0:
        return
    for folder in readable:
        try:
            at = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        read = 1 << 2 | (1 << 3 if os.path.isdir(folder) else 0)  # files, and lists of folders
        LIBC.syscall(445, rules, 1, struct.pack("=Qi", read, at), 0)
        os.close(at)
    LIBC.syscall(446, rules, 0)
    os.close(rules)


class Filter(ctypes.Structure):
    """struct sock_filter, linux/filter.h."""

    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.POINTER(Filter))]


def close_system() -> None:
    """Seccomp (Documentation/userspace-api/seccomp_filter.rst): asking for a process, a program, a socket or a signal
    ends this one.

    Threads may be started: `clone` shows its flags. `clone3` hides them; told that there is none, libc takes the other.
    """
    arch = MACHINES.get(platform.machine()) if sys.platform.startswith("linux") else None
    if arch is None:
        return
    load, equal, least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ, JGE, JSET, BPF_RET
    kill, absent, allow = 0x80000000, 0x00050000 | 38, 0x7FFF0000  # KILL_PROCESS, ERRNO | ENOSYS, ALLOW
    thread = 0x00010000  # CLONE_THREAD
    lines = [(load, 0, 0, 4), (equal, 1, 0, arch), (answer, 0, 0, kill), (load, 0, 0, 0)]
    if arch == X86_64:
        lines += [(least, 0, 1, 0x40000000), (answer, 0, 0, kill)]  # the numbers of x32, which are others
    lines += [(equal, 0, 1, CLONE3), (answer, 0, 0, absent)]
    lines += [(equal, 0, 4, CLONE[arch]), (load, 0, 0, 16), (bits, 1, 0, thread), (answer, 0, 0, kill)]
    lines += [(answer, 0, 0, allow)]
    for number in DENIED[arch].values():
        lines += [(equal, 0, 1, number), (answer, 0, 0, kill)]
    lines += [(answer, 0, 0, allow)]
    filters = (Filter * len(lines))(*(Filter(*line) for line in lines))
    LIBC.prctl(22, 2, ctypes.byref(Program(len(lines), filters)), 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# Events of https://docs.python.org/3/library/audit_events.html that no answer to a question needs.
EVENTS = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty", "pty.spawn",
    "subprocess.Popen", "socket.", "ctypes.", "os.kill", "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.mkdir",
    "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr",
    "os.chdir", "os.fchdir", "os.chflags", "os.lockf", "shutil.", "tempfile.", "webbrowser.open", "urllib.Request",
    "http.client.", "ftplib.", "smtplib.", "poplib.", "imaplib.", "nntplib.", "telnetlib.", "sqlite3.connect",
    "resource.setrlimit", "resource.prlimit", "signal.pthread_kill", "fcntl.", "mmap.__new__", "syslog.", "winreg.",
    "_winapi.", "msvcrt.", "code.__new__", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
    "sys.addaudithook", "sys.setprofile", "sys.settrace", "cpython.run_",
)  # fmt: skip
READING = {"open", "os.listdir", "os.scandir", "os.walk", "glob.glob"}


def watch(readable: list[str], refuse: Callable[[str], None]) -> None:
    """An audit hook, which stays: an event that is not allowed ends the process."""
    roots = tuple(os.path.join(os.path.realpath(folder), "") for folder in readable)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if event.startswith(EVENTS):
            refuse(f"is not allowed: {event}")
        if event not in READING or not details or isinstance(details[0], int):
            return
        if event == "open" and isinstance(details[2], int) and details[2] & writing:
            refuse(f"is not allowed: writing {details[0]!r}")
        path = realpath(fsdecode(fspath(details[0] if details[0] is not None else ".")))
        if not os.path.join(path, "").startswith(roots):
            refuse(f"is not allowed: reading {details[0]!r}")

    sys.addaudithook(hook)


def main() -> None:
    out = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    for name in ("stdin", "__stdin__"):
        setattr(sys, name, io.TextIOWrapper(io.BytesIO()))
    write, leave = os.write, os._exit

    def refuse(reason: str) -> None:
        write(out, reason.encode(errors="replace")[:1000])
        leave(FORBIDDEN_STATUS)

    folders = [os.path.dirname(os.__file__), os.getcwd(), "/dev/null", "/dev/urandom", "/usr/share/zoneinfo"]
    folders += [part for part in sys.path if part]
    parts, word = job.pop("parts"), job.pop("word")
    alone(job["parent"])
    limit(job["seconds"], job["memory"], processes=platform.machine() not in MACHINES)
    close_files(folders)
    close_system()
    for name in ("ctypes", "_ctypes", "resource", "struct"):
        sys.modules.pop(name, None)
    globals().update(ctypes=None, LIBC=None, resource=None)
    watch(folders, refuse)
    write(out, b"ready\n")
    names = {"__name__": "__main__"}
    try:
        for part in parts:
            exec(compile(part, "program", "exec"), names)
    except BaseException as error:
        refuse(f"{type(error).__name__}: {error}")
    write(out, word.encode())
    leave(0)


if __name__ == "__main__":
    main()
