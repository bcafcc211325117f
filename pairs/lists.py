"""Lists of training and evaluation pairs: found in folders or CSV files, split, hashed, compared.

A pair is (input path, target path): an underexposed photo and the same photo well exposed, equal in size.
"""

import csv
import hashlib
import io
import os
import re
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from photos.picture import list_photos
from system.files import raise_all, save_csv
from system.pickles import InertUnpickler
from system.process import cores

HASH_COLUMNS = ('input_sha256', 'target_sha256')
MOST = 1000  # times that a pair is drawn in an epoch

LAYOUTS = (  # input and target folders as the public downloads of FiveK (expert C), LOL and LOL v2 have them
    ('input', 'expertC_gt'), ('low', 'high'), ('input', 'target'), ('input/JPG/480p', 'expertC/JPG/480p'),
    ('input', 'expertC'), ('input', 'c'), ('raw', 'c'), ('input', 'tiff16_c'), ('raw', 'tiff16_c'), ('Low', 'Normal'),
)  # fmt: skip
PREFIX = re.compile(r'(low|normal)(?=\d)')  # LOL v2 has low00001.png and normal00001.png


def find_pairs(dataset_dir):
    """Pairs of a folder in one of the LAYOUTS, matched by stem, or in SICE's, see find_sice.

    Returns:
        list of (input path, target path), sorted by stem.
    Raises:
        FileNotFoundError: none of the layouts is there. ValueError: photos without partner, all of them named.
    """
    layouts = [[os.path.join(dataset_dir, name) for name in layout] for layout in LAYOUTS]
    folders = next((layout for layout in layouts if all(map(os.path.isdir, layout))), None)
    if not folders and os.path.isdir(os.path.join(dataset_dir, 'Label')):
        return find_sice(dataset_dir)
    if not folders:
        wanted = ', or '.join('/ and '.join(layout) + '/' for layout in (*LAYOUTS, ('1', '2', 'Label')))
        found = 'none of these' if os.path.isdir(dataset_dir) else 'no such folder'
        raise FileNotFoundError(f'{dataset_dir}: expected a folder with {wanted}, found {found}')
    problems = []
    inputs, targets = (
        {PREFIX.sub('', stem): path for stem, path in by_stem(list_photos(folder), problems).items()}
        for folder in folders
    )
    problems += [f'{path}: no partner in {folders[1]}' for stem, path in inputs.items() if stem not in targets]
    problems += [f'{path}: no partner in {folders[0]}' for stem, path in targets.items() if stem not in inputs]
    raise_all(problems, dataset_dir)
    return [(inputs[stem], targets[stem]) for stem in sorted(inputs)]


