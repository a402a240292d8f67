"""Files and folders that are there in full or not at all, and that stay: on the disk, under one holder at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from pathlib import Path
from typing import Any, BinaryIO, Iterable, Iterator, Mapping, Optional, TypedDict, Union

PathLike = Union[str, os.PathLike]
READ_BYTES = 1 << 20  # at a time
MEMORY_DEVICES = 1  # Linux's major number; terminals have others


class FileRecord(TypedDict):
    bytes: int
    sha256: str


def check_regular(path: Union[PathLike, int], most: Optional[int] = None) -> None:
    """Raises OSError unless `path` is a file of at most `most` bytes: a pipe is waited for, a device never ends."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, more than {most:,}", str(path))


def check_ends(path: PathLike) -> None:
    """Raises OSError for a device like /dev/zero, which can be read for ever; a pipe ends when its writer does."""
    if not os.path.exists(path) or os.path.samefile(path, os.devnull):  # whoever opens it says so; nothing to read
        return
    found = os.stat(path)
    if stat.S_ISBLK(found.st_mode) or stat.S_ISCHR(found.st_mode) and os.major(found.st_rdev) == MEMORY_DEVICES:
        raise OSError(errno.EINVAL, "it is a device, not a text", str(path))


def open_own(path: PathLike) -> int:
    """A file to read and to add to, a new one if there is none; nothing that lies elsewhere or is no file. OSError."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            error.strerror = "it is a symbolic link, which is not followed"
        raise
    try:
        check_regular(descriptor)
    except OSError as error:
        os.close(descriptor)
        error.filename = os.fspath(path)
        raise
    return descriptor


def sha256_of(path: PathLike) -> str:
    check_regular(path)
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_record(path: PathLike) -> FileRecord:
    return {"bytes": os.path.getsize(path), "sha256": sha256_of(path)}


def temporary_name(path: PathLike) -> str:
    """What this process calls `path` until it is complete."""
    return f"{path}.{socket.gethostname()}.{os.getpid()}.tmp"


def is_temporary(path: Path) -> bool:
    return re.search(r"\.\d+\.tmp$", path.name) is not None


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete what processes of this machine that were killed left in `folder`: of anything, or of what has that name.
    """
    for left in filter(is_temporary, list(folder.iterdir())):
        of, _, process = left.name.removesuffix(".tmp").rpartition(".")
        is_mine = of.endswith(f".{socket.gethostname()}") and name in ("", of.removesuffix(f".{socket.gethostname()}"))
        if is_mine and (int(process) == os.getpid() or not is_alive(int(process))):  # this process has not begun
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


@contextlib.contextmanager
def durably_written(path: PathLike) -> Iterator[BinaryIO]:
    """Write a file that is there in full or not at all, whatever happens meanwhile, on whichever machines."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.strerror and error.filename in (None, temporary):
            error.filename = os.fspath(path)
        raise


def check_new(option: str, path: Path) -> None:
    """Raises ValueError, in one line, if what a command makes cannot be a new file there."""
    if path.exists():
        raise ValueError(f"{option} {path} exists: name a new file")
    if not path.parent.is_dir():
        raise ValueError(f"{option} {path}: {path.parent} is no folder")


@contextlib.contextmanager
def result_written(path: Path) -> Iterator[BinaryIO]:
    """What a command makes, written as `durably_written` does; what one that was killed left of it goes first."""
    remove_leftovers(path.parent, path.name)
    with durably_written(path) as stream:
        yield stream


def replace_durably(path: PathLike, content: bytes) -> None:
    """Write a file as `durably_written` does."""
    with durably_written(path) as stream:
        stream.write(content)


def write_durably(path: Path, chunks: Iterable[bytes]) -> FileRecord:
    """Write a new file, on the disk when this returns; its `file_record`, of the bytes that were meant to be there."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as stream:
        for chunk in chunks:
            stream.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def sync_folder(path: Path) -> None:
    """Names in a folder are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, which gets that name at the end; after an error nothing of it is left, and what a
    killed process left is removed.

    Raises ValueError if `out` exists, or has no folder to be in.
    """
    if os.path.lexists(out):
        raise ValueError(f"{out} exists: name another folder")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{out.parent} is no folder to write {out.name} into")
    partial = Path(temporary_name(parent / f".{out.name}"))
    try:
        remove_leftovers(parent, f".{out.name}")
        partial.mkdir()
        yield partial
        sync(partial)
        os.rename(partial, out)
        sync_folder(parent)
    except OSError as error:
        if error.strerror and (error.errno == errno.ENOSPC or str(error.filename or partial).startswith(str(partial))):
            error.filename = str(out)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sync(folder: Path) -> None:
    """All of a folder is on the disk when this returns."""
    for path in (folder, *folder.rglob("*")):
        sync_folder(path)  # files, too


@contextlib.contextmanager
def claimed(path: Path, settings: Mapping[str, Any], at_work: str, begun_with: str) -> Iterator[int]:
    """Hold the folder of `path`, a file that keeps its settings: a new folder, or one of the same settings.

    Yields the lock's file descriptor: a process that inherits it holds the folder, too. Raises ValueError.
    at_work, begun_with: how messages say that another process holds it, and that its settings are others
    """
    out = path.parent
    if not path.exists():
        if out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
            raise ValueError(f"--out {out} is in use by something else: choose another folder")
        out.mkdir(parents=True, exist_ok=True)
        with durably_written(os.fspath(path)) as stream:
            stream.write(f"{json.dumps(settings, indent=1)}\n".encode())
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{at_work} in {out}: wait for it, or choose another --out") from None
        kept = None
        with contextlib.suppress(ValueError, RecursionError):
            kept = json.loads(stream.read())
        if not isinstance(kept, dict):
            raise ValueError(f"{path} is damaged: delete it and give the same command again")
        changes = [f"{name} {kept.get(name)}, not {new}" for name, new in settings.items() if kept.get(name) != new]
        if changes:
            raise ValueError(f"{out} {begun_with} {'; '.join(changes)}: choose another --out, or delete it")
        for folder in {left.parent for left in filter(is_temporary, out.rglob("*.tmp"))}:
            remove_leftovers(folder)
        yield stream.fileno()
