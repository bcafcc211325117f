"""Files that are written whole or not at all: text, JSON, CSV, and errors that name their file."""

import csv
import io
import json
import math
import os
import re
import socket


def save_whole(save, path):
    """Call save(temporary path), then rename to `path`: a killed run leaves the old file or the new one, never half."""
    partial = f'{path}.{socket.gethostname()}-{os.getpid()}.part'
    try:
        save(partial)
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def remove_stale_parts(paths):
    """Remove what a killed run left half-written beside these paths on this machine; running processes keep theirs."""
    for folder in {os.path.dirname(path) or '.' for path in paths}:
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            found = re.search(rf'\.{re.escape(socket.gethostname())}-(\d+)\.part$', name)
            if found and not is_running(int(found[1])):
                os.remove(os.path.join(folder, name))


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def describe(error):
    """An error of one file as 'file: reason'."""
    return f'{error.filename}: {error.strerror}' if isinstance(error, OSError) and error.filename else str(error)


def raise_all(problems, where):
    """Raise one ValueError that names every problem, a line each; none, none."""
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

    def save(partial):
        with open(partial, 'w', encoding='utf-8', newline='') as file:
            file.write(text)

    save_whole(save, path)


def save_csv(path, rows, columns):
    """Write dicts as a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    save_text(path, text.getvalue())


def append_csv(path, row, columns):
    """Append a dict as one row; a new file starts with the names of the columns, what the row lacks stays empty."""
    with open(path, 'a', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns)
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)


def read_csv(path):
    """Rows of a CSV file as dicts; none where there is no file."""
    if not os.path.exists(path):
        return []
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))
