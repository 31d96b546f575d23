"""One process beside the replica in which artifacts are tried, warm while there is work for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

MODULE = "volary_inference.lifecycle.trial_run"
IDLE_S = 30.0  # a worker holds about 100 MB: it is ended when nothing was tried for so long
END_S = 5.0
MAX_ANSWER = 1 << 20
TOLD = b"t"


class TrialWorker:
    """Starts the process with the first trial, ends it with one that does not end or is given up.

    One trial at a time. The process has none of this one's environment, files or sockets but the
    one by which orders come.
    """

    def __init__(self, idle_s: float = IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = asyncio.Lock()
        self._process: _Process | None = None
        self._ending: asyncio.TimerHandle | None = None

    async def run(self, order: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Return a trial's exit code and what it said; raise TimeoutError."""
        async with self._lock:
            self._stay()
            # by vfork, a few milliseconds: a cancellation cannot come between it and the kill
            process = self._process = self._process or _Process()
            is_answered = False
            try:
                answer = await asyncio.to_thread(process.ask, order, timeout_s)
                is_answered = answer is not None
            finally:
                if not is_answered:
                    self.close()
            if answer is None:
                return process.code, b""
            self._end_later()
            return answer

    def close(self) -> None:
        """End the process, with whatever it is trying."""
        self._stay()
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def _stay(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _end_later(self) -> None:
        self._ending = asyncio.get_running_loop().call_later(self._idle_s, self.close)


class _Process:
    """The process and this end of its socket."""

    def __init__(self) -> None:
        # packets: an order and an answer are whole or not there
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # Python's own Popen starts it by vfork: the event loop's would fork, and gRPC's fork
            # handlers do not work in a process whose other threads serve calls
            self._child = subprocess.Popen(
                [sys.executable, "-m", MODULE],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={
                    "PATH": os.environ.get("PATH", ""),
                    # one thread: what forks may have no other
                    "OPENBLAS_NUM_THREADS": "1",
                    "ORT_DISABLE_TELEMETRY": "1",
                },
                start_new_session=True,
            )

    @property
    def code(self) -> int:
        """How the process ended, once it has."""
        return self._child.wait()

    def ask(self, order: bytes, timeout_s: float) -> tuple[int, bytes] | None:
        """Return the trial's exit code and word, None when the process ends; in a thread."""
        self._socket.settimeout(timeout_s)
        file = os.memfd_create("trial")
        try:
            with open(file, "wb", closefd=False) as memory:
                memory.write(order)
            os.lseek(file, 0, os.SEEK_SET)
            socket.send_fds(self._socket, [TOLD], [file])
            answer = self._socket.recv(MAX_ANSWER)
        except (BrokenPipeError, ConnectionResetError):
            return self._ended()
        finally:
            os.close(file)
        if not answer:
            return self._ended()
        found = json.loads(answer)
        return found["code"], found["said"].encode()

    def _ended(self) -> None:
        """Wait for an end that was begun: its code says what happened."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(END_S)

    def end(self) -> None:
        """Kill it with its child, unless it has ended."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()
        self._socket.close()
