"""Training and evaluation pairs: read them, make batches of them.

A pair is (input path, target path): an underexposed photo and the same photo well exposed, equal in size. An item of
`PairDataset` is (lowres, fullres, target), 8-bit RGB; `Loader` makes float batches of them. Everything random comes
from (seed, epoch, position), so the same photos come out whatever the number of threads, and a resumed run sees what an
uninterrupted one would.
"""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from model import LOW_SIZE
from pairs import augment, degrade
from photos.picture import read_photo
from system.files import error_line, raise_all
from system.process import cores, map_in_order

RANGES = degrade.Ranges()  # of what is simulated from good photos


def read_pair(pair):
    """Both photos of a pair as (H, W, 3) uint8 or uint16 RGB.

    Raises:
        OSError, ValueError: a photo is missing, unreadable, or the sizes differ; the message names the files.
    """
    photo = read_photo(pair[0])
    target = photo if pair[1] == pair[0] else read_photo(pair[1])
    if photo.shape != target.shape:
        sizes = ' and '.join(f'{image.shape[1]} x {image.shape[0]}' for image in (photo, target))
        raise ValueError(f'{pair[0]}: expected the size of its target {pair[1]}, got {sizes}')
    return photo, target


@dataclass
class Photos:
    """The (photo, target) arrays of pairs; what no cache holds is decoded when it is asked for."""

    pairs: list  # paths
    positions: range  # of those that are in this list
    cached: list  # arrays, or None, of each of them
    seed: int | None = None  # the photo is simulated from the target, always alike by this and its position

    def __len__(self):
        return len(self.cached)

    def __getitem__(self, i):
        photo, target = self.cached[i] or read_pair(self.pairs[self.positions[i]])
        if self.seed is None:
            return photo, target
        black = degrade.find_black(target, RANGES.black)
        numbers = degrade.draw_degradation(RANGES, black, np.random.default_rng([self.seed, self.positions[i]]))
        return degrade.degrade(target, numbers)


def load_pairs(pairs, positions=None, cache='ram', folder=None, least=1):
    """Decode every pair once, before training starts, and report all bad ones together; returns their Photos.

    Args:
        positions: range of those to load; None is all.
        cache: where the decoded photos stay: 'ram'; 'file', an unnamed temporary file mapped into memory, as fast
            while there is memory for it; 'none', they are only checked.
        folder: where the temporary file lies; None is the system's.
        least: pixels of the shortest side that is taken.
    Raises:
        ValueError: one line per missing, unreadable or too small photo and per pair of different sizes.
    """
    positions = range(len(pairs)) if positions is None else positions
    problems, loaded, wanted = [], [], [pairs[position] for position in positions]

    def load(pair):
        try:
            photos = read_pair(pair)
        except (OSError, ValueError) as error:
            problems.append(error_line(error))
            return None
        if min(photos[0].shape[:2]) < least:
            height, width = photos[0].shape[:2]
            problems.append(f'{pair[0]}: expected {least} x {least} pixels or more, got {width} x {height}')
        return photos

    with ThreadPoolExecutor(cores()) as pool, tempfile.TemporaryFile(dir=folder) as file:
        places = []
        try:
            for photos in tqdm(pool.map(load, wanted), 'read pairs', len(wanted), disable=None, leave=False):
                loaded.append(photos if cache == 'ram' else None)
                if cache == 'file' and photos:
                    places.append([(file.tell(), file.write(p.tobytes()), p.dtype, p.shape) for p in photos])
            file.flush()
        except OSError as error:
            raise OSError(
                f'cache: no room for decoded photos in {folder} ({error}); --cache none takes none'
            ) from error
        raise_all(sorted(set(problems)), 'pairs')
        if places:
            content = np.memmap(file, np.uint8, 'r')
            loaded = [tuple(content[at : at + size].view(dtype).reshape(shape) for at, size, dtype, shape in place)
                      for place in places]  # fmt: skip
    return Photos(pairs, positions, loaded)


# ---------------------------------------------------------------------------------------------------- dataset


