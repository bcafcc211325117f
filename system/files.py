"""Files that are written whole or not at all: text, JSON, CSV, and errors that name their file."""

import contextlib
import csv
import io
import json
import math
import os
import re
import secrets
import stat

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None

PART = re.compile(r'\.[0-9a-f]{16}\.part')  # name of a file that is being written


def save_whole(save, path):
    """Call save(open binary file), then rename the file to `path`: a killed run leaves the old file or the new one.

    Raises:
        OSError: disk full, no permission; it names `path`.
    """
    try:
        with open_part(os.path.dirname(path) or '.') as file:
            save(file)
            file.flush()
            if not fcntl:  # Windows renames no open file; elsewhere it keeps its lock
                file.close()
            os.replace(file.name, path)
    except OSError as error:
        if error.errno:
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextlib.contextmanager
def open_part(folder):
    """A new file in a folder, open for writing under a lock that says that it is in use; gone in the end.

    The lock is the kernel's: it ends with its process, and is seen from every container that shares the folder.
    """
    while True:
        file = open(os.path.join(folder, f'.{secrets.token_hex(8)}.part'), 'xb')  # noqa: SIM115 - closed below
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks: nobody will get this one either
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(file.name):  # else taken for a stale one before it was locked
            break
        file.close()
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(file.name)


def copy_status(status, path, with_times=False):
    """Give a file the permissions in `status`, of os.stat, and the times of access and modification if asked."""
    with contextlib.suppress(PermissionError, NotImplementedError):  # some file systems have no permissions
        os.chmod(path, stat.S_IMODE(status.st_mode) & 0o777)
    if with_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_stale_parts(folders):
    """Remove what killed runs left half-written in these folders; what is being written stays."""
    for folder in filter(os.path.isdir, folders):
        for name in filter(PART.fullmatch, os.listdir(folder)):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError), open(path, 'r+b') if fcntl else contextlib.nullcontext() as file:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error where it is in use
                os.remove(path)


def error_line(error):
    """An error of one file as 'file: reason'."""
    return f'{error.filename}: {error.strerror}' if isinstance(error, OSError) and error.filename else str(error)


def printable(text):
    """Text with control characters, and bytes of names that are no text, escaped, so that it is safe on a terminal."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def raise_all(problems, where):
    """Raise one ValueError that names every problem, a line each; without problems, do nothing."""
    if problems:
        raise ValueError(f'{where}: {len(problems)} bad\n  ' + '\n  '.join(problems))


def save_json(path, values):
    """Write values as readable JSON, whole or not at all; an infinite value becomes the text 'inf'."""
    save_text(path, json.dumps(plain(values), indent=2, ensure_ascii=False) + '\n')


def plain(value):
    """Nested dicts and lists with floats that JSON does not have as text."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def save_text(path, text):
    """Write text as UTF-8, whole or not at all."""
    save_whole(lambda file: file.write(text.encode()), path)


def save_csv(path, rows, columns):
    """Write dicts as a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def read_csv(path):
    """Rows of a CSV file as dicts; none where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))
