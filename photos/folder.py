"""Which photos and videos a folder, a file or a pattern stands for, and where their results go; names only, no pixels.

    a.jpg -> a.jpg        DSC_1.NEF -> DSC_1.tif        a.png as jpg -> a.jpg, beside another photo's a.jpg a_png.jpg

Each result folder holds a RECORD: a line for each result with its photo and the options that it was made with. By it a
result keeps its name when photos are added, is made again when the options change, and is never enhanced again itself.
"""

import contextlib
import functools
import glob
import itertools
import json
import mimetypes
import os
import pathlib
from collections import Counter
from typing import NamedTuple

from photos import formats
from system.files import error_line

SHEET = 'contact_sheet.jpg'  # in the result folder
VIDEO = ('.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi')  # what video/ reads
ILLUMINATIONS, EXTRAS = 'illumination', 'extra'  # folders in the result folder
RESULTS = 'enhanced'  # the result folder that is made beside the photos where none is given
RECORD = '.deepupe_results'  # in the result folder, lines of JSON


class Found(NamedTuple):
    """Photos and videos that are asked for."""

    root: str  # folder that results are mirrored from
    paths: list  # of both, sorted
    others: Counter  # how many files of which kind were left out
    problems: list  # folders that could not be read, a line each
    results: str  # folder of the results
    name: str = ''  # of the one result, where a file was asked for


class Job(NamedTuple):
    """One photo or video, and what is made of it."""

    path: str
    source: str  # its name in the record: its path below the folder that results are mirrored from, or its whole path
    result: str
    illumination: str = ''  # '' where it is not asked for; a video has none
    extra: str = ''  # likewise
    problem: str = ''  # why it cannot be done

    def written(self):
        """Paths of all that is made."""
        return [path for path in (self.result, self.illumination, self.extra) if path]


def is_media(path, known=formats.READABLE + VIDEO):
    """Whether a file of that name is a photo or video: a known extension, and not hidden."""
    return path.lower().endswith(known) and not os.path.basename(path).startswith('.')


is_photo = functools.partial(is_media, known=formats.READABLE)
is_video = functools.partial(is_media, known=VIDEO)


def find_photos(images, recursive=False, result=''):
    """Photos and videos of a folder, a file or a glob pattern, or of several of these.

    What lies in the result folder is none, nor are results of earlier runs, unless these alone are asked for.

    Args:
        images: path or pattern, or a list of them; a photo and a file that is not there are the photo and its result.
        recursive: the folders below too.
        result: folder of the results, or for one photo a file; '' is RESULTS beside the photos.
    Returns:
        Found.
    Raises:
        FileNotFoundError: nothing there, or no photo in it. ValueError: the result folder is the photos' own, or there
            is one result file for more than one photo.
    """
    asked = [images] if isinstance(images, str) else list(images)
    if len(asked) == 2 and not result and os.path.isfile(asked[0]) and is_result_file(asked[1]):
        result = asked.pop()
    folder, name = result, ''
    for path in (result, *asked[1:2]):
        if is_other_kind(path):
            raise ValueError(f'{path}: expected a name that ends in one of {" ".join(formats.WRITABLE + VIDEO)}')
    if names_result(result) and not os.path.isdir(result):
        folder, name = os.path.dirname(result) or '.', os.path.basename(result)
        if len(asked) > 1 or not os.path.isfile(asked[0]):
            raise ValueError(f'result_dir: expected a folder, or one photo, got {result} for {", ".join(asked)}')
    roots, found, others, problems = [], {}, Counter(), []
    real = functools.lru_cache(os.path.realpath)
    for path in asked:
        root, files = expand(path, recursive, others, problems)
        if result and not name and os.path.realpath(result) == os.path.realpath(root):
            raise ValueError(f'result_dir: expected another folder than that of the photos, got {result}')
        roots.append(root)
        found |= {os.path.join(real(os.path.dirname(file)), os.path.basename(file)): file for file in reversed(files)}
    root = roots[0] if len(set(roots)) == 1 else os.path.commonpath(map(os.path.abspath, roots))
    folder = folder or os.path.join(root, RESULTS)
    results = os.path.join(os.path.realpath(folder), '')
    if not name and not os.path.join(os.path.realpath(root), '').startswith(results):
        found = {key: file for key, file in found.items() if not key.startswith(results)}
    earlier = earlier_results(set(map(os.path.dirname, found))) & found.keys()
    if len(earlier) < sum(map(is_media, found.values())):
        found = {key: file for key, file in found.items() if key not in earlier}
        others.update('earlier result' for _ in earlier)
    paths = sorted(filter(is_media, found.values()))
    for other in map(os.path.basename, found):
        if not is_media(other) and other != RECORD:
            kind = 'hidden' if other.startswith('.') else os.path.splitext(other)[1].lower()
            others[kind or 'without extension'] += 1
    if not paths:
        hint = '' if recursive else '; --recursive looks into the folders below'
        looked = f'looked for {" ".join(formats.READABLE + VIDEO)}{hint}'
        raise FileNotFoundError('\n'.join([f'{", ".join(asked)}: no photos or videos ({looked})', *problems]))
    return Found(root, paths, others, problems, folder, name)


