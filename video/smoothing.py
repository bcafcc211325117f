"""Grids smoothed over time, so that brightness neither flickers with a frame's noise nor lags behind the picture.

A frame's grid is the mean of the grids around it, both before and after, weighted by a window of cos^2 that reaches
0 at a given number of seconds; being centred, it has no lag. The network looks at means of the lowres copies of a few
frames, which takes out noise for less work than a grid for each. A cut starts anew: nothing is averaged across it.
"""

import math
import statistics
from collections import deque
from typing import NamedTuple

import cv2
import numpy as np

CUT = 0.25  # change from a frame to the next, a pan taken out, relative to their level, from which it can be a cut
CUT_RATIO = 3.0  # ... if it is as many times that of the frames before: other fast motion is no cut
CUT_SIDE = 64  # pixels along each side of what is compared
FLOOR = 4 / 255  # added to the level, so that noise of black frames is no cut
GROUPS = 8  # predictions per `seconds`, so that one of them blurs nothing that the window would not


class Look(NamedTuple):
    """A frame and what the network sees of it."""

    frame: object
    time: float  # in seconds
    lowres: np.ndarray  # (256, 256, 3) uint16


class Sample(NamedTuple):
    """The grid of a few consecutive frames."""

    time: float  # their mean
    span: float  # in seconds, what the sample stands for
    grid: object  # (1, 12, D, Gh, Gw)


def smooth_grids(looks, predict, seconds, most_waiting=32):
    """Yield (frame, grid) for every frame, in order.

    Args:
        looks: iterable of `Look`, times increasing.
        predict: function of lowres (256, 256, 3) uint16 that gives its grid.
        seconds: how far the window reaches to each side; 0 gives every frame its own grid.
        most_waiting: frames that are held back at most; where there are more, the window reaches less far ahead.
    """
    cuts = CutFinder()
    scene, waiting, group = [], deque(), []  # samples; looks without a grid yet; the last of these, without a sample
    for look in looks:
        is_cut = cuts.add(look.lowres)
        full = group and (look.time - group[0].time >= seconds / GROUPS or len(group) >= max(1, most_waiting // 2))
        if group and (is_cut or full):
            scene.append(make_sample(group, look.time, seconds, predict))
            group = []
        if scene:
            known = math.inf if is_cut else scene[-1].time - seconds
            if len(waiting) >= most_waiting:
                known = max(known, waiting[len(waiting) - most_waiting].time)
            yield from release(waiting, scene, seconds, known)
            scene = [] if is_cut else scene
        waiting.append(look)
        group.append(look)
    if group:
        scene.append(make_sample(group, group[-1].time, seconds, predict))
    yield from release(waiting, scene, seconds, math.inf)


def make_sample(group, end, seconds, predict):
    """Sample of the looks of a group that lasts until `end`."""
    mean = np.mean([look.lowres for look in group], axis=0).round().astype(np.uint16) if group[1:] else group[0].lowres
    time = sum(look.time for look in group) / len(group)
    return Sample(time, min(end - group[0].time, seconds), predict(mean))


def release(waiting, scene, seconds, until):
    """Yield (frame, grid) of the looks that wait up to the time `until`; forget samples too old for the next ones."""
    while waiting and waiting[0].time <= until:
        look = waiting.popleft()
        while scene[1:] and scene[0].time <= look.time - seconds:
            scene.pop(0)
        yield look.frame, mean_grid(scene, look.time, seconds)


def mean_grid(scene, time, seconds):
    """Mean of a scene's grids, weighted by the window around `time`; the nearest one where none is within it."""
    near = [sample for sample in scene if abs(sample.time - time) < seconds]
    weights = [sample.span * math.cos(math.pi / 2 * (sample.time - time) / seconds) ** 2 for sample in near]
    total = sum(weights)
    if total <= 0:
        return min(scene, key=lambda sample: abs(sample.time - time)).grid
    return sum(sample.grid * (weight / total) for sample, weight in zip(near, weights, strict=True))


class CutFinder:
    """Tells from lowres copies of consecutive frames where the picture changes at once."""

    def __init__(self):
        self.last, self.window = None, cv2.createHanningWindow((CUT_SIDE, CUT_SIDE), cv2.CV_32F)
        self.changes = deque(maxlen=8)

    def add(self, lowres):
        """Whether the scene of `lowres` (256, 256, 3) uint16 is another than that of the frame before."""
        small = cv2.resize(lowres, (CUT_SIDE, CUT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 65535
        last, self.last = self.last, small
        if last is None:
            return False
        pan, _ = cv2.phaseCorrelate(last.mean(axis=2), small.mean(axis=2), self.window)
        change = min(difference(last, small, 0, 0), difference(last, small, *map(round, pan)))
        change /= float(small.mean() + last.mean()) / 2 + FLOOR
        usual = statistics.median(self.changes) if len(self.changes) > 2 else 0.0
        self.changes.append(change)  # cuts too: what flickers at every frame has none
        return change >= max(CUT, CUT_RATIO * usual)


def difference(last, small, x, y):
    """Mean difference of two pictures (H, W, 3) where they overlap, the second moved back by a pan of (x, y) pixels."""
    x, y = (max(min(step, CUT_SIDE // 2), -CUT_SIDE // 2) for step in (x, y))
    before = last[max(-y, 0) : CUT_SIDE - max(y, 0), max(-x, 0) : CUT_SIDE - max(x, 0)]
    after = small[max(y, 0) : CUT_SIDE + min(y, 0), max(x, 0) : CUT_SIDE + min(x, 0)]
    return float(np.abs(after - before).mean())
