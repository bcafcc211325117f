"""The folder of a training run: its lock, its lists, options and log, its checkpoints, curves and board.

    with open_folder('checkpoints/mine', rank) as folder:
        checkpoint = folder.read_last('auto')
        folder.describe(...)
        folder.save(state, row, better)       # after each epoch

Rank 0 alone writes; what it decides, it tells the other ranks. Every file is whole or not there, and last.pth comes
last: what a kill interrupts is repeated bit by bit on resuming.
"""

import contextlib
import importlib.util
import json
import os
import sys

import cv2
from filelock import FileLock, Timeout

from loss import PRESETS
from pairs.lists import write_pairs
from runs.checkpoint import read_checkpoint, save_checkpoint
from runs.curves import draw_curves
from system.files import read_csv, remove_stale_parts, save_csv, save_json
from system.process import describe_machine
from system.ranks import on_rank0

COLUMNS = ('epoch', 'total', *PRESETS['hdrnet'], 'psnr', 'ssim', 'lr', 'photos_per_s', 'waiting', 'seconds')  # log.csv
LOCK = '.lock'


@contextlib.contextmanager
def open_folder(path, rank=0):
    """A RunFolder that no other process writes to until this block ends.

    Raises:
        ValueError: another run writes there. OSError: it cannot be made.
    """
    lock = []
    on_rank0(lambda: lock.append(take_lock(path)))
    folder = RunFolder(path, rank)
    try:
        yield folder
    finally:
        if folder.board:
            folder.board.close()
        if rank == 0:
            with contextlib.suppress(OSError):
                os.remove(os.path.join(path, LOCK))
                os.rmdir(path)  # fails where a run has left anything
            lock[0].release()


def take_lock(path):
    """The lock of a run's folder, freed by the kernel when its process ends, however it ends."""
    os.makedirs(path, exist_ok=True)
    lock = FileLock(os.path.join(path, LOCK))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f'{path}: another run is writing there; wait for it, or take another --exp_name') from error
    return lock


class RunFolder:
    """See open_folder, which makes one."""

    def __init__(self, path, rank):
        self.path, self.rank = path, rank
        self.log, self.board, self.about = [], None, {}
        self.reference = ''  # what the validation PSNR is compared with, in words

    def read_last(self, resume):
        """(path, checkpoint) of the last.pth that a run goes on from, ('', None) for a new run; alike on all ranks.

        Args:
            resume: a path; 'auto' is the folder's own where there is one; '' is a new run.
        Raises:
            FileNotFoundError: no such file. ValueError: the folder holds a run already; not a last.pth.
        """

        def choose():
            own = os.path.join(self.path, 'last.pth')
            if not resume and os.path.exists(own):
                raise ValueError(f'{self.path}: holds a run already; take another --exp_name, or --resume auto')
            path = own if resume == 'auto' else resume
            if not path or (resume == 'auto' and not os.path.exists(own)):
                return '', None
            checkpoint = read_checkpoint(path)
            if 'optimizer' not in checkpoint:
                raise ValueError(f'{path}: expected a last.pth to resume from, got weights alone')
            return path, checkpoint

        return on_rank0(choose)

    def describe(self, opt, data, epoch):
        """Write what describes the run, and leave out what the log has of epochs after `epoch`, which will be repeated.

        Args:
            opt: options of the run, saved with every checkpoint.
            data: runs.state.RunData, saved with last.pth.
            epoch: that the run goes on from.
        """
        self.about = {'opt': dict(vars(opt)), **data.state_dict()}
        if self.rank > 0:
            return
        for name in ('train_phase', 'valid_phase'):
            os.makedirs(os.path.join(self.path, name), exist_ok=True)
        save_json(os.path.join(self.path, 'options.json'), self.about['opt'])
        with open(os.path.join(self.path, 'run.jsonl'), 'a', encoding='utf-8') as file:
            file.write(json.dumps({'after_epoch': epoch, 'command': sys.argv, **describe_machine()}) + '\n')
        write_pairs(os.path.join(self.path, 'train_pairs.csv'), data.train, data.hashes)
        write_pairs(os.path.join(self.path, 'valid_pairs.csv'), data.valid, data.hashes)
        remove_stale_parts([self.path])
        self.log = [row for row in read_csv(os.path.join(self.path, 'log.csv')) if int(row['epoch']) <= epoch]
        save_csv(os.path.join(self.path, 'log.csv'), self.log, COLUMNS)
        if opt.tensorboard and importlib.util.find_spec('tensorboard'):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(os.path.join(self.path, 'tensorboard'), purge_step=epoch + 1)

    def save(self, state, row, better):
        """Write an epoch's log and checkpoints.

        Args:
            row: of the log; with 'psnr' there is an epoch_<e>_psnr_<p>.pth.
            better: whether it is the best so far, best.pth.
        """
        if self.rank > 0:
            return
        self.log.append(row)
        save_csv(os.path.join(self.path, 'log.csv'), self.log, COLUMNS)
        everything = state.state_dict()
        weights = self.weights(state)
        if 'psnr' in row:
            save_checkpoint(os.path.join(self.path, f'epoch_{state.epoch}_psnr_{row["psnr"]:.3f}.pth'), weights)
        if better:
            self.save_best(state)
        save_checkpoint(os.path.join(self.path, 'last.pth'), {**weights, **everything, **self.about})

    def weights(self, state):
        """What a checkpoint holds that is not for resuming."""
        return {'arch': self.about['opt']['arch'], 'model': state.average.state_dict(), 'epoch': state.epoch,
                **state.scores, 'opt': self.about['opt']}  # fmt: skip

    def save_best(self, state):
        """Write best.pth."""
        if self.rank == 0:
            save_checkpoint(os.path.join(self.path, 'best.pth'), self.weights(state))

    def report(self, row):
        """Print an epoch's row, redraw curves.png, feed TensorBoard."""
        if self.rank > 0:
            return
        texts = (f'{name} {value:.3f}' if name == 'psnr' else f'{name} {value:.4g}' for name, value in row.items())
        print('  '.join(texts) + self.reference)
        try:
            charts = [(title, {'': [self.column(name)]}, name == 'total')
                      for name, title in (('total', 'training loss'), ('psnr', 'validation PSNR in dB'))]  # fmt: skip
            draw_curves(os.path.join(self.path, 'curves.png'), charts)
        except Exception as error:  # whatever a drawing library may raise: the run is worth more than its picture
            print(f'note: curves.png could not be drawn ({error})', file=sys.stderr)
        if self.board:
            for name, value in row.items():
                self.board.add_scalar(name, value, row['epoch'])
            for name in ('reflect', 'illumination') if 'psnr' in row else ():
                sheet = cv2.imread(os.path.join(self.path, 'valid_phase', f'ep_{row["epoch"]}_{name}.png'))
                self.board.add_image(name, sheet[..., ::-1], row['epoch'], dataformats='HWC')
            self.board.flush()

    def column(self, name):
        """{epoch: value} of a column of the log."""
        return {int(row['epoch']): float(row[name]) for row in self.log if row.get(name) not in (None, '')}
