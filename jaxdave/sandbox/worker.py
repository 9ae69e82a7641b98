"""The source text of the sandbox's interpreter; it imports nothing of jaxdave.

`launcher` sends this file as text (`python -c`), so only the standard library is there.

There are two processes: a watcher, in whose place no program can put itself, and the
worker that it forks. The worker runs the program in a thread that is started from C, so
that no Python frame of this file is below the program's own: a program that climbs its
frames, or reads its tracebacks, finds neither the nonce nor the list that records its
success.
"""

import _thread
import builtins
import itertools
import marshal
import operator
import os
import signal
import sys
import time

TIMEOUT_STATUS = 124
"""Exit status of the watcher when the time ran out, as of the command `timeout`."""
NOBODY = 65534
STACK_BYTES = 64 << 20

# Constants of Linux, from <sched.h>, <sys/mount.h>, <sys/prctl.h> and
# <linux/capability.h>.
CLONE_NEWPID, CLONE_NEWNET, CLONE_NEWUSER = 0x20000000, 0x40000000, 0x10000000
CLONE_NEWNS, MS_PRIVATE_RECURSIVE, MS_RDONLY = 0x20000, 1 << 18 | 1 << 14, 1
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, SIGKILL = 1, 8, 9
CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH = 0x20080522, 1 << 2

# What no answer to a benchmark needs: looking at other frames and objects, sending
# signals, starting programs, reading memory, connecting.
REFUSED_EVENTS = frozenset(
    "sys._current_frames sys._current_exceptions sys.settrace sys.setprofile "
    "gc.get_objects gc.get_referrers gc.get_referents os.kill os.killpg "
    "signal.pthread_kill os.chdir os.system subprocess.Popen os.exec os.spawn "
    "os.posix_spawn ctypes.dlsym ctypes.dlsym/handle ctypes.string_at "
    "ctypes.wstring_at ctypes.cdata ctypes.cdata/buffer ctypes.PyObj_FromPtr "
    "ctypes.call_function socket.connect socket.bind socket.sendto socket.sendmsg "
    "socket.getaddrinfo".split()
)


def main() -> None:
    """Start one worker and watches it; exit with 0 only if the worker does."""
    limits, seconds, nonce, redefined_builtins, parts = marshal.load(sys.stdin.buffer)
    # The result file moves to another descriptor; the program's own output is dropped.
    result_fd, null_fd = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard_fd in (0, 1, 2):
        os.dup2(null_fd, standard_fd)
    # The limit of processes counts all processes and threads of the user. It may be
    # reached already, so it is set last, when everything of ours has been started.
    max_processes = limits.pop("RLIMIT_NPROC")
    for name, value in limits.items():
        lower_limit(name, value)
    libc = isolate()
    worker_pid = os.fork()
    if worker_pid == 0:
        try:
            drop_privileges(libc)
            if libc is not None:
                libc.prctl(PR_SET_PDEATHSIG, SIGKILL)
            codes = [compile(part, "<program>", "exec") for part in parts]
            steps = program_steps(codes, redefined_builtins)
            set_limit = (lower_limit, "RLIMIT_NPROC", max_processes)
            run_steps([set_limit, *steps], result_fd, nonce)
        finally:
            # Whatever went wrong, the worker must not return into the watcher's code.
            os._exit(1)
    os._exit(watch(worker_pid, seconds))


def watch(worker_pid: int, seconds: float) -> int:
    """Wait for the worker, and kill it when the time is up.

    Args:
        worker_pid: Process id of the worker.
        seconds: Time limit, wall clock.

    Returns:
        The exit status for the watcher: 0, 1, or `TIMEOUT_STATUS`.
    """
    killed = []

    def kill(*_) -> None:
        killed.append(worker_pid)
        os.kill(worker_pid, SIGKILL)

    signal.signal(signal.SIGALRM, kill)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status = os.waitpid(worker_pid, 0)[1]
    return TIMEOUT_STATUS if killed else int(status != 0)


def lower_limit(name: str, value: int) -> None:
    """Lower one resource limit, on systems that have it.

    Args:
        name: Its name in the module `resource`.
        value: The new limit; a hard limit that is already lower stays.
    """
    try:
        import resource

        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, ImportError, OSError, ValueError):
        pass


