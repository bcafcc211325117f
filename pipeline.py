"""Training and evaluation pairs: find them, check them, make batches of them.

A pair is (input path, target path): an underexposed photo and the same photo well exposed, equal in size. An item of
`PairDataset` is (lowres, fullres, target), 8-bit RGB; `Loader` makes float batches of them. Everything random comes
from (seed, epoch, position), so the same photos come out whatever the number of threads, and a resumed run sees what an
uninterrupted one would.
"""

import csv
import hashlib
import os
import pickle
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

import augment
import utils
from formats import READABLE
from model import LOW_SIZE
from photos import is_photo, read_photo

HASH_COLUMNS = ('input_sha256', 'target_sha256')
LAYOUTS = (('input', 'expertC_gt'), ('low', 'high'), ('input', 'target'))

# ------------------------------------------------------------------------------------------------- find pairs


def find_pairs(dataset_dir):
    """Pairs of a folder with input/ and expertC_gt/ (or low/ and high/, or input/ and target/), matched by stem.

    Returns:
        list of (input path, target path), sorted by stem.
    Raises:
        FileNotFoundError: none of the layouts is there. ValueError: photos without partner, all of them named.
    """
    for input_name, target_name in LAYOUTS:
        folders = os.path.join(dataset_dir, input_name), os.path.join(dataset_dir, target_name)
        if all(os.path.isdir(folder) for folder in folders):
            break
    else:
        wanted = ', or '.join('/ and '.join(layout) + '/' for layout in LAYOUTS)
        raise FileNotFoundError(f'{dataset_dir}: expected a folder with {wanted}')
    problems = []
    inputs, targets = (photos_by_stem(folder, problems) for folder in folders)
    problems += [f'{path}: no partner in {folders[1]}' for stem, path in inputs.items() if stem not in targets]
    problems += [f'{path}: no partner in {folders[0]}' for stem, path in targets.items() if stem not in inputs]
    utils.raise_all(problems, dataset_dir)
    if not inputs:
        raise ValueError(f'{dataset_dir}: no photos in {input_name}/ (looked for {" ".join(READABLE)})')
    return [(inputs[stem], targets[stem]) for stem in sorted(inputs)]


def photos_by_stem(folder, problems):
    """{stem: path} of a folder's photos; a stem that two files share goes to problems."""
    found = {}
    for name in sorted(filter(is_photo, os.listdir(folder))):
        stem, path = os.path.splitext(name)[0], os.path.join(folder, name)
        if stem in found:
            problems.append(f'{path}: same stem as {found[stem]}')
        found[stem] = path
    return found


def read_pairs(path):
    """Pairs of a CSV file with the columns input,target; its paths are relative to its folder.

    Raises:
        FileNotFoundError: no such file. ValueError: columns or cells are missing, or there is no row.
    """
    folder = os.path.dirname(os.path.abspath(path))
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            rows = csv.DictReader(file)
            if not {'input', 'target'} <= set(rows.fieldnames or []):
                raise ValueError(f'{path}: expected the columns input,target, got {rows.fieldnames}')
            cells = [(row['input'], row['target']) for row in rows]
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: expected a CSV file in UTF-8') from error
    if not cells:
        raise ValueError(f'{path}: no pairs')
    problems = [f'{path}: row {i} lacks input or target' for i, cell in enumerate(cells, 2) if not all(cell)]
    utils.raise_all(problems, path)
    return [tuple(os.path.normpath(os.path.join(folder, name)) for name in cell) for cell in cells]


def write_pairs(path, pairs):
    """Write pairs as such a CSV file, relative to its folder where that is possible, with the SHA-256 of the files.

    The hashes let test.py find test photos among the training photos where the training photos are not at hand.
    """
    folder = os.path.dirname(os.path.abspath(path))
    hashes = hash_files({name for pair in pairs for name in pair})

    columns = ('input', 'target', *HASH_COLUMNS)
    cells = [[*(relative(name, folder) for name in pair), *(hashes[name] for name in pair)] for pair in pairs]
    utils.save_csv(path, [dict(zip(columns, row, strict=True)) for row in cells], columns)


