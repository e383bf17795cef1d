"""A PostgreSQL server of one's own, in a folder of its own, that can be killed."""

from __future__ import annotations

import getpass
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from free_ports import free_port

_ROOT = Path(__file__).resolve().parents[1]
_MEMORY = 6 << 30
"""Room that the databases of a whole test run may take, in bytes."""
_SUPERUSER = "postgres"
_SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 200
shared_buffers = 128MB
max_wal_size = 4GB
logging_collector = off
log_min_messages = warning
"""


def find_programs() -> Path:
    """Return the folder of `initdb` and `postgres`.

    Raises:
        FileNotFoundError: There is none; `scripts/setup-postgresql` makes one.
    """
    candidates = [Path(os.environ["POSTGRESQL_BIN"])] if os.environ.get("POSTGRESQL_BIN") else []
    on_path = shutil.which("initdb")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    candidates += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    candidates += [path.parent for path in (_ROOT / ".tools" / "embedded-postgres").rglob("initdb")]
    for candidate in candidates:
        if (candidate / "initdb").exists() and (candidate / "postgres").exists():
            return candidate
    raise FileNotFoundError("no PostgreSQL server is installed; scripts/setup-postgresql installs one")


class PostgresServer:
    """A server on a free port of the loopback interface, to which everybody on this machine may connect. Blocking.

    Its data survives :meth:`crash` and :meth:`restart`, and goes with :meth:`close`. Every commit is synced to disk, as
    in production, unless ``fsync`` is off, which is for tests that neither crash nor measure.
    """

    def __init__(self, *, fsync: bool = True) -> None:
        """Prepare a server; entering it makes and starts it."""
        self._programs = find_programs()
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        # Root must not run it; the one who does must be able to reach the folder, which excludes root's own.
        self._user = _unprivileged() if os.geteuid() == 0 else None
        # Not `Popen(user=…)`: it makes a real fork, in whose child gRPC's fork handlers crash now and then.
        self._as_user = ["setpriv", f"--reuid={self._user}", "--clear-groups", "--"] if self._user else []
        self._folder: Path | None = None
        self.port = 0
        """Port, from the start on; it stays the same."""

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="tailrace-postgres-", dir=None if self._fsync else _memory()))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._folder.chmod(0o700)
        try:
            self._run(
                "initdb", "-D", str(self._data), "-U", _SUPERUSER, "-A", "trust", "-E", "UTF8", "--locale=C", "-N"
            )
            with (self._data / "postgresql.conf").open("a") as file:
                file.write(_SETTINGS + f"unix_socket_directories = '{self._folder}'\nfsync = {self._fsync}\n")
            self._start_anywhere()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _data(self) -> Path:
        assert self._folder is not None
        return self._folder / "data"

    @property
    def log(self) -> str:
        """What the server has said."""
        assert self._folder is not None
        return (self._folder / "log").read_text(errors="replace")

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database."""
        return f"postgresql://{_SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"test_{os.getpid()}_{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, url: str | None = None) -> str:
        """Run a statement and return what it answers, unaligned and without headers."""
        return self._run(
            "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", url or self.url(), "-c", statement
        )

    @property
    def running(self) -> bool:
        """Whether it was started, and was not stopped since."""
        return self._process is not None

    def start(self) -> None:
        """Start the server, and wait until it takes connections; after a crash it recovers first."""
        assert self._folder is not None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user, self._programs / "postgres", "-D", self._data, "-p", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                # A signal that is meant for the tests is not for it.
                start_new_session=True,
            )
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"PostgreSQL did not start:\n{self.log}")
            ready = subprocess.run(
                [self._programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"], check=False
            )
            if ready.returncode == 0:
                return

    def _start_anywhere(self) -> None:
        """Start the server on a port that nobody has taken between its choice and its use."""
        for _ in range(5):
            self.port = free_port()
            with suppress(RuntimeError):
                self.start()
                return
        self.port = free_port()
        self.start()

    def crash(self) -> None:
        """Kill every process of the server, as a loss of power does (what the disk cache holds apart)."""
        assert self._process is not None
        pid = self._process.pid
        # Each is the leader of a group of its own. One that is at work would not notice soon that the first has gone.
        os.kill(pid, signal.SIGSTOP)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ends = []
        for child in map(int, children):
            with suppress(ProcessLookupError):
                ends.append(os.pidfd_open(child))
                os.kill(child, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        self._process.wait()
        # No other server may start on the data while one of them still has the shared memory.
        for end in ends:
            waiting = select.poll()
            waiting.register(end, select.POLLIN)
            waiting.poll()
            os.close(end)
        # Its shared memory is freed by the next start.
        self._process = None

    def stop(self) -> None:
        """Stop the server in order, if it runs; its clients are cut off."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self.crash()
            self._process = None

    def restart(self) -> None:
        """Stop it, if it runs, and start it again."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop it and remove its data; idempotent."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.crash()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self._as_user, self._programs / program, *arguments],
            cwd=self._folder,
            check=False,
            text=True,
            capture_output=True,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


def _memory() -> Path | None:
    """Return a folder in memory, if there is one with room: many databases take long to be removed from a disk."""
    folder = Path("/dev/shm")
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free < _MEMORY:
        return None
    return folder


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError(f"{getpass.getuser()} must not run PostgreSQL, and there is no other user")