class PairDataset:
    """Augmented training pairs of one epoch; call `set_epoch` before each.

    Args:
        lists: list of (pairs, weight), see mix_pairs.
        opt: of train.py; arch, full_size, augment, identity_share, darken, max_stops, good_identity_share, cache and
            seed say how items are made of the pairs.
        good: (photos, weight) like one of `lists`: photos without a darker partner, each paired with itself.
        lowres_mode: see augment.render.
        folder: see load_pairs.
    """

    def __init__(self, lists, opt, good=((), 1.0), lowres_mode='bilinear', folder=None):
        self.first_good = sum(len(pairs) for pairs, _ in lists)
        self.opt, self.lowres_mode, self.blacks = opt, lowres_mode, {}
        lists = [*lists, good]
        self.pairs = [pair for pairs, _ in lists for pair in pairs]
        self.weights = [(len(pairs), weight) for pairs, weight in lists]
        self.side = 0 if opt.arch == 'deepupe' else opt.full_size  # deepupe crops 256 x 256
        self.photos = load_pairs(self.pairs, None, opt.cache, folder)
        self.set_epoch(1)

    def set_epoch(self, epoch):
        """Fix the order of an epoch's pairs and the seed of their augmentation."""
        self.epoch = epoch
        rng = np.random.default_rng([self.opt.seed, epoch])
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
        pair = self.photos[int(self.order[position])]
        return augment.render(*pair, self.draw(position, pair[1]), self.side, self.lowres_mode)

    def draw(self, position, target):
        """The augment.Recipe of a position in the epoch, whose target (H, W, 3) is given."""
        rng = np.random.default_rng([self.opt.seed, self.epoch, position])
        opt, index, share = self.opt, int(self.order[position]), rng.random()
        good = index >= self.first_good
        kept = share < (opt.good_identity_share if good else opt.identity_share)
        steps = self.draw_steps(target.shape, rng)
        degradation = None
        if good:
            black = 0.0 if kept else self.find_black(index, target)
            degradation = degrade.draw_degradation(RANGES, black, rng, kept)
        dark = not kept and opt.darken and rng.random() < opt.darken
        darkening = degrade.draw_darkening(opt.max_stops, rng) if dark else None
        return augment.Recipe(good or kept, steps, degradation, darkening)

    def find_black(self, index, target):
        """The level of a pair's target that becomes black, found once."""
        if index not in self.blacks:
            self.blacks[index] = degrade.find_black(target, RANGES.black)
        return self.blacks[index]

    def draw_steps(self, shape, rng):
        """The geometry of an item."""
        if self.opt.arch == 'deepupe':
            return tuple(augment.draw_patch(*shape[:2], LOW_SIZE, rng if self.opt.augment else None))
        return tuple(augment.draw_steps(*shape[:2], rng)) if self.opt.augment else ()


class Loader:
    """Batches of an epoch in the dataset's order, prepared by threads while the one before is trained on.

    With several ranks each takes its share of every batch. Iterating gives (positions, (lowres, fullres, target)) with
    float RGB (N, 3, H, W) in [0, 1] on the device; `waited` are the seconds waited for photos since it began.

    Args:
        num_workers: threads; OpenCV and numpy release the GIL. 0 prepares each batch when it is asked for, -1 takes a
            thread per core, up to 8.
        drop_last: leave out a last batch that is not full; else it is cut to a multiple of the ranks, and left out
            where that is a single pair, with which BatchNorm cannot train.
    Raises:
        ValueError: fewer than two pairs to a batch, or ranks that do not divide it.
    """

    def __init__(self, dataset, batch_size, num_workers=-1, device='cpu', rank=0, world=1, drop_last=False):
        if batch_size % world:
            raise ValueError(f'train_batch_size: expected a multiple of the {world} ranks, got {batch_size}')
        self.batch_size = min(batch_size, len(dataset) // world * world)
        if self.batch_size < 2:
            raise ValueError(f'training: expected two or more pairs and batch size 2 or more, got {len(dataset)} pairs')
        self.num_workers = num_workers if num_workers >= 0 else min(cores(), 8)
        self.dataset, self.device = dataset, torch.device(device)
        self.rank, self.world, self.waited = rank, world, 0.0
        full = len(dataset) // self.batch_size * self.batch_size
        rest = 0 if drop_last else (len(dataset) - full) // world * world
        self.count = full + (rest if rest >= 2 else 0)  # of an epoch's pairs that are trained on

    def __len__(self):
        return -(-self.count // self.batch_size)

    def __iter__(self):
        self.waited, numbers = 0.0, range(len(self))
        with ThreadPoolExecutor(self.num_workers or 1, 'load') as pool:
            ahead = map_in_order(pool, self.prepare, numbers, self.num_workers + 2)
            batches = ahead if self.num_workers else map(self.prepare, numbers)
            for _ in numbers:
                yield self.receive(batches)

    def prepare(self, k):
        """This rank's positions of batch k, and their photos stacked, (N, H, W, 3) with levels in [0, 255]."""
        end = min((k + 1) * self.batch_size, self.count)
        positions = range(k * self.batch_size + self.rank, end, self.world)
        stacked = []
        for photos in zip(*(self.dataset[position] for position in positions), strict=True):
            if any(photo.dtype != np.uint8 for photo in photos):  # 16 bit: keep the fractions of a level
                photos = [photo / np.float32(257 if photo.dtype == np.uint16 else 1) for photo in photos]
            stacked.append(torch.from_numpy(np.stack(photos)))
        return positions, stacked

    def receive(self, batches):
        start = time.perf_counter()
        positions, stacked = next(batches)
        self.waited += time.perf_counter() - start
        batches = [batch.to(self.device).permute(0, 3, 1, 2) for batch in stacked]  # as bytes: floats are made there
        floats = [batch.to(torch.float32, memory_format=torch.contiguous_format) for batch in batches]
        return positions, [batch.div_(255) for batch in floats]
