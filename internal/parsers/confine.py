"""Takes rights away from a process that reads hostile files: resources, network, privileges, system calls, files.

Every wall is tried; those that stand are reported, so that `doctor` can tell what a host doesn't allow.
"""

import ctypes
import errno
import math
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

SANDBOX_ID = 64_911  # user and group without a name: shares no file and no process with anybody
OPEN_FILES = 64
FILE_BYTES = 256 << 20

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_DENY = 0x00050000 | errno.EPERM
# Numbers differ by architecture: audit id, then sockets, programs, other processes, kernel interfaces.
_ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        # socket connect accept sendto sendmsg bind listen socketpair, fork vfork execve execveat, kill tkill ptrace
        # process_vm_readv/writev pidfd_send_signal pidfd_getfd, mount umount2 pivot_root chroot unshare setns bpf
        # perf_event_open userfaultfd keyctl add_key request_key io_uring_* init_module finit_module kexec_load
        (41, 42, 43, 44, 46, 49, 50, 53, 57, 58, 59, 322, 62, 200, 101, 310, 311, 424, 438, 165, 166, 155, 161, 272,
         308, 321, 298, 323, 250, 248, 249, 425, 426, 427, 175, 313, 246),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 203, 202, 206, 211, 200, 201, 199, 221, 281, 129, 130, 117, 270, 271, 424, 438, 40, 39, 41, 51, 97, 268,
         280, 241, 282, 219, 217, 218, 425, 426, 427, 105, 273, 104),
    ),
}  # fmt: skip
_X32_BIT = 0x40000000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_RIGHTS = (1 << 2) | (1 << 3)  # read files, list folders
_WRITE_RIGHTS = (1 << 1) | _READ_RIGHTS | (1 << 5) | (1 << 8)  # write, remove and make regular files
_ALL_RIGHTS = (1 << 13) - 1


def end_with_parent() -> None:
    """The process dies when the one that made it does."""
    parent = os.getppid()
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def leave_network() -> bool:
    """Moves the process into an empty network namespace; false where the host doesn't allow it."""
    libc = _libc()
    if libc.unshare(_CLONE_NEWNET) == 0:
        return True
    return os.geteuid() != 0 and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0


def bound_resources(*, seconds: float, memory: int) -> None:
    """Hard bounds of the kernel; `seconds` of the processor. Address space is generous: resident memory is watched
    from outside."""
    cpu = math.ceil(seconds)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    space = pages * os.sysconf("SC_PAGE_SIZE") + 2 * memory
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 2),
        (resource.RLIMIT_AS, space, space),
        (resource.RLIMIT_FSIZE, FILE_BYTES, FILE_BYTES),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        _, ceiling = resource.getrlimit(kind)
        ceiling = hard if ceiling == resource.RLIM_INFINITY else min(hard, ceiling)
        resource.setrlimit(kind, (min(soft, ceiling), ceiling))


def drop_privileges() -> bool:
    """From root to an unnamed user without groups; false when the process isn't root."""
    if os.geteuid() != 0:
        return False
    os.setgroups([])
    os.setresgid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
    os.setresuid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
    # Changing the user clears the wish to die with the parent.
    end_with_parent()
    return True


def forbid_privileges() -> bool:
    """No later program can gain rights, no other process of the same user can read this one's memory."""
    libc = _libc()
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0


def forbid_calls() -> bool:
    """A system call filter: no sockets, no programs, no other processes. Needs `forbid_privileges` before."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = _filter(*known, x32=platform.machine() == "x86_64")
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("count", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    pointer = Program(len(program) // 8, ctypes.addressof(buffer))
    return _libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(pointer), 0, 0) == 0


def forbid_files(*, readable: Iterable[str], writable: str) -> bool:
    """Landlock: files outside `readable` and `writable` can't be opened. Needs `forbid_privileges` before."""
    libc = _libc()
    libc.syscall.restype = ctypes.c_long
    ruleset = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(ctypes.c_uint64(_ALL_RIGHTS)), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    try:
        for path, rights in (*((path, _READ_RIGHTS) for path in readable), (writable, _WRITE_RIGHTS)):
            if not _allow(libc, ruleset, path, rights):
                return False
        return libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def code_folders() -> tuple[str, ...]:
    """Folders that lazy imports may still need: Python, its packages and this program."""
    own = Path(__file__).resolve().parents[1]
    folders = {sys.prefix, sys.base_prefix, "/usr", "/lib", "/lib64", "/proc/self", str(own), str(own.parent / "pkg")}
    # Not Path.is_dir: it raises for a folder inside one that this user can't enter, such as root's home.
    return tuple(sorted(folder for folder in folders if os.path.isdir(folder)))


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> bool:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        # What can't be opened needs no leave.
        return True
    try:
        rule = ctypes.create_string_buffer(struct.pack("<Qi", rights, folder))
        return libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0) == 0
    finally:
        os.close(folder)


def _filter(architecture: int, denied: tuple[int, ...], *, x32: bool) -> bytes:
    """Classic BPF: another architecture kills, a denied call gives EPERM, the rest passes."""
    load, equal, greater, end = 0x20, 0x15, 0x35, 0x06
    code = [
        struct.pack("<HBBI", load, 0, 0, 4),
        struct.pack("<HBBI", equal, 1, 0, architecture),
        struct.pack("<HBBI", end, 0, 0, _KILL),
        struct.pack("<HBBI", load, 0, 0, 0),
    ]
    if x32:
        code += [struct.pack("<HBBI", greater, 0, 1, _X32_BIT), struct.pack("<HBBI", end, 0, 0, _DENY)]
    for number in denied:
        code += [struct.pack("<HBBI", equal, 0, 1, number), struct.pack("<HBBI", end, 0, 0, _DENY)]
    code.append(struct.pack("<HBBI", end, 0, 0, _ALLOW))
    return b"".join(code)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