def names_result(path):
    """Whether a path has an extension that can be written."""
    return os.path.splitext(path)[1].lower() in (*formats.WRITABLE, *VIDEO)


def is_other_kind(path):
    """Whether a path that is not there names a picture or video of a kind that cannot be written."""
    is_picture = (mimetypes.guess_type(path)[0] or '').startswith(('image/', 'video/'))
    return is_picture and not (names_result(path) or os.path.lexists(path) or glob.has_magic(path))


def is_result_file(path):
    """Whether a path may be the one result's: a file that is not there, or an earlier result."""
    is_free = not os.path.lexists(path) or os.path.basename(path) in read_record(os.path.dirname(path) or '.')
    return names_result(path) and not glob.has_magic(path) and is_free


def earlier_results(folders):
    """Paths of all results that are named by a record in these folders or in those that they lie in."""
    around = {parent for folder in folders for parent in (folder, *map(str, pathlib.Path(folder).parents))}
    records = {folder: read_record(folder) for folder in around}
    return {os.path.join(folder, name) for folder, names in records.items() if names for name in (SHEET, *names)}


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
    raise FileNotFoundError(f'{path}: expected a folder of photos, a photo or a pattern, found none; -o names results')


def walk(folder, problems, follow=False):
    """os.walk without hidden folders; each real folder once, behind links on request; problems: those not readable."""
    seen, starts = set(), [folder]
    for start in starts:
        for at, folders, names in os.walk(start, onerror=lambda error: problems.append(error_line(error))):
            real = os.path.realpath(at)
            folders[:] = sorted(name for name in folders if not name.startswith('.')) if real not in seen else []
            if real not in seen:
                seen.add(real)
                yield at, folders, names
                if follow:
                    starts += filter(os.path.islink, (os.path.join(at, name) for name in folders))


def match(pattern, problems):
    """(folder before its first wildcard, files) of a glob pattern, whose `**` goes into each real folder once."""
    root, (*parts, last) = split_pattern(pattern)
    folders = [root or '.']
    for part in parts:
        if part == '**':
            folders = [at for folder in folders for at, _, _ in walk(folder, problems, follow=True)]
        else:
            folders = [folder for folder in below(folders, part) if os.path.isdir(folder)]
    files = below(folders, last)
    files = files if root else [file.removeprefix(f'.{os.sep}') for file in files]
    return root or '.', [file for file in files if not os.path.isdir(file)]


def split_pattern(pattern, path=os.path):
    """(folder before the first wildcard, the parts below it) of a pattern; a folder of that very name is no pattern."""
    root = path.dirname(pattern)
    while glob.has_magic(root) and not path.isdir(root):
        root = path.dirname(root)
    parts = path.relpath(pattern, root or path.curdir).split(path.sep)
    return root, [*parts, '*'] if parts[-1] == '**' else parts


def below(folders, pattern):
    """Paths in folders whose names a pattern without slashes stands for."""
    return [os.path.join(folder, name) for folder in folders for name in glob.glob(pattern, root_dir=folder)]


