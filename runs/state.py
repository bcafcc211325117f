"""What training changes, from step to step and from epoch to epoch, and how it is saved and taken up again."""

import copy
import time

import torch
from torch.nn.parallel import DistributedDataParallel

from kernels import estimate_illumination


class State:
    """Network, averaged weights, optimiser, random numbers, and how far the run is.

    Args:
        network: on its device.
        lr, weight_decay: of Adam.
        ema: decay per step of the averaged weights, 0 averages nothing: `average` then is the network.
        fp16: scale the loss, so that float16 gradients do not vanish.
    """

    def __init__(self, network, lr=1e-2, weight_decay=0.0, ema=0.0, fp16=False):
        self.network, self.ema = network, ema
        self.average = copy.deepcopy(network).eval() if ema else network  # what is validated and saved
        self.optimizer = torch.optim.Adam(network.parameters(), lr, weight_decay=weight_decay)
        self.scaler = torch.amp.GradScaler(next(network.parameters()).device.type, enabled=fp16)
        self.epoch, self.scores, self.best = 0, {'psnr': 0.0, 'ssim': 0.0}, float('-inf')
        self.start, self.first = time.perf_counter(), 0  # of this process

    def state_dict(self):
        """All of it as tensors and plain values, the part of last.pth that `load_state_dict` reads."""
        return {
            'epoch': self.epoch,
            'best': self.best,
            'model': self.average.state_dict(),
            'network': self.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scaler': self.scaler.state_dict(),
            'random': torch.get_rng_state(),
        }

    def load_state_dict(self, state):
        """Go on where `state_dict` was taken."""
        self.epoch = self.first = state['epoch']
        self.best = state['best']
        self.average.load_state_dict(state['model'])
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.scaler.load_state_dict(state['scaler'])
        torch.set_rng_state(state['random'])

    def step(self, loss, grad_clip, progress):
        """Backward and one step of the optimiser and of the average.

        Args:
            loss: scalar.
            grad_clip: largest norm of the gradient; 0 does not clip.
            progress: steps since the run began, this one included.
        """
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if grad_clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema:
            update_average(self.average, self.network, self.ema, progress)

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

    def seconds_left(self, progress, total):
        """Estimate from the epochs that this process has trained, fractions included."""
        return (time.perf_counter() - self.start) * (total - progress) / (progress - self.first)


def lr_factor(schedule, progress, total):
    """What the learning rate is multiplied by after `progress` epochs (a fraction within an epoch) of `total`.

    Args:
        schedule: 'steps', 'constant' or 'cosine', which warms up over the first epoch.
    Raises:
        ValueError: unknown schedule.
    Source of 'steps': hermosayhl/DeepUPE_pytorch.
    """
    if schedule == 'constant':
        return 1.0
    if schedule == 'cosine':
        warmup = min(1.0, progress)
        return float(warmup * 0.5 * (1 + torch.tensor(torch.pi * min(progress / total, 1)).cos()))
    if schedule == 'steps':
        epoch = -(-progress // 1) - 1  # progress in (0, 1] is epoch 0
        for last, factor in ((0, 1.0), (1, 0.5), (8, 0.1), (18, 0.05), (30, 0.01)):
            if epoch <= last:
                return factor
        return 0.003
    raise ValueError(f'schedule: expected steps, constant or cosine, got {schedule!r}')


@torch.no_grad()
def update_average(average, network, decay, step):
    """Move averaged weights and BatchNorm statistics towards the network's; the first steps weigh more."""
    decay = min(decay, (1 + step) / (10 + step))
    for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


class FusedNetwork(torch.nn.Module):
    """The network by its fastest path, (lowres, fullres) -> illumination, as a module that wraps.

    Args:
        amp: torch.bfloat16 or torch.float16 for the coefficient network, None is float32.
    """

    def __init__(self, network, amp):
        super().__init__()
        self.network, self.amp = network, amp

    def forward(self, lowres, fullres):
        return estimate_illumination(self.network, lowres, fullres, self.amp)


def share_gradients(model, device, world):
    """The model, on several ranks with the mean of their gradients."""
    if world == 1:
        return model
    return DistributedDataParallel(model, [device] if device.type == 'cuda' else None)
