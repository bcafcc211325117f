"""Time of enhancing a video against decoding and encoding alone, with the same codec settings, in turn in one run.

    python -m tools.benchmark_video
    python -m tools.benchmark_video --codec libx264,libx265 --frames 60
    python -m tools.benchmark_video --width 3840 --height 2160 --frames 60 --repeats 0

The clip pans over an enlarged sample photo with noise. Encoding alone is measured twice: of the clip's own frames, and
of its enhanced ones, which are brighter and take the encoder longer. Beside the seconds stand those of all cores
together, which other processes disturb less. Memory is that of a process which enhances the clip, once.
"""

import os
import tempfile
import time
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np

import utils
from runs.checkpoint import load_network
from system.process import describe_machine, tune_malloc
from tools.benchmark import measure_peak, noisy_photo, time_in_turn
from video.enhance import enhance_video
from video.reader import open_source, read_frames
from video.writer import Result

opt = SimpleNamespace(
    checkpoints_file='checkpoints/general/best.pth',
    codec='libx264',  # encoder of the clip; several separated by commas
    width=1920,
    height=1080,
    frames=90,
    repeats=3,  # timed runs of each side; 0 measures memory alone
)

RULES = {'width': (64, None), 'height': (64, None), 'frames': (2, None), 'repeats': (0, None)}


def main(opt):
    utils.check_options(opt, RULES)
    tune_malloc()
    network, _ = load_network(opt.checkpoints_file)
    print(describe_machine() | {'PyAV': av.__version__})
    print(f'{"":34} {"ours":>8} {"other":>8} {"ratio":>6} {"CPU ours":>9} {"other":>8} {"ratio":>6}  other is')
    with tempfile.TemporaryDirectory() as folder:
        for codec in opt.codec.split(','):
            clip, result, other = (os.path.join(folder, f'{codec}_{name}.mkv') for name in ('clip', 'result', 'other'))
            make_clip(clip, codec, opt.width, opt.height, opt.frames)
            what = f'{codec}, {opt.width} x {opt.height}, {opt.frames} frames'
            peak = measure_peak(enhance, opt.checkpoints_file, clip, result)
            print(f'{what:34} {peak:6.2f} GB of memory at most, to enhance it', flush=True)
            if not opt.repeats:
                continue
            sides = (
                lambda clip=clip, result=result: enhance_video(network, clip, result),
                lambda clip=clip, other=other: copy_video(clip, clip, other),
                lambda clip=clip, result=result, other=other: copy_video(result, clip, other),
            )
            (wall, work), *others = time_in_turn(sides, opt.repeats, both_clocks)
            for (other_wall, other_work), of in zip(others, ('the clip', 'the enhanced clip'), strict=True):
                print(f'{what:34} {wall:6.2f} s {other_wall:6.2f} s {wall / other_wall:6.2f} {work:7.2f} s '
                      f'{other_work:6.2f} s {work / other_work:6.2f}  decoding and encoding {of}')  # fmt: skip
    return 0


def both_clocks():
    """Seconds that passed, and those of all cores together."""
    return np.array([time.perf_counter(), time.process_time()])


def enhance(checkpoints_file, clip, result):
    tune_malloc()
    enhance_video(load_network(checkpoints_file)[0], clip, result)


def make_clip(path, codec, width, height, frames):
    """A video of 30 frames a second that pans over a dark, noisy photo half as large again."""
    photo = cv2.resize(noisy_photo(0.3), (width * 3 // 2, height * 3 // 2), interpolation=cv2.INTER_CUBIC) * 0.35
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 2, (height, width, 1)) for _ in range(8)]
    with av.open(path, 'w') as container:
        stream = container.add_stream(codec, 30, options={'crf': '20'})
        stream.width, stream.height, stream.pix_fmt = width, height, 'yuv420p'
        for i in range(frames):
            x, y = (round(size / 4 * (1 + np.sin(i / period))) for size, period in ((width, 40), (height, 60)))
            picture = np.clip(photo[y : y + height, x : x + width] + noise[i % 8], 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format='rgb24')
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def copy_video(path, settings_of, result):
    """Decode and encode a video as enhance_video does, with the settings that it has for the video `settings_of`."""
    settings = open_source(settings_of)
    source = open_source(path)
    with settings.container, source.container:
        output = None
        for frame in read_frames(source):
            output = output or Result(result, result, settings, frame)
            output.write(frame)
        output.finish()


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