def plan_jobs(found, record, format='', illuminations=False, extras=False, sheet=False):
    """A Job for every photo, with all names that the run will write; none is an original's or another job's.

    Args:
        found: from find_photos. record: of found.results, from read_record.
        format: extension of all photos' results; '' keeps each one's where that can be written. Videos keep theirs.
        illuminations, extras, sheet: these are written too.
    Raises:
        ValueError: not a format that can be written, or the contact sheet would replace an original.
    """
    if format and f'.{format.lower().lstrip(".")}' not in formats.WRITABLE:
        raise ValueError(f'format: expected one of {" ".join(e[1:] for e in formats.WRITABLE)}, got {format!r}')
    if format and found.name:
        raise ValueError(f'format: expected none beside a result that is named, {found.name}, got {format!r}')
    originals = {os.path.realpath(path) for path in found.paths}
    if sheet and os.path.realpath(os.path.join(found.results, SHEET)) in originals:
        raise ValueError(f'result_dir: the contact sheet would replace the original {found.results}/{SHEET}')
    sources = [os.path.realpath(path) if found.name else os.path.relpath(path, found.root) for path in found.paths]
    names = {sources[0]: found.name} if found.name else choose_names(sources, format, found.results, record)
    jobs = []
    for path, source in zip(found.paths, sources, strict=True):
        stem, extension = os.path.splitext(names[source])
        made = [names[source]]
        for top, wanted in ((ILLUMINATIONS, illuminations), (EXTRAS, extras)):
            made.append(os.path.join(top, f'{stem}_{extension[1:]}.png') if wanted and not is_video(path) else '')
        jobs.append(Job(path, source, *(os.path.join(found.results, name) if name else '' for name in made)))
    counts = Counter(new for job in jobs for new in job.written())
    for i, job in enumerate(jobs):
        replaced = [new for new in job.written() if counts[new] > 1 or os.path.realpath(new) in originals]
        if replaced:
            jobs[i] = job._replace(problem=f'{job.path}: its result would replace another file, {replaced[0]}')
    return jobs


def choose_names(sources, format, folder, record):
    """{source: name of its result}: no two are the same, or differ in upper and lower case alone.

    What is there already keeps its name. Then those choose whose name stays, then the others, to which the source's
    extension is added where their name is taken: a_png.jpg.
    """

    def candidates(source):
        stem, extension = os.path.splitext(result_name(source, format))
        longer = f'{stem}_{os.path.splitext(source)[1][1:]}'
        yield from (stem + extension, longer + extension)
        yield from (f'{longer}_{i}{extension}' for i in itertools.count(2))

    def is_free(name, source):
        is_others = name in record and record[name][0] != source and os.path.lexists(os.path.join(folder, name))
        return name.lower() not in taken and not is_others

    names, taken = {}, {SHEET}
    before = {source: name for name, (source, *_) in record.items() if name in itertools.islice(candidates(source), 9)}
    for source in sorted(sources, key=lambda source: (source not in before, result_name(source, format) != source)):
        choice = itertools.chain([before[source]] if source in before else [], candidates(source))
        names[source] = next(name for name in choice if is_free(name, source))
        taken.add(names[source].lower())
    return names


def result_name(name, format=''):
    """A photo's or video's name with its result's extension; a camera RAW becomes TIFF."""
    stem, extension = os.path.splitext(name)
    old, new = extension.lower(), f'.{format.lower().lstrip(".")}' if format else ''
    new = '.tif' if not new and old in formats.RAW else new
    stays = not new or new == old or old in VIDEO or (old in formats.JPEG and new in formats.JPEG)
    return name if stays else stem + new


def read_record(folder):
    """{name of a result: (its photo's name, options that it was made with, its size, its time)} of a result folder."""
    record = {}
    with contextlib.suppress(OSError), open(os.path.join(folder, RECORD), encoding='ascii', errors='replace') as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):  # a line that a killed run left unfinished
                name, source, options, size, time = json.loads(line)
                record[name] = source, options, size, time
    return record


def remember(folder, job, options):
    """Add what was made of a photo to its result folder's record."""
    lines = ''
    for path in job.written():
        name, status = os.path.relpath(path, folder), os.stat(path)
        lines += json.dumps([name, job.source, options, status.st_size, status.st_mtime]) + '\n'
    with open(os.path.join(folder, RECORD), 'a', encoding='ascii') as file:
        file.write(lines)  # in one piece: other threads and processes write it too


def is_due(folder, record, job, options):
    """Whether a job is to be done: its result is not there, or as a run of other options, extras or photo left it."""
    if not os.path.lexists(job.result):
        return True
    source, made, size, time = record.get(os.path.relpath(job.result, folder), ('', '', -1, 0))
    status = os.lstat(job.result)
    is_ours = status.st_size == size and abs(status.st_mtime - time) <= 2  # seconds, to which some cards round
    return is_ours and ((source, made) != (job.source, options) or not all(map(os.path.lexists, job.written())))