def hash_files(paths):
    """{path: first 16 hexadecimal digits of the file's SHA-256, '' where it cannot be read}."""

    def digest(path):
        try:
            with open(path, 'rb') as file:
                return hashlib.sha256(file.read()).hexdigest()[:16]
        except OSError:
            return ''

    paths = list(paths)
    with ThreadPoolExecutor(utils.cores()) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))


def relative(path, folder):
    try:
        return os.path.relpath(path, folder)
    except ValueError:  # another drive on Windows
        return os.path.abspath(path)


def mix_pairs(pairs_files, weights=''):
    """Several CSV lists, 'a.csv,b.csv', with as many weights, '1,0.5' ('' is 1 each).

    Returns:
        list of (pairs, weight); an epoch draws each pair of a list `weight` times on average.
    Raises:
        ValueError: as many weights as lists are expected, all positive.
    """
    names = [name.strip() for name in pairs_files.split(',') if name.strip()]
    try:
        numbers = [float(w) for w in weights.split(',')] if weights else [1.0] * len(names)
    except ValueError as error:
        raise ValueError(f'train_weights: expected numbers with commas between, got {weights!r}') from error
    if len(numbers) != len(names) or min(numbers, default=1) <= 0:
        raise ValueError(f'train_weights: expected {len(names)} positive numbers, one for each list, got {weights!r}')
    return [(read_pairs(name), number) for name, number in zip(names, numbers, strict=True)]


def split_pairs(pairs, ratio, seed):
    """Shuffle pairs with a seed and split them: (first ratio of them, the rest), both non-empty."""
    if not 0 < ratio < 1:
        raise ValueError(f'dataset_ratio: expected between 0 and 1, got {ratio}')
    if len(pairs) < 2:
        raise ValueError(f'dataset_ratio: expected two pairs or more to split, got {len(pairs)}')
    order = np.random.default_rng(seed).permutation(len(pairs))
    count = min(max(int(len(pairs) * ratio), 1), len(pairs) - 1)
    return [pairs[i] for i in order[:count]], [pairs[i] for i in order[count:]]


def choose_split(pairs, split, ratio, seed):
    """The part of a dataset's pairs to test on.

    Args:
        split: 'all'; 'paper', FiveK's ids a4501 to a5000 (DeepUPE's test set); 'ratio', what train.py validates on with
            the same dataset_ratio and seed.
    Raises:
        ValueError: unknown split, or no pair of the paper's ids.
    """
    if split == 'all':
        return pairs
    if split == 'ratio':
        return split_pairs(pairs, ratio, seed)[1]
    if split != 'paper':
        raise ValueError(f'split: expected all, paper or ratio, got {split!r}')
    chosen = [pair for pair in pairs if 4501 <= fivek_id(pair[0]) <= 5000]
    if not chosen:
        raise ValueError('split: expected file names that begin with a4501 to a5000 (FiveK), found none')
    return chosen


def fivek_id(path):
    """The number in a FiveK file name such as a4501-DSC_0001.jpg, or 0."""
    found = re.match(r'a(\d{4})(?!\d)', os.path.basename(path))
    return int(found[1]) if found else 0


# ------------------------------------------------------------------------- the predecessor's split, overlaps


class InertType(type):
    """Type of Inert: calling it gives Inert itself, which a pickle may want to use as a class or as an object."""

    def __call__(cls, *args, **kwargs):
        return cls

    def __setitem__(cls, key, value):
        pass


class Inert(metaclass=InertType):
    """Stands for whatever an untrusted pickle names or builds: it takes everything and does nothing."""

    def __new__(cls, *args, **kwargs):
        return cls

    @staticmethod
    def ignore(*values):
        """Take anything."""

    __setstate__ = append = extend = add = ignore


class InertUnpickler(pickle.Unpickler):
    """Reads plain values out of a pickle; imports nothing and runs nothing that the pickle names."""

    def find_class(self, module, name):
        return Inert

    def persistent_load(self, pid):
        return Inert


