"""Commands of mpunet in processes of their own, started in a fraction of a second.

A new Python takes seconds to import Lightning. These processes are forked from a server that has
only imported it. Tests of code that starts processes itself (Lightning's launcher, torchrun, the
benchmark) use ordinary processes.
"""

import multiprocessing
import os
import random
import runpy
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

if "forkserver" in multiprocessing.get_all_start_methods():
    SERVER = multiprocessing.get_context("forkserver")
    SERVER.set_forkserver_preload(["mpunet.cli.lightning_cli"])
else:  # Windows: each process imports Lightning
    SERVER = multiprocessing.get_context("spawn")


CHANGES = ("os.rename", "os.remove", "fcntl.flock")  # audit events, beside "open"


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Command:
    """``mpunet WORDS`` in a process of its own, its output in files.

    Args:
        environment: variables for this process, beside those of the test.
        module: what is run, as by ``python -m``.
        before: function without arguments that the process calls first, see :func:`die_between`.
    """

    def __init__(self, words, environment=None, module="mpunet", before=None):
        self.folder = Path(tempfile.mkdtemp())
        files = [str(self.folder / name) for name in ("out", "err")]
        environment = {**os.environ, **(environment or {})}
        self.process = SERVER.Process(
            target=_main, args=(module, [*map(str, words)], environment, *files, before)
        )
        self.process.start()

    def wait(self, timeout=900):
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"not ended after {timeout} s: {self._read('err')}")
        ended = Ended(self.process.exitcode, self._read("out"), self._read("err"))
        shutil.rmtree(self.folder)
        return ended

    def _read(self, name):
        path = self.folder / name
        return path.read_text() if path.exists() else ""


def command(*words, status=0):
    """Run ``mpunet WORDS`` to its end; what it printed."""
    ended = Command(words).wait()
    assert ended.status == status, ended.out + ended.err
    return ended.out


def torchrun(rank, number, port):
    """What torchrun tells a process."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    numbers |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {**{key: str(value) for key, value in numbers.items()}, "TORCHELASTIC_RUN_ID": "test"}


def slurm(rank, number, port):
    """What srun tells a task."""
    job = {"ID": 1, "NAME": "test", "NUM_NODES": 1, "NODELIST": "127.0.0.1"}
    variables = {f"SLURM_JOB_{key}": str(value) for key, value in job.items()}
    task = {"NTASKS": number, "NTASKS_PER_NODE": number, "NNODES": 1, "NODELIST": "127.0.0.1"}
    task |= {"NODEID": 0, "PROCID": rank, "LOCALID": rank}
    return {
        **variables,
        **{f"SLURM_{key}": str(value) for key, value in task.items()},
        "MASTER_PORT": port,
    }


def ranks(number, *words, environment=torchrun, status=0):
    """Run ``mpunet WORDS`` in several processes that a launcher would start; what they printed.

    Args:
        environment: function of rank, number and port that gives a process's variables.
        status: exit status of rank 0; the others end with 0.
    """
    port = free_port()
    words = [*words, "--trainer.accelerator", "cpu", "--trainer.devices", number]
    started = [Command(words, environment(rank, number, port)) for rank in range(number)]
    ended = [process.wait() for process in started]
    assert [process.status for process in ended] == [status] + [0] * (number - 1), ended
    return "".join(process.out for process in ended)


def free_port():
    """A free port below the range of outgoing connections, so that none of them can take it."""
    while True:
        port = random.randint(15000, 30000)
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return str(port)


def die_between(folder, log):
    """Let this process be killed between two operations that change files of a folder.

    Operations are to open for writing, lock, rename and remove. The process ends between the first
    two that are not yet in the file ``log``, and adds them to it.
    """
    known = log.read_text().splitlines() if log.exists() else []
    last = "start"

    def look(event, args):
        nonlocal last
        changes = args[1] != "r" if event == "open" else event in CHANGES
        if not changes:
            return
        path = os.readlink(f"/proc/self/fd/{args[0]}") if event == "fcntl.flock" else args[0]
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if path.startswith(f"{folder}/"):
            name = "temporary" if ".partial" in path else os.path.basename(path)
            mode = f" {args[1]}" if event == "open" else ""
            last, before = f"{event.rpartition('.')[2]} {name}{mode}", last
            if (pair := f"{before}, {last}") not in known:
                log.write_text("".join(f"{line}\n" for line in [*known, pair]))
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def die_at(size):
    """Let this process be killed when a file that it writes has ``size`` bytes and would get more.

    The signal of a limit on the size of files ends a process as SIGKILL does: at once.
    """
    import resource  # not on Windows

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _main(module, words, environment, out, err, before):
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, stream.fileno())
    if before is not None:
        before()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