def find_sice(dataset_dir):
    """Pairs of SICE: of the exposures 1/1.JPG, 1/2.JPG ... of each scene the darker half, with Label/1.JPG."""
    problems, pairs = [], []
    labels = by_stem(list_photos(os.path.join(dataset_dir, 'Label')), problems)
    for scene in sorted(filter(str.isdigit, os.listdir(dataset_dir)), key=int):
        photos = sorted(list_photos(os.path.join(dataset_dir, scene)), key=lambda path: (len(path), path))
        problems += [] if scene in labels else [f'{dataset_dir}/{scene}: no {scene} in Label']
        pairs += [(photo, labels.get(scene)) for photo in photos[: len(photos) // 2]]
    raise_all(problems, dataset_dir)
    return pairs


def by_stem(paths, problems):
    """{stem: path}; a stem that two paths share goes to problems."""
    found = {}
    for path in paths:
        if stem_of(path) in found:
            problems.append(f'{path}: same stem as {found[stem_of(path)]}')
        found[stem_of(path)] = path
    return found


def stem_of(path):
    """A file's name without folder and extension; a Mac writes letters with marks in two parts, others in one."""
    return unicodedata.normalize('NFC', os.path.splitext(os.path.basename(path))[0])


def read_pairs(path):
    """Pairs of a CSV file with the columns input,target, see read_rows."""
    return [(row['input'], row['target']) for row in read_rows(path)]


def read_rows(path, names=('input', 'target')):
    """Rows {column: cell} of a CSV list, as people and spreadsheets write them.

    The separator is a comma, a semicolon or a tab; blanks around cells are cut off; Input and INPUT are input.

    Args:
        names: columns with paths relative to the list's folder, which each row has.
    Raises:
        OSError: no such file. ValueError: not a CSV file in UTF-8 with these columns, or without rows, or cells are
            missing or too many, all of them named.
    """
    folder, rows, problems = os.path.dirname(os.path.abspath(path)), [], []
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            separator = max(',;\t', key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, skipinitialspace=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if not set(names) <= set(header):
                raise ValueError(f'{path}: expected the columns {",".join(names)}, got {separator.join(header)!r}')
            for cells in ([cell.strip() for cell in cells] for cells in reader):
                row = dict(zip(header, cells, strict=False))
                if not any(cells):
                    continue
                if any(cells[len(header) :]):
                    problems.append(
                        f'{path}: row {reader.line_num} has more cells than the header; '
                        'a name with a separator in it needs quotes'
                    )
                elif not all(map(row.get, names)):
                    problems.append(f'{path}: row {reader.line_num} lacks {" or ".join(names)}')
                else:
                    rows.append(row | {name: os.path.normpath(os.path.join(folder, row[name])) for name in names})
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: expected a CSV file in UTF-8') from error
    except csv.Error as error:
        raise ValueError(f'{path}: expected a CSV file ({error})') from error
    raise_all(problems, path)
    if not rows:
        raise ValueError(f'{path}: no pairs or photos in it')
    return rows


def write_pairs(path, pairs, hashes=None):
    """Write pairs as such a CSV file, relative to its folder where that is possible, with the SHA-256 of the files.

    The hashes let test.py find test photos among the training photos where the training photos are not at hand.

    Args:
        hashes: of hash_files for all of them, where they are at hand.
    """
    folder = os.path.dirname(os.path.abspath(path))
    hashes = hashes or hash_files({name for pair in pairs for name in pair})
    columns = ('input', 'target', *HASH_COLUMNS)
    cells = [[*(relative(name, folder) for name in pair), *map(hashes.get, pair)] for pair in pairs]
    save_csv(path, [dict(zip(columns, row, strict=True)) for row in cells], columns)


def hash_files(paths):
    """{path: first 16 hexadecimal digits of the file's SHA-256, '' where it cannot be read}."""

    def digest(path):
        try:
            with open(path, 'rb') as file:
                return hashlib.sha256(file.read()).hexdigest()[:16]
        except OSError:
            return ''

    paths = list(paths)
    with ThreadPoolExecutor(cores()) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))


def relative(path, folder):
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive on Windows
        return os.path.abspath(path)


def mix_pairs(pairs_files, weights=''):
    """Several CSV lists or folders (see find_pairs), 'a.csv,b', with as many weights, '1,0.5' ('' is 1 each).

    Returns:
        list of (pairs, weight); an epoch draws each pair of a list `weight` times on average.
    Raises:
        ValueError: as many weights as lists are expected, all positive.
    """
    names = list_names(pairs_files)
    try:
        numbers = [float(weight) for weight in weights.split(',')] if weights else [1.0] * len(names)
    except ValueError:
        numbers = []
    if len(numbers) != len(names) or not all(0 < number <= MOST for number in numbers):  # NaN is not
        raise ValueError(
            f'train_weights: expected {len(names)} numbers above 0 up to {MOST}, one for each list, got {weights!r}'
        )
    lists = [find_pairs(name) if os.path.isdir(name) else read_pairs(name) for name in names]
    return list(zip(lists, numbers, strict=True))


def list_names(pairs_files):
    """The paths in 'a.csv,b.csv', or a single one that is there, commas and all."""
    names = [pairs_files] if os.path.exists(pairs_files) else pairs_files.split(',')
    return [name.strip() for name in names if name.strip()]


def find_good(folders):
    """Photos of folders, 'a,b', as pairs of each photo with itself.

    Raises:
        FileNotFoundError: a folder is not there or holds no photo.
    """
    return [(path, path) for name in list_names(folders) for path in list_photos(name)]


def find_inputs(path):
    """Photos of a folder, or of the column input of a CSV file, each once.

    Raises:
        OSError, ValueError: no such folder or list, or no photo in it.
    """
    if not path.endswith('.csv'):
        return list_photos(path)
    return list(dict.fromkeys(row['input'] for row in read_rows(path, ('input',))))


def split_pairs(pairs, ratio, seed):
    """Shuffle pairs with a seed and split them: (first ratio of them, the rest), both non-empty."""
    if len(pairs) < 2:
        raise ValueError(f'dataset_ratio: expected two pairs or more to split, got {len(pairs)}')
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = min(max(int(len(pairs) * ratio), 1), len(pairs) - 1)
    return [pairs[i] for i in order[:count]], [pairs[i] for i in order[count:]]


def split_dataset(pairs, split, ratio, seed):
    """(training pairs, test pairs) of a dataset.

    Args:
        split: 'all' tests on all; 'paper' on FiveK's ids a4501 to a5000 (DeepUPE's test set); 'ratio' as split_pairs.
    Raises:
        ValueError: no pair of the paper's ids.
    """
    if split == 'ratio':
        return split_pairs(pairs, ratio, seed)
    chosen = [pair for pair in pairs if split == 'all' or 4501 <= fivek_id(pair[0]) <= 5000]
    if not chosen:
        raise ValueError(
            'split: expected file names that begin with a4501 to a5000 (FiveK) to test on, found none; '
            'other photos need --split ratio, or a list or folder to validate on'
        )
    tested = set(chosen)
    return [pair for pair in pairs if pair not in tested], chosen


def fivek_id(path):
    """The number in a FiveK file name such as a4501-DSC_0001.jpg, or 0."""
    found = re.match(r'a(\d{4})(?!\d)', os.path.basename(path))
    return int(found[1]) if found else 0


def hash_pairs(pairs):
    """One hash of the content of all pairs, whatever their order, names and folders."""
    hashes = hash_files({path for pair in pairs for path in pair})
    lines = sorted(' '.join(hashes[path] for path in pair) for pair in pairs)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def pair_hashes(path, pairs):
    """(input hashes, target hashes) of a CSV list: its own columns where it has them, else of its pairs' files."""
    rows = read_rows(path)
    if all(row.get(name) for row in rows for name in HASH_COLUMNS):
        return tuple({row[name] for row in rows} for name in HASH_COLUMNS)
    hashes = hash_files({name for pair in pairs for name in pair})
    return tuple({hashes[pair[side]] for pair in pairs} - {''} for side in (0, 1))


def find_overlap(test_pairs, train_pairs, train_hashes, hashes):
    """How many test pairs a training list shares, by content and by name.

    Args:
        train_hashes: (inputs, targets) from pair_hashes.
        hashes: {path: hash} of the test files.
    Returns:
        dict of counts: 'same_input', 'same_target' (the same scene), 'same_name' (of inputs, whatever the content).
    """
    names = {os.path.basename(pair[0]) for pair in train_pairs}
    return {
        'same_input': sum(hashes[pair[0]] in train_hashes[0] for pair in test_pairs),
        'same_target': sum(hashes[pair[1]] in train_hashes[1] for pair in test_pairs),
        'same_name': sum(os.path.basename(pair[0]) in names for pair in test_pairs),
    }


def read_options_pickle(path, dataset_dir):
    """Training and validation pairs of the predecessor's options.pkl, found by file name in the user's dataset_dir.

    The file is a dill pickle that holds code; its lists are read and nothing in it is imported or run.

    Returns:
        (train pairs, valid pairs) of (input path, target path).
    Raises:
        OSError: it cannot be opened. ValueError: not such a pickle, or photos that dataset_dir lacks, named.
    """
    parts = 'train_images_list', 'valid_images_list'
    with open(path, 'rb') as file:
        data = io.BytesIO(file.read())
    try:
        content = InertUnpickler(data).load()
        names = [[re.split(r'[/\\]', photo)[-1] for photo, _ in content[part]] for part in parts]  # also Windows' paths
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f'{path}: expected a pickle with {" and ".join(parts)}, pairs of paths ({type(error).__name__})'
        ) from error
    at_hand = {os.path.basename(pair[0]): pair for pair in find_pairs(dataset_dir)}
    raise_all([f'{name}: in {parts[1]}, not in {dataset_dir}' for name in names[1] if name not in at_hand], path)
    if not names[1]:
        raise ValueError(f'{path}: {parts[1]} is empty')
    return tuple([at_hand[name] for name in part if name in at_hand] for part in names)