def read_options_pickle(path, dataset_dir):
    """Training and validation pairs of the predecessor's options.pkl, found by file name in the user's dataset_dir.

    The file is a dill pickle that holds code; its lists are read and nothing in it is imported or run.

    Returns:
        (train pairs, valid pairs) of (input path, target path).
    Raises:
        OSError: it cannot be opened. ValueError: not such a pickle, or photos that dataset_dir lacks, named.
    """
    try:
        with open(path, 'rb') as file:
            content = InertUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f'{path}: not a readable pickle ({type(error).__name__})') from error
    names = ('train_images_list', 'valid_images_list')
    if not isinstance(content, dict) or not all(isinstance(content.get(name), (list, tuple)) for name in names):
        raise ValueError(f'{path}: expected a pickled dict with {" and ".join(names)}')
    at_hand = {os.path.basename(pair[0]): pair for pair in find_pairs(dataset_dir)}
    problems, splits = [], []
    for name in names:
        splits.append([])
        for pair in content[name]:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
                raise ValueError(f'{path}: expected pairs of paths in {name}')
            photo = re.split(r'[/\\]', pair[0])[-1]  # it may come from Windows
            if photo in at_hand:
                splits[-1].append(at_hand[photo])
            elif name == 'valid_images_list':
                problems.append(f'{photo}: in {name}, not in {dataset_dir}')
    utils.raise_all(problems, path)
    if not splits[1]:
        raise ValueError(f'{path}: valid_images_list is empty')
    return tuple(splits)


def hash_pairs(pairs):
    """One hash of the content of all pairs, whatever their order, names and folders."""
    hashes = hash_files({path for pair in pairs for path in pair})
    lines = sorted(' '.join(hashes[path] for path in pair) for pair in pairs)
    return hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]


def pair_hashes(path, pairs):
    """(input hashes, target hashes) of a list: its own columns where the CSV has them, else of the files at hand."""
    rows = []
    if path and os.path.isfile(path) and path.endswith('.csv'):
        with open(path, newline='', encoding='utf-8-sig') as file:
            rows = list(csv.DictReader(file))
    if rows and all(row.get(name) for row in rows for name in HASH_COLUMNS):
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


# ------------------------------------------------------------------------------------------------- read pairs


def read_pair(pair):
    """Both photos of a pair as (H, W, 3) uint8 or uint16 RGB.

    Raises:
        OSError, ValueError: a photo is missing, unreadable, or the sizes differ; the message names the files.
    """
    photo, target = (read_photo(path) for path in pair)
    if photo.shape != target.shape:
        sizes = ' and '.join(f'{image.shape[1]} x {image.shape[0]}' for image in (photo, target))
        raise ValueError(f'{pair[0]}: expected the size of its target {pair[1]}, got {sizes}')
    return photo, target


def load_pairs(pairs, cache='ram', folder=None):
    """Decode every pair once, before training starts, and report all bad ones together.

    Args:
        cache: where the decoded photos stay: 'ram'; 'file', an unnamed temporary file mapped into memory; 'auto', ram
            when they take up to half of what is available, else file; 'none', they are only checked.
        folder: where the temporary file lies; None is the system's.
    Returns:
        list of (photo, target) arrays, or of None with cache 'none'.
    Raises:
        ValueError: unknown cache; one line per missing or unreadable photo and per pair of different sizes.
    """
    if cache not in ('auto', 'ram', 'file', 'none'):
        raise ValueError(f'cache: expected auto, ram, file or none, got {cache!r}')
    problems, loaded = [], []

    def load(pair):
        try:
            return read_pair(pair)
        except (OSError, ValueError) as error:
            problems.append(utils.describe(error))
            return None

    if cache == 'auto':
        first = [load(pair) for pair in pairs[:8]]
        size = sum(photo.nbytes for photos in first if photos for photo in photos)
        cache = 'file' if size / max(len(first), 1) * len(pairs) > utils.available_memory() / 2 else 'ram'
    with ThreadPoolExecutor(utils.cores()) as pool, tempfile.TemporaryFile(dir=folder) as file:
        places = []
        for photos in tqdm(pool.map(load, pairs), 'read pairs', len(pairs), disable=None, leave=False):
            if cache == 'file' and photos:
                places.append(
                    [(file.tell(), file.write(photo.tobytes()), photo.dtype, photo.shape) for photo in photos]
                )
            loaded.append(photos if cache == 'ram' else None)
        file.flush()
        utils.raise_all(sorted(set(problems)), 'pairs')
        if places:
            content = np.memmap(file, np.uint8, 'r')
            return [tuple(content[at : at + size].view(dtype).reshape(shape) for at, size, dtype, shape in place)
                    for place in places]  # fmt: skip
    return loaded


