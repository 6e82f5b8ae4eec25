"""A real PostgreSQL server in a temporary folder, on loopback, for tests."""

from __future__ import annotations

import getpass
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2


def installed() -> Path | None:
    """The folder of the server's programs, which Debian keeps out of PATH; None without any."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in [*debian, *map(Path, os.environ["PATH"].split(os.pathsep))]:
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb")):
            return folder
    return None


class Postgres:
    """The server as a context manager: starts the process, stops it by its id.

    PostgreSQL refuses to run as root; root starts it as ``postgres`` or ``nobody``.
    """

    def __init__(self) -> None:
        programs = installed()
        assert programs is not None, "PostgreSQL is not installed: apt-get install postgresql"
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            owner = _somebody()
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
            user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        data, self._numbers = self.folder / "data", itertools.count()
        options: dict[str, Any] = {"cwd": self.folder, **user}
        initialise = ["-D", str(data), "-U", "test", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(
            [programs / "initdb", *initialise, "--locale=C"],
            check=True, stdout=subprocess.DEVNULL, **options,
        )  # fmt: skip
        with (self.folder / "log").open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(programs / "postgres", "-D", data, "-p", str(self.port), "-F"),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="),
                ],
                stdout=log, stderr=log, **options,
            )  # fmt: skip

    def _connect(self) -> Any:
        return psycopg2.connect(host="127.0.0.1", port=self.port, user="test", dbname="postgres")

    def new_database(self) -> str:
        """Make an empty database and return its URI."""
        name = f"test{next(self._numbers)}"
        connection = self._connect()
        connection.autocommit = True
        connection.cursor().execute(f"CREATE DATABASE {name}")
        connection.close()
        return f"postgresql+psycopg2://test@127.0.0.1:{self.port}/{name}"

    def __enter__(self) -> Postgres:
        deadline = time.monotonic() + 60
        while True:
            with suppress(psycopg2.OperationalError):
                self._connect().close()
                return self
            told = (self.folder / "log").read_text()
            assert self._process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)  # which ends connections, and then the server
        self._process.wait(30)
        shutil.rmtree(self.folder)


def _somebody() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError(f"{getpass.getuser()} has nobody to run PostgreSQL as")
