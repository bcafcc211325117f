"""What a run saves and goes on from: what training changes, the photos, and whether it may go on with these options."""

import copy
import hashlib
import os
import time
from typing import NamedTuple

import torch

from pairs.lists import HASH_COLUMNS, hash_files
from runs.checkpoint import network_options
from system.files import read_csv
from system.ranks import on_rank0

FREE = (  # options that may change when a run is resumed
    'recipe', 'split', 'exp_name', 'checkpoints_dir', 'resume', 'total_epochs', 'valid_interval', 'visualize_batch',
    'tensorboard', 'cache', 'num_workers', 'device', 'fused', 'deterministic', 'dataset_dir', 'train_pairs',
    'valid_pairs', 'good_photos',
)  # fmt: skip


class State:
    """Network, averaged weights, optimiser, random numbers, and how far the run is.

    Args:
        network: on its device.
        lr, weight_decay: of Adam.
        ema: decay per step of the averaged weights, 0 averages nothing: `average` then is the network.
    """

    def __init__(self, network, lr=1e-2, weight_decay=0.0, ema=0.0):
        self.network, self.ema = network, ema
        self.average = copy.deepcopy(network).eval() if ema else network  # what is validated and saved
        device = next(network.parameters()).device.type
        fused = True if device == 'cuda' else None  # one launch instead of hundreds
        self.optimizer = torch.optim.Adam(network.parameters(), lr, weight_decay=weight_decay, fused=fused)
        self.epoch, self.scores, self.best = 0, {'psnr': 0.0, 'ssim': 0.0}, float('-inf')
        self.start, self.before = time.perf_counter(), 0.0  # of this process; seconds of those before it
        self.parts = {'model': self.average, 'network': network, 'optimizer': self.optimizer}

    def state_dict(self):
        """All of it as tensors and plain values, the part of last.pth that `load_state_dict` reads."""
        numbers = {'epoch': self.epoch, 'best': self.best, 'seconds': self.seconds(), 'random': torch.get_rng_state()}
        return numbers | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state):
        """Go on where `state_dict` was taken."""
        self.epoch, self.best, self.before = state['epoch'], state['best'], state['seconds']
        for group in state['optimizer']['param_groups']:
            group['fused'] = self.optimizer.defaults['fused']  # of this device, not the checkpoint's
        torch.set_rng_state(state['random'])
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def finish_epoch(self, scores):
        """Count an epoch with its validation scores, none where it was not validated; whether it is the best so far."""
        self.epoch += 1
        self.scores = {name: scores.get(name, 0.0) for name in self.scores}
        better = scores.get('psnr', float('-inf')) > self.best
        self.best = max(self.best, scores.get('psnr', self.best))
        return better

    def find_not_finite(self):
        """Name of a weight or statistic of the network, its average or Adam that is not finite; '' where all are."""
        names = {value: name for name, value in self.network.named_parameters()}
        moments = {
            f'Adam, {moment} of {names[parameter]}': value
            for parameter, values in self.optimizer.state.items()
            for moment, value in values.items()
        }
        for values in (self.network.state_dict(), self.average.state_dict(), moments):
            for name, value in values.items():
                if not value.isfinite().all():
                    return name
        return ''

    def seconds(self):
        """Seconds that the run has taken, in all its processes, without those between them."""
        return self.before + time.perf_counter() - self.start


def adopt_options(opt, checkpoint, path):
    """Take the network's options from the checkpoint where they came from --start_from, and refuse others that differ.

    Args:
        opt: changed in place.
        checkpoint: of the last.pth at `path`.
    Raises:
        ValueError: options that contradict the checkpoint's, by name.
    """
    network = network_options(checkpoint)
    before = network | checkpoint['opt']
    if before.get('start_from'):
        opt.start_from = opt.start_from or before['start_from']
        vars(opt).update(network)
    differ = [f'{name} is {value!r}, was {before[name]!r}' for name, value in vars(opt).items()
              if name in before and name not in FREE and before[name] != value]  # fmt: skip
    if opt.schedule == 'cosine' and opt.total_epochs != before['total_epochs']:
        differ.append(f'total_epochs is {opt.total_epochs}, was {before["total_epochs"]}, on which cosine depends')
    if differ:
        raise ValueError(f'{path}: expected the options of the run that it resumes: {"; ".join(differ)}')


class RunData(NamedTuple):
    """The photos of a run."""

    train: list  # pairs, in the order of the lists
    counts: list  # how many of them each list has
    valid: list  # pairs
    hashes: dict  # {path: hash of its file}

    @classmethod
    def of(cls, dataset, valid_pairs):
        """The RunData of a pipeline.PairDataset and of the validation pairs; rank 0 alone reads all files."""
        paths = {path for pair in [*dataset.pairs, *valid_pairs] for path in pair}
        hashes = on_rank0(lambda: hash_files(paths))
        return cls(dataset.pairs, [count for count, _ in dataset.weights], valid_pairs, hashes)

    def state_dict(self):
        """Hashes for last.pth, of content alone, whatever names and folders: photos may move."""
        return {'train_hash': self.hash(self.train, self.counts), 'valid_hash': self.hash(self.valid)}

    def hash(self, pairs, counts=()):
        """One hash of the content of pairs in their order, and of how many each list has."""
        lines = [' '.join(self.hashes[name] for name in pair) for pair in pairs]
        return hashlib.sha256('\n'.join([*lines, *map(str, counts)]).encode()).hexdigest()[:16]

    def check(self, checkpoint, path):
        """Refuse other photos than those of the checkpoint, and another order, which would train otherwise.

        Args:
            checkpoint: of the last.pth at `path`.
        Raises:
            ValueError: names the first pair that differs, where the lists lie beside last.pth.
        """
        for part, pairs, words in (
            ('train', self.train, 'training photos that the run began with, in the order and in the lists'),
            ('valid', self.valid, 'validation photos that the run began with, on which its best PSNR depends'),
        ):
            if checkpoint.get(f'{part}_hash') != self.state_dict()[f'{part}_hash']:
                before = os.path.join(os.path.dirname(path), f'{part}_pairs.csv')
                raise ValueError(f'{path}: expected the {words}; {self.describe_difference(pairs, before)}')

    def describe_difference(self, pairs, path):
        """Where pairs first differ from the list that a run has written to `path`."""
        before = [[row.get(name) for name in HASH_COLUMNS] for row in read_csv(path)]
        for i, pair in enumerate(pairs):
            if before and before[i : i + 1] != [[self.hashes[name] for name in pair]]:
                return f'pair {i + 1} is {pair[0]}, not that of {path}'
        return f'{len(pairs)} pairs, {len(before)} in {path}'
