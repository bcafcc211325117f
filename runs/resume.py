"""Whether a run may go on: the options and photos of now against those that its last.pth holds."""

import hashlib
import os
from typing import NamedTuple

from pairs.lists import HASH_COLUMNS, hash_files, hash_pairs
from runs.checkpoint import network_options
from system.files import read_csv
from system.ranks import on_rank0

FREE = (  # options that may change when a run is resumed
    'recipe', 'split', 'exp_name', 'checkpoints_dir', 'resume', 'total_epochs', 'valid_interval', 'visualize_batch',
    'tensorboard', 'cache', 'num_workers', 'device', 'fused', 'deterministic', 'dataset_dir', 'train_pairs',
    'valid_pairs', 'good_photos',
)  # fmt: skip


def adopt_options(opt, checkpoint, path):
    """Take the network's options from the checkpoint where they came from --start_from, and refuse others that differ.

    Args:
        opt: changed in place.
        checkpoint: of the last.pth at `path`.
    Raises:
        ValueError: options that contradict the checkpoint's, by name.
    """
    before, network = {'drop_last': True, **checkpoint['opt']}, network_options(checkpoint)  # older runs left it out
    if before.get('start_from'):
        opt.start_from = opt.start_from or before['start_from']
        vars(opt).update(network)
    for name in set(network) - set(before):  # options that are younger than the checkpoint
        setattr(opt, name, network[name])
    differ = [f'{name} is {value!r}, was {before[name]!r}' for name, value in vars(opt).items()
              if name in before and name not in FREE and before[name] != value]  # fmt: skip
    if opt.schedule == 'cosine' and opt.total_epochs != before['total_epochs']:
        differ.append(f'total_epochs is {opt.total_epochs}, was {before["total_epochs"]}, on which cosine depends')
    if differ:
        raise ValueError(f'{path}: expected the options of the run that it resumes: {"; ".join(differ)}')


class Data(NamedTuple):
    """The photos of a run."""

    train: list  # pairs, in the order of the lists
    counts: list  # how many of them each list has
    valid: list  # pairs
    hashes: dict  # {path: hash of its file}

    @classmethod
    def of(cls, dataset, valid_pairs):
        """The Data of a pipeline.PairDataset and of the validation pairs; rank 0 alone reads all files."""
        paths = {path for pair in [*dataset.pairs, *valid_pairs] for path in pair}
        hashes = on_rank0(lambda: hash_files(paths))
        return cls(dataset.pairs, [count for count, _ in dataset.weights], valid_pairs, hashes)

    def state_dict(self):
        """Hashes for last.pth, of content alone, whatever names and folders: photos may move."""
        return {
            'data_hash': hash_pairs(self.train, self.hashes),
            'order_hash': hash_order(self.train, self.counts, self.hashes),
            'valid_hash': hash_pairs(self.valid, self.hashes),
        }

    def check(self, checkpoint, path):
        """Refuse other photos than those of the checkpoint, and another order, which would train otherwise.

        Args:
            checkpoint: of the last.pth at `path`; what an older one does not hold is not compared.
        Raises:
            ValueError: names the first pair that differs, where the lists lie beside last.pth.
        """
        now = self.state_dict()
        for name, expected in (
            ('data_hash', 'the training photos that the run began with'),
            ('order_hash', 'the training photos in the order, and in the lists, that the run began with'),
            ('valid_hash', 'the validation photos that the run began with, on which its best PSNR depends'),
        ):
            if checkpoint.get(name, now[name]) != now[name]:
                part, pairs = ('valid', self.valid) if name == 'valid_hash' else ('train', self.train)
                detail = describe_difference(
                    pairs, self.hashes, os.path.join(os.path.dirname(path), f'{part}_pairs.csv')
                )
                raise ValueError(f'{path}: expected {expected}; {detail}')


def hash_order(pairs, counts, hashes):
    """One hash of the content of all pairs in their order, and of how many each list has."""
    lines = [' '.join(hashes[name] for name in pair) for pair in pairs]
    return hashlib.sha256('\n'.join([*lines, *map(str, counts)]).encode()).hexdigest()[:16]


def describe_difference(pairs, hashes, path):
    """Where pairs first differ from the list that a run has written to `path`."""
    before = [tuple(row.get(name, '') for name in HASH_COLUMNS) for row in read_csv(path)]
    now = [tuple(hashes[name] for name in pair) for pair in pairs]
    if not before:
        return f'{path} is not there to compare'
    for i, (pair, content) in enumerate(zip(pairs, now, strict=True)):
        if i >= len(before) or content != before[i]:
            return f'pair {i + 1} is {pair[0]}, not that of {path}'
    return f'{len(now)} pairs, {len(before)} in {path}'
