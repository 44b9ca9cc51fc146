"""The journal: what a run has measured, registered and stacked, kept in one SQLite file for the next run.

Whatever is wrong with it costs what it would have saved and nothing else: the run says so and goes on without. Records
carry digests and are no code, so that a damaged or foreign file can spoil nothing (see ``io.value_bytes``).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zemosaic_phase3 import __version__

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from zemosaic_phase3.io.origin import Origin

logger = logging.getLogger("ZeMosaicWorker")

SUFFIX: Final = ".journal"  # of the file beside an output
CACHE_NAME: Final = "zemosaic.journal"  # of the file in a folder of the user's choice
APPLICATION: Final = 0x5A4D5033  # "ZMP3", in the head of the file
LAYOUT: Final = 1  # of the tables; other ones are left alone
OLD_SECONDS: Final = 14 * 86400.0  # rows of a stack that nobody went on with
WAIT_SECONDS: Final = 5.0  # for another run that writes there
PENDING: Final = 64  # records that are written together at most; a run that is killed measures these again
PENDING_SECONDS: Final = 0.05
PACKAGE: Final = Path(__file__).resolve().parents[1]
_PACKAGES: Final = ("numpy", "scipy", "numba", "astropy")  # whose versions may move the last bit of a measurement
_TABLES: Final = """
CREATE TABLE frame (
    kind TEXT NOT NULL, path TEXT NOT NULL, key TEXT NOT NULL, version TEXT NOT NULL, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, number INTEGER NOT NULL, changed_ns INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (kind, path, key)
);
CREATE TABLE band (
    job TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, made REAL NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (job, first)
);
"""


class JournalError(Exception):
    """A journal cannot be used; says why, and what helps."""


@functools.cache
def version() -> str:
    """Return what numbers of a run depend on beside its frames and options: this code, and that of the packages."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.cu")]):
        found.update(path.relative_to(PACKAGE).as_posix().encode())
        found.update(path.read_bytes())
    packages = " ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return f"{__version__} {found.hexdigest()} {packages}"


