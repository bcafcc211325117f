"""Which photos and videos a folder, a file or a pattern stands for, and where their results go; names only, no pixels.

A result's name follows from its photo's own name and the wanted format alone, never from what else lies in the folder,
so that photos added later do not take over the names of results that are there already:

    a.jpg -> a.jpg        a.png as jpg -> a_png.jpg        a_png.jpg beside it -> a_png_jpg.jpg
    illumination of a.jpg -> illumination/a_jpg.png        a folder illumination/ of photos -> illumination_/
"""

import fnmatch
import functools
import glob
import os
import tempfile
from collections import Counter
from typing import NamedTuple

from photos import formats
from photos.picture import is_photo, written_extension

SHEET = 'contact_sheet.jpg'  # in the result folder
VIDEO = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi')  # what video/ reads
ILLUMINATIONS = 'illumination'  # folder in the result folder


class Found(NamedTuple):
    """Photos and videos that are asked for."""

    root: str  # folder that results are mirrored from
    paths: list  # of both, sorted
    others: Counter  # how many files of which kind were left out
    problems: list  # folders that could not be read, a line each


class Job(NamedTuple):
    """One photo or video, and what is made of it."""

    path: str
    result: str
    illumination: str  # '' where it is not asked for; a video has none
    problem: str = ''  # why it cannot be done


# --------------------------------------------------------------------------------------------------- what is there


def find_photos(images, recursive, result_dir):
    """Photos and videos of a folder, a file or a glob pattern, or of several of these; what lies in result_dir is none.

    Args:
        images: path or pattern, or a list of them.
        recursive: the folders below too.
    Returns:
        Found.
    Raises:
        FileNotFoundError: nothing there, or no photo in it. ValueError: result_dir is the photos' own folder.
    """
    asked = [images] if isinstance(images, str) else list(images)
    roots, found, others, problems = [], {}, Counter(), []
    real = functools.lru_cache(os.path.realpath)
    for path in asked:
        root, files = expand(path, recursive, others, problems)
        if os.path.realpath(result_dir) == os.path.realpath(root):
            raise ValueError(f'result_dir: expected another folder than that of the photos, got {result_dir}')
        roots.append(root)
        found |= {(real(os.path.dirname(file)), os.path.basename(file)): file for file in reversed(files)}
    root = roots[0] if len(set(roots)) == 1 else shared_folder(roots)
    results = os.path.realpath(result_dir)
    if not os.path.realpath(root).startswith(results + os.sep):
        found = {key: file for key, file in found.items() if not is_below(key[0], results)}
    paths = sorted(file for (_, name), file in found.items() if is_photo(name) or is_video(name))
    others.update(kind_of(name) for _, name in found if not is_photo(name) and not is_video(name))
    if not paths:
        hint = '' if recursive else '; --recursive looks into the folders below'
        looked = f'looked for {" ".join(formats.READABLE + VIDEO)}{hint}'
        raise FileNotFoundError('\n'.join([f'{", ".join(asked)}: no photos or videos ({looked})', *problems]))
    return Found(root, paths, others, problems)


def expand(path, recursive, others, problems):
    """(root folder, files) of one path or pattern; links to folders are counted in others, where they end a search."""
    if os.path.isfile(path):
        return os.path.dirname(path) or '.', [path]
    if os.path.isdir(path):
        files = []
        for folder, folders, names in walk(path, problems):
            files += [os.path.join(folder, name) for name in names + list(filter(is_photo, folders))]
            if not recursive:
                break
            others['linked folder'] += sum(os.path.islink(os.path.join(folder, name)) for name in folders)
        return path, files
    if glob.has_magic(path):
        return match(path, problems)
    raise FileNotFoundError(f'{path}: expected a folder of photos, a photo or a pattern, found none')


def walk(folder, problems, follow=False):
    """os.walk without hidden folders; links to folders are followed on request, each real folder once.

    Folders that cannot be read are added to problems.
    """
    seen, starts = set(), [folder]
    while starts:
        for at, folders, names in os.walk(
            starts.pop(0), onerror=lambda error: problems.append(f'{error.filename}: {error.strerror}')
        ):
            real = os.path.realpath(at)
            folders[:] = sorted(name for name in folders if not name.startswith('.')) if real not in seen else []
            if real in seen:
                continue
            seen.add(real)
            yield at, folders, names
            if follow:
                links = (os.path.join(at, name) for name in folders)
                starts += [link for link in links if os.path.islink(link)]


def match(pattern, problems):
    """(folder before its first wildcard, files) of a glob pattern, in which `**` stands for any folders below.

    Unlike glob.glob, `**` goes into each real folder once, however links lead round.
    """
    root, (*parts, last) = split_pattern(pattern)
    folders = [root or '.']
    for part in parts:
        if part == '**':
            folders = [at for folder in folders for at, _, _ in walk(folder, problems, follow=True)]
        else:
            folders = [os.path.join(folder, name) for folder in folders for name in names_like(folder, part)]
            folders = [folder for folder in folders if os.path.isdir(folder)]
    files = [os.path.join(folder, name) for folder in folders for name in names_like(folder, last)]
    files = files if root else [file.removeprefix(f'.{os.sep}') for file in files]
    return root or '.', [file for file in files if not os.path.isdir(file)]


