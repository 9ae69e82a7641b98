"""What the sandbox's interpreter runs: read as text, so it imports nothing of jaxdave.

Two processes: a watcher, in whose place no program can put itself, and the worker that
it starts. The program runs in a thread that is started from C, so that no frame of ours
is below it; what tells that it reached its end lies in none of its frames.
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

LATE = 124
NOBODY = 65534
STACK_BYTES = 64 << 20
NEW_PIDS, NEW_NETWORK, NEW_USER = 0x20000000, 0x40000000, 0x10000000
NEW_MOUNTS, PRIVATE, READ_ONLY = 0x20000, 1 << 18 | 1 << 14, 1
DIE_WITH_PARENT, KEEP_RIGHTS, KILL = 1, 8, 9
CAPABILITIES_V3, READ_ANYTHING = 0x20080522, 1 << 2

# What no answer to a benchmark needs: looking at other frames and objects, sending
# signals, starting programs, reading memory, connecting.
REFUSED = frozenset(
    "sys._current_frames sys._current_exceptions sys.settrace sys.setprofile "
    "gc.get_objects gc.get_referrers gc.get_referents os.kill os.killpg "
    "signal.pthread_kill os.chdir os.system subprocess.Popen os.exec os.spawn "
    "os.posix_spawn ctypes.dlsym ctypes.dlsym/handle ctypes.string_at "
    "ctypes.wstring_at ctypes.cdata ctypes.cdata/buffer ctypes.PyObj_FromPtr "
    "ctypes.call_function socket.connect socket.bind socket.sendto socket.sendmsg "
    "socket.getaddrinfo".split()
)


def main() -> None:
    """Watch one worker; the exit status is 0 only where the worker's is."""
    limits, seconds, nonce, kept, parts = marshal.load(sys.stdin.buffer)
    back, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    processes = limits.pop("RLIMIT_NPROC")
    for name, value in limits.items():
        limit(name, value)
    libc = isolate()
    worker = os.fork()
    if worker == 0:
        try:
            drop_rights(libc)
            if libc is not None:
                libc.prctl(DIE_WITH_PARENT, KILL)
            steps = plan([compile(p, "<program>", "exec") for p in parts], kept)
            work([(limit, "RLIMIT_NPROC", processes), *steps], back, nonce)
        finally:
            os._exit(1)
    os._exit(watch(worker, seconds))


def watch(worker: int, seconds: float) -> int:
    """Wait for the worker, and end it when the time is up."""
    late = []

    def end(*_) -> None:
        late.append(worker)
        os.kill(worker, KILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status = os.waitpid(worker, 0)[1]
    return LATE if late else int(status != 0)


def limit(name: str, value: int) -> None:
    """Lower one resource limit, where the system has it."""
    try:
        import resource

        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(getattr(resource, name), (value, value))
    except (AttributeError, ImportError, OSError, ValueError):
        pass


def isolate():
    """Process ids and a network of its own for the worker, and an empty /proc, where
    that is permitted.

    The C library, None where there is none.
    """
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        every = NEW_PIDS | NEW_NETWORK | NEW_MOUNTS
        for flags in (every, every | NEW_USER, NEW_NETWORK, NEW_NETWORK | NEW_USER):
            if libc.unshare(flags) == 0:
                break
        # Without mounts of its own this must not happen to everyone's /proc.
        if flags & NEW_MOUNTS and libc.mount(None, b"/", None, PRIVATE, None) == 0:
            libc.mount(b"none", b"/proc", b"tmpfs", READ_ONLY, None)
        _ = libc.prctl
    except (AttributeError, ImportError, OSError):
        return None
    return libc


def drop_rights(libc) -> None:
    """From root to nobody, who may read on where the standard library is root's own."""
    if os.getuid() != 0:
        return
    try:
        os.chown(".", NOBODY, NOBODY)
        os.setgroups([])
        if nobody_reads(os.__file__):
            become_nobody()
        elif libc is not None:
            libc.prctl(KEEP_RIGHTS, 1)
            become_nobody()
            keep_reading(libc)
    except OSError:
        pass


def become_nobody() -> None:
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def nobody_reads(path: str) -> bool:
    os.seteuid(NOBODY)
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError:
        return False
    finally:
        os.seteuid(0)
    return True


def keep_reading(libc) -> None:
    """Of the rights that were kept through the change of user, keep only reading."""
    import ctypes

    words = ctypes.c_uint32
    header = (words * 2)(CAPABILITIES_V3, 0)
    libc.capset(header, (words * 6)(READ_ANYTHING, READ_ANYTHING, 0, 0, 0, 0))


def plan(codes, kept) -> list[tuple]:
    """The calls of a program, and then of its tests, each of which returns None.

    The tests see what the program defined, but for builtins, which are as they were:
    save the names in `kept`, which the program was asked to define.
    """
    fresh = dict(vars(builtins))
    plain = {k: v for k, v in fresh.items() if k[0] != "_" and k not in kept}
    module = type(sys)("program")
    sys.modules["program"] = module
    space, tested = module.__dict__, {}
    steps: list[tuple] = [(exec, codes[0], space)]
    for code in codes[1:]:
        steps.append((tested.update, space))
        steps.append((tested.update, {**plain, "__builtins__": fresh}))
        steps.append((exec, code, tested))
    return steps


def work(steps: list[tuple], back: int, nonce: bytes) -> None:
    """Run the calls; send the nonce when the last of them has returned."""
    # Bound now: the program may change whatever it can look up by name.
    sleep, count, write, leave = time.sleep, _thread._count, os.write, os._exit
    done, wanted = [], [None] * len(steps)
    refuse_events()
    _thread.stack_size(STACK_BYTES)
    calls = itertools.starmap(operator.call, steps)
    _thread.start_new_thread(done.extend, (calls,))
    while not done:
        sleep(0.0005)
    while done != wanted and count():
        sleep(0.0005)
    if done == wanted:
        write(back, nonce)
        leave(0)


def refuse_events() -> None:
    """From here on the events in `REFUSED` raise, and so does opening /proc."""

    def hook(event, told, refused=REFUSED, error=PermissionError):
        # The program's own memory, where /proc could not be emptied.
        if event in refused or (event == "open" and "/proc" in f"{told[0]}"):
            raise error(event)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
