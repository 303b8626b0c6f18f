"""A filter of system calls for code that is not trusted: what it needs for nothing honest is refused with EPERM.

Left out are those by which memory is held that no limit counts (memfd, System V and POSIX queues), those that look into other processes,
and parts of the kernel that ordinary programs do without. Namespaces and the limits of processes do the rest (sandbox.py).
"""

from __future__ import annotations

import errno
import platform
import struct

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# By machine, from the kernel's asm/unistd.h: (x86_64, aarch64). Those above 423 have one number everywhere.
_REFUSED = {
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "open_tree": (428, 428),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "quotactl": (179, 60),
    "acct": (163, 89),
    "swapon": (167, 224),
    "syslog": (103, 116),
}
_X32 = 0x40000000  # of x86_64: the same calls by other numbers

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF: load a word, jump if equal, jump if not less, return
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE = 0x00050000 | errno.EPERM
_NUMBER, _MACHINE = 0, 4  # offsets in struct seccomp_data


def program(machine: str = platform.machine()) -> bytes:
    """The filter in the form of bwrap's --seccomp. Raises ValueError for a machine whose system calls it does not know."""
    if machine not in _AUDIT:
        raise ValueError(f"code can be run on x86_64 and aarch64, whose system calls are known, and this is {machine}")
    numbers = [both[list(_AUDIT).index(machine)] for both in _REFUSED.values()]
    x32 = [(_AT_LEAST, len(numbers) + 1, 0, _X32)] if machine == "x86_64" else []
    refused = [(_EQUAL, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    steps = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, _AUDIT[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *x32,
        *refused,
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)