def split_pattern(pattern, path=os.path):
    """(folder before a pattern's first wildcard, its parts below that); a folder of that very name is none.

    Args:
        path: os.path of the system whose separators count.
    """
    root = path.dirname(pattern)
    while glob.has_magic(root) and not path.isdir(root):
        root = path.dirname(root)
    parts = path.relpath(pattern, root or path.curdir).split(path.sep)
    return root, [*parts, '*'] if parts[-1] == '**' else parts


def names_like(folder, pattern):
    """Names in a folder that a pattern without slashes stands for; hidden ones where it starts with a dot."""
    if not glob.has_magic(pattern):
        return [pattern] if os.path.lexists(os.path.join(folder, pattern)) else []
    names = os.listdir(folder) if os.access(folder, os.R_OK) else []
    return [name for name in fnmatch.filter(names, pattern) if pattern[0] == '.' or name[0] != '.']


def shared_folder(roots):
    """The folder that several folders are in.

    Raises:
        ValueError: they are on different drives.
    """
    try:
        return os.path.commonpath([os.path.abspath(root) for root in roots])
    except ValueError as error:
        raise ValueError(f'images_dir: expected paths on one drive, got {", ".join(roots)}') from error


def is_below(path, folder):
    return path == folder or path.startswith(folder + os.sep)


def is_video(path):
    """Whether a file of that name is a video: a known extension, and not hidden."""
    return path.lower().endswith(VIDEO) and not os.path.basename(path).startswith('.')


def kind_of(name):
    """What the count of files left out calls a file."""
    return 'hidden' if name.startswith('.') else os.path.splitext(name)[1].lower() or 'without extension'


# ---------------------------------------------------------------------------------------------- where results go


def plan_jobs(found, result_dir, format='', illuminations=False, sheet=False):
    """A Job for every photo, with all names that the run will write; none is an original's or another job's.

    Args:
        found: from find_photos.
        format: extension of all photos' results; '' keeps each one's where that can be written, see written_extension.
            Videos keep theirs.
        illuminations, sheet: these are written too.
    Raises:
        ValueError: not a format that can be written, or the contact sheet would replace an original.
    """
    check_format(format)
    originals = {os.path.realpath(path) for path in found.paths}
    if sheet and os.path.realpath(os.path.join(result_dir, SHEET)) in originals:
        raise ValueError(f'result_dir: the contact sheet would replace the original {os.path.join(result_dir, SHEET)}')
    jobs = []
    for path in found.paths:
        name = result_name(os.path.relpath(path, found.root), format)
        result, illumination = os.path.join(result_dir, name), ''
        if illuminations and not is_video(name):
            illumination = os.path.join(result_dir, ILLUMINATIONS, rename(name, '.png'))
        replaced = [new for new in (result, illumination) if new and os.path.realpath(new) in originals]
        problem = f'{path}: its result would replace the original {replaced[0]}' if replaced else ''
        jobs.append(Job(path, result, illumination, problem))
    counts = Counter(job.result.lower() for job in jobs)
    if max(counts.values()) > 1 and ignores_case(result_dir):
        problem = '{}: another photo has this name but for upper and lower case, which {} does not tell apart'
        jobs = [job._replace(problem=problem.format(job.path, result_dir)) if counts[job.result.lower()] > 1 else job
                for job in jobs]  # fmt: skip
    return jobs


def check_format(format):
    if format and f'.{format.lower().lstrip(".")}' not in formats.WRITABLE:
        raise ValueError(f'format: expected one of {" ".join(e[1:] for e in formats.WRITABLE)}, got {format!r}')


def result_name(name, format=''):
    """Path of a result, relative to the result folder, for a photo's or video's path relative to its root."""
    top, slash, rest = name.partition(os.sep)
    if slash and top.rstrip('_').lower() == ILLUMINATIONS:
        name = f'{top}_{os.sep}{rest}'
    extension = os.path.splitext(name)[1]
    return rename(name, result_extension(extension.lower(), format), lambda e: result_extension(e, format))


def result_extension(extension, format=''):
    """Extension of the result of a photo with that extension, both in lower case."""
    wanted = f'.{format.lower().lstrip(".")}' if format else ''
    if wanted and extension not in VIDEO:
        return extension if extension in formats.JPEG and wanted in formats.JPEG else wanted
    return written_extension(extension)


def rename(name, extension, extension_of=None):
    """A name with another extension, different for every name: a.jpg stays, a.png becomes a_png.jpg.

    A name that this makes of another file, or that is the contact sheet's, gets its own extension too: a_png_jpg.jpg.

    Args:
        extension_of: function that gives the new extension for the old one, in lower case; one extension for all.
    """
    extension_of = extension_of or (lambda old: extension)
    stem, old = os.path.splitext(name)
    if old.lower() == extension and name.lower() != SHEET:
        before, _, last = stem.rpartition('_')
        other = f'{before}.{last.lower()}'
        taken = before and is_photo(os.path.basename(other)) and extension_of(f'.{last.lower()}') == extension
        if not taken or rename(other, extension, extension_of) == other:
            return name
    return f'{stem}_{old[1:]}{extension}'


def ignores_case(folder):
    """Whether a folder, made where it is not there, takes a.jpg and A.jpg for one file."""
    os.makedirs(folder, exist_ok=True)
    with tempfile.NamedTemporaryFile(prefix='.case', suffix='.part', dir=folder) as file:
        return os.path.exists(os.path.join(folder, os.path.basename(file.name).swapcase()))