# ---------------------------------------------------------------------------------------------------- dataset


class PairDataset:
    """Augmented training pairs of one epoch; call `set_epoch` before each.

    Args:
        lists: list of (pairs, weight), see mix_pairs.
        arch: 'hdrnet' squeezes whole photos to full_size x full_size; 'deepupe' takes random 256 x 256 crops.
        full_size: side of fullres and target in pixels (hdrnet).
        augment: flip, crop and rotate (hdrnet).
        keep_good: probability that an item is (target, target), so that the network leaves good photos as they are.
        simulate: probability that an item's photo is its target, darkened by up to max_stops, see augment.py.
        jitter: every photo is darkened or brightened by up to so many stops; its target stays.
        cache, folder: see load_pairs.
    """

    def __init__(self, lists, arch='hdrnet', full_size=512, augment=True, keep_good=0.0, simulate=0.0, max_stops=2.5,
                 jitter=0.0, cache='ram', folder=None, seed=212):  # fmt: skip
        self.pairs = [pair for pairs, _ in lists for pair in pairs]
        self.weights = [(len(pairs), weight) for pairs, weight in lists]
        self.arch, self.seed = arch, seed
        self.augment, self.keep_good = augment, keep_good
        self.simulate, self.max_stops, self.jitter = simulate, max_stops, jitter
        self.side = 0 if arch == 'deepupe' else full_size
        self.cached = load_pairs(self.pairs, cache, folder)
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Fix the order of an epoch's pairs and the seed of their augmentation."""
        self.epoch = epoch
        rng = np.random.default_rng([self.seed, epoch])
        order, start = [], 0
        for count, weight in self.weights:  # weight 1.5: each pair once, half of them a second time
            extra = rng.permutation(count)[: round(count * (weight % 1))]
            order += list(np.tile(np.arange(start, start + count), int(weight))) + list(extra + start)
            start += count
        self.order = rng.permutation(np.array(order, dtype=np.int64))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, position):
        """(lowres, fullres, target) of a position in the epoch: (H, W, 3) uint8 or uint16 RGB."""
        pair = self.pair(position)
        return augment.render(*pair, self.draw(position, pair[0].shape), self.side)

    def pair(self, position):
        """The decoded (photo, target) that a position in the epoch shows."""
        index = self.order[position]
        return self.cached[index] or read_pair(self.pairs[index])

    def draw(self, position, shape):
        """The augment.Recipe of a position in the epoch, for photos of that shape."""
        rng = np.random.default_rng([self.seed, self.epoch, position])
        kind, stops = rng.random(), []
        if self.keep_good <= kind < self.keep_good + self.simulate:
            stops.append(rng.uniform(0.5, self.max_stops))
        if self.jitter:
            stops.append(rng.uniform(-self.jitter, self.jitter))
        steps = []
        if self.arch == 'deepupe':
            steps = augment.draw_patch(*shape[:2], LOW_SIZE, rng)
        elif self.augment:
            steps = augment.draw_steps(*shape[:2], rng)
        return augment.Recipe(kind < self.keep_good + self.simulate, tuple(stops), tuple(steps))