class Journal:
    """One journal, open; any thread may call it.

    A new one is made when there is something to keep: a run that fails before leaves none. After the first failure
    nothing more is read or written, and ``fault`` says why.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection | None) -> None:
        self.path = path
        self.fault = ""
        self._connection = connection
        self._lock = threading.Lock()
        self._pending: list[tuple[Any, ...]] = []
        self._last_write = time.monotonic()

    @classmethod
    def opened(cls, path: Path, *, fresh: bool = False) -> Journal:
        """Open a journal, or get ready to begin one.

        Parameters
        ----------
        path : Path
            The file; its folder must exist.
        fresh : bool
            Forget what an earlier journal of ours holds, of whatever version.

        Raises
        ------
        JournalError
            There is another file, or one that is damaged.
        """
        try:
            import sqlite3
        except ImportError as exc:  # some builds of Python lack it
            raise JournalError(f"this Python has no SQLite ({exc})") from exc
        try:
            if path.is_symlink():
                raise JournalError(f"{path} is a symbolic link; remove it, or name a folder with --cache")
            return cls(path, _connected(path, fresh=fresh) if path.exists() else None)
        except (sqlite3.Error, OSError) as exc:  # OSError: the name is too long
            raise JournalError(f"{path}: {exc}; remove it, or name a folder with --cache") from exc

    def find(self, kind: str, origin: Origin, key: str) -> bytes | None:
        """Return what was kept of a file as it is now; None if nothing was."""
        row = self._do(
            lambda db: db.execute(
                "SELECT data, size, modified_ns, number, changed_ns FROM frame WHERE kind = ? AND path = ? AND key = ?",
                (kind, origin.path, key),
            ).fetchone()
        )
        if row is None or not type(origin.identity)(*row[1:]).is_same(origin.identity):
            return None
        return bytes(row[0])

    def keep(self, kind: str, origin: Origin, key: str, data: bytes) -> None:
        """Keep something of a file; written soon, together with others."""
        with self._lock:
            self._pending.append((kind, origin.path, key, version(), *origin.identity, data))
            is_due = len(self._pending) >= PENDING or time.monotonic() - self._last_write > PENDING_SECONDS
        if is_due:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self._pending:
            return

        def write(db: sqlite3.Connection) -> None:
            waiting, self._pending = self._pending, []
            self._last_write = time.monotonic()
            with _transaction(db):
                db.executemany("INSERT OR REPLACE INTO frame VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", waiting)

        self._do(write, makes=True)

    def bands(self, job: str) -> list[tuple[int, int, bytes]]:
        """Return the rows of a stack that are finished: first, last (excluded), and what was kept of them."""
        found = self._do(
            lambda db: db.execute("SELECT first, last, data FROM band WHERE job = ? ORDER BY first", (job,)).fetchall()
        )
        return [] if found is None else found

    def keep_band(self, job: str, first: int, last: int, data: bytes) -> None:
        """Keep finished rows of a stack."""
        row = (job, first, last, time.time(), data)
        self._do(lambda db: db.execute("INSERT OR REPLACE INTO band VALUES (?, ?, ?, ?, ?)", row), makes=True)

    def forget_bands(self, *jobs: str, older_than: float = OLD_SECONDS) -> None:
        """Give up the rows of some stacks, and those of any that nobody went on with for so many seconds."""

        def forget(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM band WHERE job = ?", [(job,) for job in jobs])
            db.execute("DELETE FROM band WHERE made < ?", (time.time() - older_than,))
            db.executescript("PRAGMA incremental_vacuum")  # execute() would stop after the first page

        self._do(forget)

    def of_other_versions(self) -> int:
        """Return how many records are of other versions of this program, which are left as they are."""
        found = self._do(
            lambda db: db.execute("SELECT count(*) FROM frame WHERE version <> ?", (version(),)).fetchone()
        )
        return 0 if found is None else int(found[0])

    def close(self) -> None:
        """Write what is waiting, and close the file."""
        import sqlite3

        self.flush()
        with self._lock, contextlib.suppress(sqlite3.Error):
            if self._connection is not None:
                self._connection.close()

    def _do(self, work: Callable[[sqlite3.Connection], Any], *, makes: bool = False) -> Any:
        """Do something with the file, which it ``makes`` where there is none yet; after a failure, nothing."""
        import sqlite3

        with self._lock:
            if self.fault or (self._connection is None and not makes):
                return None
            try:
                if self._connection is None:
                    self._connection = _connected(self.path, fresh=False)
                return work(self._connection)
            except (sqlite3.Error, OSError, JournalError) as exc:
                self.fault = str(exc) if isinstance(exc, JournalError) else f"{self.path}: {exc}"
                self._pending = []
                logger.warning("nothing more is kept for a next run: %s", self.fault)
                return None


def _connected(path: Path, *, fresh: bool) -> sqlite3.Connection:
    """Open a file that is a journal or will be one.

    Raises
    ------
    JournalError
        It is something else.
    sqlite3.Error
        It is damaged, or cannot be made.
    """
    import sqlite3

    connection = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, path, fresh=fresh)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Any:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _prepare(db: sqlite3.Connection, path: Path, *, fresh: bool) -> None:
    """Make sure that a file is a journal of this layout, and make it one where it is empty."""

    def said(name: str) -> int:
        return int(db.execute(f"PRAGMA {name}").fetchone()[0])

    db.execute("PRAGMA trusted_schema = OFF")
    n_tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if n_tables and said("application_id") != APPLICATION:
        raise JournalError(f"{path} is another program's database; name a folder with --cache")
    is_other = bool(n_tables) and said("user_version") != LAYOUT
    if is_other and not fresh:
        raise JournalError(f"{path} is of another version and is left as it is; --fresh begins a new one in its place")
    if not n_tables:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has an effect before the first table alone
    # A process that is killed leaves a whole journal; after a power cut the last records may be missing. Where the
    # folder cannot hold such a log (some network folders), SQLite keeps its older kind.
    db.execute("PRAGMA journal_mode = WAL").fetchone()
    db.execute("PRAGMA synchronous = NORMAL")
    if n_tables and fresh:
        with _transaction(db):
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
                db.execute(f'DROP TABLE "{name}"')
        db.executescript("PRAGMA incremental_vacuum")  # execute() would stop after the first page
    if fresh or not n_tables:
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {LAYOUT};"
            f"{_TABLES.replace('CREATE TABLE', 'CREATE TABLE IF NOT EXISTS')} COMMIT;"
        )