def isolate():
    """Give this process's children namespaces of their own, where that is permitted.

    Process ids, network and mounts: the worker can then signal nobody and connect to
    nothing, and its /proc is empty.

    Returns:
        The C library; None if there is none, or it is not that of Linux.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        everything = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS
        # Root may create namespaces directly; others only in a new user namespace,
        # and some containers permit neither, or the network only.
        for flags in (
            everything,
            everything | CLONE_NEWUSER,
            CLONE_NEWNET,
            CLONE_NEWNET | CLONE_NEWUSER,
        ):
            if libc.unshare(flags) == 0:
                break
        # Without mounts of its own this must not happen to everyone's /proc.
        if (
            flags & CLONE_NEWNS
            and libc.mount(None, b"/", None, MS_PRIVATE_RECURSIVE, None) == 0
        ):
            libc.mount(b"none", b"/proc", b"tmpfs", MS_RDONLY, None)
        _ = libc.prctl
    except (AttributeError, ImportError, OSError):
        return None
    return libc


def drop_privileges(libc) -> None:
    """Change from root to the user "nobody".

    Where the standard library is readable by root only (Python installed under /root),
    the process keeps the capability to read every file, and no other.

    Args:
        libc: What `isolate` returned.
    """
    if os.getuid() != 0:
        return
    try:
        os.chown(".", NOBODY, NOBODY)
        os.setgroups([])
        if nobody_can_read(os.__file__):
            become_nobody()
        elif libc is not None:
            # Capabilities are lost with the change of user unless it is announced.
            libc.prctl(PR_SET_KEEPCAPS, 1)
            become_nobody()
            keep_read_capability(libc)
    except OSError:
        pass


def become_nobody() -> None:
    """Change group and user; the group first, as afterwards it is not permitted."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def nobody_can_read(path: str) -> bool:
    """Return True if the user "nobody" may read a file.

    Args:
        path: The file.
    """
    os.seteuid(NOBODY)
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    finally:
        os.seteuid(0)
    return True


def keep_read_capability(libc) -> None:
    """Drop every capability but the one to read all files.

    Args:
        libc: The C library.
    """
    import ctypes

    word = ctypes.c_uint32
    header = (word * 2)(CAPABILITY_VERSION_3, 0)
    # Effective, permitted and inheritable, in two words each.
    data = (word * 6)(CAP_DAC_READ_SEARCH, CAP_DAC_READ_SEARCH, 0, 0, 0, 0)
    libc.capset(header, data)


def program_steps(codes, redefined_builtins) -> list[tuple]:
    """Plan the calls that run a program and then its tests.

    The tests run in a namespace with what the program defined, but for builtins, which
    are Python's, save those in `redefined_builtins`.

    Args:
        codes: Compiled code of the program, and of the tests if there are any.
        redefined_builtins: Names of builtins that the program is asked to define.

    Returns:
        Calls as tuples (function, *arguments), each of which returns None.
    """
    # Copied before the program runs, since it may replace entries of the module.
    fresh = dict(vars(builtins))
    restored = {
        name: value
        for name, value in fresh.items()
        if name[0] != "_" and name not in redefined_builtins
    }
    # A module of its own: `__main__` would show the program this file's functions.
    module = type(sys)("program")
    sys.modules["program"] = module
    program_globals, test_globals = module.__dict__, {}
    steps: list[tuple] = [(exec, codes[0], program_globals)]
    for code in codes[1:]:
        steps.append((test_globals.update, program_globals))
        steps.append((test_globals.update, {**restored, "__builtins__": fresh}))
        steps.append((exec, code, test_globals))
    return steps


def run_steps(steps: list[tuple], result_fd: int, nonce: bytes) -> None:
    """Run the calls, and send the nonce when the last of them has returned.

    Args:
        steps: What `program_steps` returned.
        result_fd: File descriptor of the result file.
        nonce: What proves that the program passed.
    """
    # Bound now: the program may change whatever it can look up by name.
    sleep, count, write, leave = time.sleep, _thread._count, os.write, os._exit
    # `done` gets a None for each step that returned; once a step raises it stays
    # shorter than `expected`.
    done, expected = [], [None] * len(steps)
    refuse_events()
    _thread.stack_size(STACK_BYTES)
    # Functions in C all through (extend, starmap, call): no frame of Python is below
    # the program, and `done` and the nonce are in no frame that it can reach.
    calls = itertools.starmap(operator.call, steps)
    _thread.start_new_thread(done.extend, (calls,))
    while not done:
        sleep(0.0005)
    # Without a running thread nothing can be added to `done` any more: a step raised.
    while done != expected and count():
        sleep(0.0005)
    if done == expected:
        write(result_fd, nonce)
        leave(0)


def refuse_events() -> None:
    """From here on the events in `REFUSED_EVENTS` raise, and so does opening /proc."""

    # The defaults bind what the hook needs, as the program could replace the globals.
    def hook(event, args, refused=REFUSED_EVENTS, error=PermissionError):
        # /proc holds the program's own memory, where it could not be emptied.
        if event in refused or (event == "open" and "/proc" in f"{args[0]}"):
            raise error(event)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