class Loader:
    """Batches of an epoch in the dataset's order, prepared by threads while the one before is trained on.

    A last batch that is not full is left out. With several ranks each takes its share of every batch. Iterating gives
    (positions, (lowres, fullres, target)) with float RGB (N, 3, H, W) in [0, 1] on the device, and adds to `waited` the
    seconds that the caller waited for photos.

    Args:
        num_workers: threads; OpenCV and numpy release the GIL. 0 prepares each batch when it is asked for, -1 takes a
            thread per core, up to 8.
        pedestal: levels of 255 that lie below black, see model.IlluminationNet.
        on_device: make the batches on the device, of photos that stay there while there is room; None does so on CUDA.
    Raises:
        ValueError: fewer than two pairs to a rank's batch, with which BatchNorm cannot train, or ranks that do not
            divide the batch.
    """

    def __init__(self, dataset, batch_size, num_workers=-1, device='cpu', rank=0, world=1, on_device=None,
                 pedestal=0.0):  # fmt: skip
        self.batch_size = min(batch_size, len(dataset))
        if self.batch_size < 2:
            raise ValueError(f'training: expected two or more pairs and batch size 2 or more, got {len(dataset)} pairs')
        if self.batch_size % world:
            raise ValueError(f'train_batch_size: expected a multiple of the {world} ranks, got {self.batch_size}')
        self.num_workers = num_workers if num_workers >= 0 else min(utils.cores(), 8)
        self.dataset, self.device = dataset, torch.device(device)
        self.rank, self.world, self.waited = rank, world, 0.0
        self.pedestal = pedestal
        cuda = self.device.type == 'cuda'
        self.on_device = cuda if on_device is None else on_device
        self.resident, self.room = {}, torch.cuda.mem_get_info(self.device)[0] // 2 if cuda else 0  # bytes

    def __len__(self):
        return len(self.dataset) // self.batch_size

    def __iter__(self):
        if self.num_workers == 0:
            yield from (self.receive(lambda k=k: self.prepare(k)) for k in range(len(self)))
            return
        with ThreadPoolExecutor(self.num_workers, 'load') as pool:
            ahead = [pool.submit(self.prepare, k) for k in range(min(self.num_workers + 1, len(self)))]
            for k in range(len(self)):
                batch = self.receive(ahead.pop(0).result)
                if k + self.num_workers + 1 < len(self):
                    ahead.append(pool.submit(self.prepare, k + self.num_workers + 1))
                yield batch

    def prepare(self, k):
        """This rank's positions of batch k, and their photos stacked, (N, 3, H, W) with levels in [0, 255]."""
        positions = range(k * self.batch_size + self.rank, (k + 1) * self.batch_size, self.world)
        if self.on_device:
            pairs = [self.keep(position) for position in positions]
            recipes = [
                self.dataset.draw(position, pair[0][0].shape) for position, pair in zip(positions, pairs, strict=True)
            ]
            return positions, augment.render_on(pairs, recipes, self.dataset.side)
        stacked = []
        for photos in zip(*(self.dataset[position] for position in positions), strict=True):
            if any(photo.dtype != np.uint8 for photo in photos):  # 16 bit: keep the fractions of a level
                photos = [photo / np.float32(1 if photo.dtype == np.uint8 else 257) for photo in photos]
            stacked.append(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2))
        return positions, stacked

    def keep(self, position):
        """The pair of a position as levels on the device, see augment.upload, which keeps it while there is room."""
        index = int(self.dataset.order[position])
        if index not in self.resident:
            pair = [augment.upload(image, self.device) for image in self.dataset.pair(position)]
            size = sum(levels.nbytes for levels, _ in pair)
            if size > self.room:
                return pair
            self.resident[index], self.room = pair, self.room - size
        return self.resident[index]

    def receive(self, wait):
        start = time.perf_counter()
        positions, stacked = wait()
        self.waited += time.perf_counter() - start
        batches = [batch.to(self.device, torch.float32, memory_format=torch.contiguous_format) for batch in stacked]
        return positions, [batch.add_(self.pedestal).div_(255 + 2 * self.pedestal) for batch in batches]
