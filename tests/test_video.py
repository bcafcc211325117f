import errno
import os
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import inference
from kernels import Edit
from photos.lowres import shrink, shrink_area
from runs.checkpoint import load_network
from system.process import map_in_order

av = pytest.importorskip('av')

from video.boxes import whole_boxes  # noqa: E402
from video.colors import find_layout, planes_to_rgb, rgb_to_planes  # noqa: E402
from video.enhance import enhance_video, prefetch  # noqa: E402
from video.smoothing import CutFinder, Look, smooth_grids  # noqa: E402
from video.writer import Result  # noqa: E402

SIZE = 96, 128
SAME = Edit(strength=0.0)


@pytest.fixture(scope='module')
def network():
    return load_network('checkpoints/general/best.pth')[0]


def scene(seed=0, level=60, size=SIZE):
    """A dark picture (96, 128, 3) uint8 of soft blobs."""
    blobs = np.random.default_rng(seed).integers(5, level, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(blobs, size[::-1], interpolation=cv2.INTER_LINEAR)


def write_clip(path, frames, codec='ffv1', pixels='yuv420p', times=None, options=None, tags=None, sound=False, **more):
    """Write RGB frames (H, W, 3) uint8, or ready av.VideoFrames, 30 a second or at `times` of 1/600 s."""
    tags = tags or {'color_range': 1, 'colorspace': 1}
    with av.open(str(path), 'w', format=more.get('format'), container_options={'strict': 'unofficial'}) as container:
        container.metadata['title'] = 'a title'
        stream = container.add_stream(codec, 30, options={'strict': 'unofficial'} | (options or {}))
        stream.height, stream.width = frames[0].shape[:2] if isinstance(frames[0], np.ndarray) else (
            frames[0].height, frames[0].width)  # fmt: skip
        stream.pix_fmt = pixels
        stream.codec_context.time_base = stream.time_base = Fraction(1, 600)
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        if more.get('matrix'):
            stream.set_display_matrix(more['matrix'])
        tone = container.add_stream('aac', 16000, layout='mono') if sound else None
        for i, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, format='rgb24').reformat(
                    format=pixels, dst_colorspace=tags['colorspace'] or None, dst_color_range=tags['color_range']
                )
            frame.pts, frame.time_base = times[i] if times else 20 * i, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            wave = (np.sin(np.arange(16000) / 9) * 9000).astype(np.int16)
            for start in range(0, 16000, 1000):
                part = av.AudioFrame.from_ndarray(wave[None, start : start + 1000], format='s16', layout='mono')
                part.sample_rate, part.pts = 16000, start
                container.mux(tone.encode(part))
            container.mux(tone.encode(None))
    return str(path)


def read_clip(path):
    """(frames, their times in seconds, the video stream's codec context, packets of other streams)."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        frames, others = [], []
        for packet in container.demux():
            if packet.stream is stream:
                frames += packet.decode()
            elif packet.dts is not None:
                others.append((packet.stream.type, packet.pts * packet.time_base, bytes(packet)))
        return frames, [frame.pts * frame.time_base for frame in frames], stream.codec_context, others


def planes_of(frame):
    return [np.frombuffer(p, np.uint8).reshape(p.height, -1) for p in frame.planes]


def noisy(count, picture, spread=12):
    rng = np.random.default_rng(1)
    return [np.clip(picture + rng.normal(0, spread, picture.shape), 0, 255).astype(np.uint8) for _ in range(count)]


# ------------------------------------------------------------------------------------------------- smoothing


def test_brightness_varies_a_quarter_as_much_as_frame_by_frame(network, tmp_path):
    picture, variances = scene(size=(192, 256)).astype(float), []
    for seed in (1, 2, 3):  # of three clips, as one second of grain says little
        rng, frames = np.random.default_rng(seed), []
        for _ in range(75):
            grain = rng.normal(0, 6, (24, 32, 3))  # as large as what a codec leaves, of the same mean in all frames
            grain = np.kron(grain - grain.mean(), np.ones((8, 8, 1)))
            frames.append(np.clip(picture + grain, 0, 255).astype(np.uint8))
        clip = write_clip(tmp_path / f'{seed}.mkv', frames, pixels='yuv444p')
        for seconds in (0.0, 1.0, 10.0):
            result = str(tmp_path / f'{seed}_{seconds}.mkv')
            enhance_video(network, clip, result, smoothing=seconds)
            variances.append(np.var([frame.to_ndarray(format='rgb24').mean() for frame in read_clip(result)[0]]))
    # 10 s give all frames nearly one grid: what then still varies is the grain, seen through one tone curve
    alone, smoothed, still = np.reshape(variances, (3, 3)).sum(axis=0)
    assert smoothed - still <= (alone - still) / 4**2


def looks_of(levels, rate=30):
    for i, level in enumerate(levels):
        yield Look(i, i / rate, np.full((256, 256, 3), level, np.uint16))


def predict_level(lowres):
    return torch.full((1, 12, 1, 1, 1), float(lowres.mean()))


def test_smoothing_does_not_lag_behind_a_ramp():
    levels = [20000 + 100 * i for i in range(120)]
    graded = [(frame, grid.mean().item()) for frame, grid in smooth_grids(looks_of(levels), predict_level, 0.5)]
    assert [frame for frame, _ in graded] == list(range(120))
    # half a group of frames, 2 of them, is as exact as the means of groups are
    np.testing.assert_allclose([g for _, g in graded[20:100]], levels[20:100], atol=200)


def test_nothing_is_averaged_across_a_cut():
    levels = [5000] * 25 + [40000] * 25
    graded = [grid.mean().item() for _, grid in smooth_grids(looks_of(levels), predict_level, 1.0)]
    np.testing.assert_allclose(graded, levels, rtol=1e-6)


def test_fast_motion_is_no_cut_and_another_picture_is():
    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(0, 9000, (8, 64, 3)), np.ones((32, 32, 1))).astype(np.uint16)
    cuts, windows = CutFinder(), [np.ascontiguousarray(wide[:, x : x + 256]) for x in range(0, 512, 4)]
    assert not any(cuts.add(window) for window in windows)  # across the picture in two seconds
    assert cuts.add(windows[0])


def test_hard_cut_in_a_fast_pan_is_found():
    rng, windows = np.random.default_rng(0), []
    for _ in range(2):
        wide = np.kron(rng.integers(0, 9000, (16, 64, 3)), np.ones((16, 16, 1))).astype(np.uint16)
        windows += [np.ascontiguousarray(wide[:, x : x + 256]) for x in range(0, 720, 45)]  # across in six frames
    cuts = CutFinder()
    assert [i for i, window in enumerate(windows) if cuts.add(window)] == [16]


def test_no_smoothing_gives_every_frame_its_own_grid():
    levels = [1000, 9000, 3000, 30000, 2000]
    assert [grid.mean().item() for _, grid in smooth_grids(looks_of(levels), predict_level, 0.0)] == levels


def test_few_frames_wait_where_memory_is_short():
    waiting, most = 0, 0

    def counted():
        nonlocal waiting, most
        for look in looks_of([9000] * 90):
            waiting += 1
            most = max(most, waiting)
            yield look

    for _ in smooth_grids(counted(), predict_level, 1.0, most_waiting=8):
        waiting -= 1
    assert most <= 9


# --------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize('matrix', [1, 6, 9])
@pytest.mark.parametrize('color_range', [1, 2])
@pytest.mark.parametrize('name', ['yuv420p', 'yuv422p10le', 'yuv444p12le', 'yuv411p', 'gbrp', 'gbrp10le'])
def test_planes_come_back_from_rgb_bit_for_bit(name, color_range, matrix):
    layout = find_layout(name, matrix, color_range, 35, 21)
    across, down = layout.chroma
    unit = (layout.top + 1) // 256
    rng = np.random.default_rng(0)
    sizes = [(21, 35), *[(-(-21 // down), -(-35 // across))] * 2]
    # small chroma about grey is within RGB's range whatever the matrix
    planes = [rng.integers(*((80, 170) if i == 0 else (112, 144)), size) * unit for i, size in enumerate(sizes)]
    planes = [(plane + rng.integers(0, unit, plane.shape)).astype(layout.dtype) for plane in planes]
    rgb, back = np.empty((21, 35, 3), np.uint16), [np.empty_like(plane) for plane in planes]
    planes_to_rgb(planes, layout, rgb)
    rgb_to_planes(rgb, layout, back)
    for plane, other in zip(planes, back, strict=True):
        np.testing.assert_array_equal(plane, other)


@pytest.mark.parametrize('matrix', [1, 5])
@pytest.mark.parametrize('color_range', [1, 2])
def test_rgb_agrees_with_swscale(color_range, matrix):
    picture = scene(level=250)
    frame = av.VideoFrame.from_ndarray(picture, format='rgb24').reformat(
        format='yuv444p', dst_colorspace=matrix, dst_color_range=color_range
    )
    layout = find_layout('yuv444p', matrix, color_range, *SIZE[::-1])
    rgb = np.empty((*SIZE, 3), np.uint16)
    planes_to_rgb([plane[:, : SIZE[1]] for plane in planes_of(frame)], layout, rgb)
    # 8-bit YUV rounds to half a level, which the matrix makes up to one and a half
    assert np.abs(rgb / 257 - picture).max() < 2.5


def test_sizes_choose_the_matrix_where_a_file_does_not_say():
    hd, sd = (find_layout('yuv420p', 2, 1, *size) for size in ((1920, 1080), (720, 480)))
    np.testing.assert_array_equal(hd.to_rgb, find_layout('yuv420p', 1, 1, 8, 8).to_rgb)
    np.testing.assert_array_equal(sd.to_rgb, find_layout('yuv420p', 6, 1, 8, 8).to_rgb)


def test_unknown_matrix_is_refused_by_number():
    with pytest.raises(ValueError, match=r'matrix coefficients.*got 14'):
        find_layout('yuv420p', 14, 1, 8, 8)


@pytest.mark.parametrize(
    ('name', 'planar'),
    [('nv12', 'yuv420p'), ('p010le', 'yuv420p10le'), ('uyvy422', 'yuv422p'), ('bgra', 'gbrap'), ('rgb48le', 'gbrp16le'),
     ('pal8', 'gbrap'), ('yuvj420p', 'yuvj420p')],
)  # fmt: skip
def test_other_pixel_formats_have_a_planar_one(name, planar):
    assert find_layout(name, 2, 0, 64, 48).name == planar


def test_grey_that_says_no_range_is_full():
    np.testing.assert_array_equal(find_layout('gray', 2, 0, 8, 8).to_rgb, find_layout('gray', 2, 2, 8, 8).to_rgb)


def test_area_lowres_of_a_plane_is_that_of_photos():
    plane = np.random.default_rng(0).integers(0, 1023, (300, 500)).astype(np.uint16)
    expected = shrink(torch.from_numpy(plane.astype(np.float32))).numpy()
    np.testing.assert_allclose(
        shrink_area(plane[..., None])[..., 0], expected, atol=1e-2
    )  # float32 sums in another order


# ----------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize('matrix', [1, 5])
@pytest.mark.parametrize('color_range', [1, 2])
def test_strength_0_gives_the_frames_back(network, tmp_path, color_range, matrix):
    tags = {'color_range': color_range, 'colorspace': matrix, 'color_primaries': 1, 'color_trc': 1}
    clip = write_clip(tmp_path / 'a.mkv', [scene(i, 200) for i in range(3)], pixels='yuv444p', tags=tags)
    assert enhance_video(network, clip, str(tmp_path / 'b.mkv'), SAME) == []
    before, after = read_clip(clip), read_clip(str(tmp_path / 'b.mkv'))
    for frame, other in zip(before[0], after[0], strict=True):
        for plane, same in zip(planes_of(frame), planes_of(other), strict=True):
            assert np.abs(plane.astype(int) - same).max() <= 1  # chroma of 8 bit may lie outside of RGB
    assert {name: int(getattr(after[2], name)) for name in tags} == tags


def test_times_and_number_of_frames_stay_with_a_variable_rate(network, tmp_path):
    times = [0, 20, 40, 100, 110, 111, 400, 420]
    clip = write_clip(tmp_path / 'a.mp4', [scene(i) for i in range(8)], 'libx264', times=times)
    enhance_video(network, clip, str(tmp_path / 'b.mp4'))
    assert read_clip(clip)[1] == read_clip(str(tmp_path / 'b.mp4'))[1] == [Fraction(t, 600) for t in times]


def test_avi_whose_frames_are_stored_out_of_order_keeps_its_rate(network, tmp_path):
    clip = write_clip(tmp_path / 'a.avi', noisy(12, scene()), 'libx264', options={'bf': '2', 'b-adapt': '0'})
    enhance_video(network, clip, str(tmp_path / 'b.avi'))
    with av.open(str(tmp_path / 'b.avi')) as container:  # its packets, for FFmpeg makes up times of the frames
        assert [packet.dts for packet in container.demux() if packet.size] == list(range(0, 240, 20))


@pytest.mark.parametrize('extension', ['mp4', 'mov', 'mkv'])
def test_sound_is_copied_packet_by_packet(network, tmp_path, extension):
    clip = write_clip(tmp_path / f'a.{extension}', noisy(10, scene()), 'libx264', sound=True)
    enhance_video(network, clip, str(tmp_path / f'b.{extension}'))
    before, after = read_clip(clip)[3], read_clip(str(tmp_path / f'b.{extension}'))[3]
    assert len(before) > 10
    assert before == after


def test_10_bit_stays_10_bit(network, tmp_path):
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint16) * 4 % 1024 + 1, (96, 256))
    frame = av.VideoFrame(256, 96, 'yuv420p10le')
    for plane, values in zip(
        frame.planes, (300 + ramp // 4, np.full((48, 128), 512), np.full((48, 128), 512)), strict=True
    ):
        lines = np.frombuffer(plane, np.uint16).reshape(plane.height, -1)
        lines[:, : plane.width] = values
    clip = write_clip(tmp_path / 'a.mkv', [frame], pixels='yuv420p10le')
    enhance_video(network, clip, str(tmp_path / 'b.mkv'), SAME)
    after = read_clip(str(tmp_path / 'b.mkv'))
    assert after[2].pix_fmt == 'yuv420p10le'
    luma = np.frombuffer(after[0][0].planes[0], np.uint16).reshape(96, -1)[:, :256]
    np.testing.assert_array_equal(luma, 300 + ramp // 4)


@pytest.mark.parametrize('extension', ['mp4', 'mov', 'mkv'])
def test_rotation_stays(network, tmp_path, extension):
    turn = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    clip = write_clip(tmp_path / f'a.{extension}', noisy(3, scene()), 'libx264', matrix=turn)
    enhance_video(network, clip, str(tmp_path / f'b.{extension}'))
    before, after = read_clip(clip)[0][0].rotation, read_clip(str(tmp_path / f'b.{extension}'))[0][0].rotation
    assert before == after != 0


def test_network_sees_turned_frames_upright(network, tmp_path):
    picture = scene(3)
    upright = write_clip(tmp_path / 'a.mkv', [picture], pixels='yuv444p')
    turned = write_clip(tmp_path / 'b.mkv', [np.rot90(picture, -1).copy()], pixels='yuv444p',
                        matrix=(0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30))  # fmt: skip
    frames = []
    for clip in (upright, turned):
        enhance_video(network, clip, clip.replace('.mkv', '_done.mkv'))
        frames.append(read_clip(clip.replace('.mkv', '_done.mkv'))[0][0])
    assert frames[1].rotation == 90
    first, second = (frame.to_ndarray(format='rgb24').astype(float) for frame in frames)
    assert np.abs(first - np.rot90(second)).mean() < 0.1  # levels, of rounding in other places


def test_ctrl_c_leaves_nothing(network, tmp_path):
    clip = write_clip(tmp_path / 'a.mkv', noisy(20, scene()))
    (tmp_path / 'out').mkdir()

    def stop(frames, total):
        for i, frame in enumerate(frames):
            if i == 3:
                raise KeyboardInterrupt
            yield frame

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        enhance_video(network, clip, str(tmp_path / 'out' / 'a.mkv'), progress=stop)
    assert os.listdir(tmp_path / 'out') == []
    assert threading.active_count() == before


def test_full_disk_is_an_error_of_the_system_and_leaves_nothing(network, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / 'a.mkv', noisy(4, scene()))
    (tmp_path / 'out').mkdir()

    def full(self, frame):
        raise av.error.FFmpegError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Result, 'write', full)
    before = threading.active_count()
    with pytest.raises(OSError, match='No space left on device') as caught:
        enhance_video(network, clip, str(tmp_path / 'out' / 'a.mkv'))
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path / 'out') == []
    assert threading.active_count() == before


def test_permissions_and_on_request_times_of_a_file_stay(network, tmp_path):
    clip = write_clip(tmp_path / 'a.mkv', noisy(2, scene()))
    os.chmod(clip, 0o640)
    os.utime(clip, (1e9, 1e9))
    enhance_video(network, clip, str(tmp_path / 'b.mkv'), keep_times=True)
    status = os.stat(tmp_path / 'b.mkv')
    assert (status.st_mode & 0o777, status.st_mtime) == (0o640, 1e9)


@pytest.mark.parametrize(('transfer', 'name'), [(16, 'PQ'), (18, 'HLG')])
def test_hdr_is_refused_by_name(network, tmp_path, transfer, name):
    tags = {'color_range': 1, 'colorspace': 9, 'color_primaries': 9, 'color_trc': transfer}
    clip = write_clip(tmp_path / 'a.mp4', [scene()], 'libx264', 'yuv420p10le', tags=tags)
    with pytest.raises(ValueError, match=rf'a\.mp4.*HDR: {name}'):
        enhance_video(network, clip, str(tmp_path / 'b.mp4'))
    assert not (tmp_path / 'b.mp4').exists()


def test_codec_without_an_encoder_is_named(network, tmp_path):
    clip = write_clip(tmp_path / 'a.mkv', noisy(3, scene()), 'msmpeg4')
    notes = enhance_video(network, clip, str(tmp_path / 'b.mkv'))
    assert notes == ['video in msmpeg4v3 is written as h264']


@pytest.mark.parametrize(
    ('extension', 'codec', 'pixels'),
    [('avi', 'mpeg4', 'yuv420p'), ('avi', 'mjpeg', 'yuvj420p'), ('webm', 'libvpx-vp9', 'yuv420p'),
     ('mov', 'prores_ks', 'yuv422p10le'), ('avi', 'huffyuv', 'rgb24'), ('mkv', 'ffv1', 'bgr0'), ('mkv', 'ffv1', 'gray'),
     ('mp4', 'mpeg4', 'yuv420p'), ('mp4', 'libx264rgb', 'rgb24'), ('mov', 'png', 'rgb24'),
     ('mov', 'rawvideo', 'yuv420p'), ('avi', 'mjpeg', 'yuv420p'), ('mov', 'libx265', 'yuv420p')],
)  # fmt: skip
def test_codec_and_pixel_format_stay(network, tmp_path, extension, codec, pixels):
    tags = {'color_range': 2 if pixels in ('yuvj420p', 'gray', 'rgb24', 'bgr0') else 1, 'colorspace': 1}
    if codec == 'libx264rgb':
        tags['colorspace'] = 0
    if codec == 'rawvideo':
        tags['codec_tag'] = 'I420'
    clip = write_clip(tmp_path / f'a.{extension}', noisy(4, scene(level=200), 2), codec, pixels, tags=tags)
    assert enhance_video(network, clip, str(tmp_path / f'b.{extension}'), SAME) == []
    before, after = read_clip(clip), read_clip(str(tmp_path / f'b.{extension}'))
    assert (before[2].name, before[2].pix_fmt, before[1]) == (after[2].name, after[2].pix_fmt, after[1])
    for frame, other in zip(before[0], after[0], strict=True):
        first, second = (f.to_ndarray(format='rgb24').astype(float) for f in (frame, other))
        assert np.abs(first - second).mean() < 3


def colours(path):
    """Frames as RGB, (N, H, W, 3) float, by FFmpeg's own reading of the tags."""
    return np.stack([frame.to_ndarray(format='rgb24') for frame in read_clip(str(path))[0]]).astype(float)


def test_rgb_in_a_codec_that_is_not_written_keeps_colours(network, tmp_path):
    clip = write_clip(tmp_path / 'a.mov', [scene(level=200)] * 2, 'cinepak', 'rgb24')
    notes = enhance_video(network, clip, str(tmp_path / 'b.mov'), SAME)
    assert notes == ['video in cinepak is written as h264']
    after = read_clip(str(tmp_path / 'b.mov'))[2]
    assert (after.pix_fmt, after.colorspace, after.color_range) == ('yuv444p', 6, 1)
    # a crf of 20 blurs edges of Cinepak's blocks; another matrix would shift whole areas
    shift = (colours(clip) - colours(tmp_path / 'b.mov')).mean(axis=(0, 1, 2))
    assert np.abs(shift).max() < 1


def test_transparency_stays_or_is_said_to_be_lost(network, tmp_path):
    picture = np.dstack([np.full(SIZE, 99, np.uint8), scene()])
    frame = av.VideoFrame.from_ndarray(picture, format='argb')
    clip = write_clip(tmp_path / 'a.mov', [frame], 'qtrle', 'argb')
    assert enhance_video(network, clip, str(tmp_path / 'b.mov'), SAME) == []
    np.testing.assert_array_equal(read_clip(str(tmp_path / 'b.mov'))[0][0].to_ndarray(), picture)
    assert enhance_video(network, clip, str(tmp_path / 'b.mp4'), SAME) == [
        'video in qtrle is written as h264',
        'frames in argb are written in h264 as yuv444p, without their transparency',
    ]


@pytest.mark.parametrize(
    ('source', 'codec', 'result', 'written'),
    [('a.webm', 'libx264', 'b.webm', 'vp9'), ('a.avi', 'utvideo', 'b.mkv', 'ffv1')],
)
def test_codec_that_a_container_does_not_take_is_replaced(network, tmp_path, source, codec, result, written):
    form = 'matroska' if source == 'a.webm' else None  # FFmpeg writes no such WebM, but reads it
    clip = write_clip(tmp_path / source, noisy(2, scene()), codec, format=form)
    name = read_clip(clip)[2].name
    assert enhance_video(network, clip, str(tmp_path / result), SAME) == [f'video in {name} is written as {written}']
    assert read_clip(str(tmp_path / result))[2].codec.canonical_name == written
    assert np.abs(colours(clip) - colours(tmp_path / result)).mean() < 3


def test_sound_that_a_container_does_not_take_is_encoded(network, tmp_path):
    sound = write_clip(tmp_path / 'a.mp4', noisy(30, scene()), 'libx264', sound=True)
    with av.open(sound) as source, av.open(str(tmp_path / 'a.aac'), 'w') as adts:
        copy = adts.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = copy
                adts.mux(packet)
    write_clip(tmp_path / 'silent.avi', noisy(30, scene()), 'libx264', options={'bf': '0'})
    adts, silent = av.open(str(tmp_path / 'a.aac')), av.open(str(tmp_path / 'silent.avi'))
    with adts, silent, av.open(str(tmp_path / 'a.avi'), 'w') as container:
        streams = [silent.streams.video[0], adts.streams.audio[0]]
        copies = [container.add_stream_from_template(stream, opaque=True) for stream in streams]
        copies[1].codec_context.codec_tag = '\0\x16\0\0'  # AAC whose packets have headers
        for stream, copy in zip(streams, copies, strict=True):
            for packet in stream.container.demux(stream):
                if packet.size:
                    packet.stream = copy
                    container.mux(packet)
    notes = enhance_video(network, str(tmp_path / 'a.avi'), str(tmp_path / 'b.avi'), SAME)
    assert notes == ['sound in aac is encoded anew as aac']
    with av.open(str(tmp_path / 'b.avi')) as container:
        heard = np.concatenate([part.to_ndarray()[0] for part in container.decode(audio=0)])
    assert len(heard) == pytest.approx(16000, abs=3 * 1024)  # a frame of AAC at each end
    assert np.abs(np.fft.rfft(heard[2000:14000])).argmax() == pytest.approx(12000 / (9 * 2 * np.pi), abs=1)
    assert len(read_clip(str(tmp_path / 'b.avi'))[0]) == 30


def test_recording_date_and_lists_of_avi_stay(network, tmp_path):
    clip = write_clip(tmp_path / 'a.avi', noisy(3, scene()), 'mjpeg')
    data = bytearray((tmp_path / 'a.avi').read_bytes())
    start = data.rindex(b'JUNK', 0, data.index(b'movi'))
    chunks = b'IDIT' + struct.pack('<I', 26) + b'Mon Sep 10 20:52:00 2012\n\0'
    chunks += b'_PMX' + struct.pack('<I', 12) + b'<x:xmpmeta/>'
    (room,) = struct.unpack_from('<I', data, start + 4)
    rest = b'JUNK' + struct.pack('<I', room - len(chunks))
    data[start : start + len(chunks) + 8] = chunks + rest
    (tmp_path / 'a.avi').write_bytes(data)
    enhance_video(network, clip, str(tmp_path / 'b.avi'), SAME)
    assert chunks in (tmp_path / 'b.avi').read_bytes()
    with av.open(str(tmp_path / 'b.avi')) as container:
        assert container.metadata['creation_time'] == '2012-09-10 20:52:00'
        assert container.metadata['title'] == 'a title'
        assert len(list(container.decode(video=0))) == 3


def test_mp4_keeps_xmp_keys_and_what_makes_it_360_degree(network, tmp_path):
    def box(kind, *parts):
        return struct.pack('>I4s', 8 + sum(map(len, parts)), kind) + b''.join(parts)

    clip = write_clip(tmp_path / 'a.mp4', noisy(3, scene()), 'libx264', sound=True)
    data = (tmp_path / 'a.mp4').read_bytes()
    at = next(start for kind, start, _ in whole_boxes(data) if kind == b'moov')
    full = bytes(4)  # version and flags
    sphere = box(b'proj', box(b'prhd', full, bytes(12)), box(b'equi', full, bytes(16)))
    spatial = box(b'st3d', full, b'\1') + box(b'sv3d', box(b'svhd', full, b'me\0'), sphere)
    keys = box(b'keys', full, b'\0\0\0\1', box(b'mdta', b'com.android.version'))
    values = box(b'ilst', box(b'\0\0\0\1', box(b'data', b'\0\0\0\1', bytes(4), b'13')))
    meta = box(b'meta', box(b'hdlr', bytes(8), b'mdta', bytes(13)), keys, values)
    moov = bytearray(data[at:])
    parents = [moov.index(kind) - 4 for kind in (b'moov', b'trak', b'mdia', b'minf', b'stbl', b'stsd', b'avc1')]
    entry_end = parents[-1] + struct.unpack_from('>I', moov, parents[-1])[0]
    for start in parents:
        struct.pack_into('>I', moov, start, struct.unpack_from('>I', moov, start)[0] + len(spatial))
    moov[entry_end:entry_end] = spatial
    xmp = box(b'uuid', bytes.fromhex('be7acfcb97a942e89c71999491e3afac'), b'<x:xmpmeta/>')
    place = box(b'udta', box(b'\xa9xyz', b'\0\x16\x15\xc7+51.500-000.100+0.000/'))
    (tmp_path / 'a.mp4').write_bytes(data[:at] + box(b'moov', moov[8:], meta, place) + xmp)
    assert enhance_video(network, clip, str(tmp_path / 'b.mp4'), SAME) == []
    assert (tmp_path / 'b.mp4').read_bytes().endswith(xmp)
    with av.open(str(tmp_path / 'b.mp4')) as container:
        assert container.metadata['com.android.version'] == '13'
        assert container.metadata['location'] == '+51.500-000.100+0.000/'
        first = next(container.decode(video=0))
    assert {'SPHERICAL', 'STEREO3D'} <= {data.type.name for data in first.side_data}
    assert len(read_clip(str(tmp_path / 'b.mp4'))[3]) == len(read_clip(clip)[3])


@pytest.mark.parametrize('extension', ['mp4', 'mov'])
def test_data_that_the_muxer_would_garble_is_said_to_be_lost(network, tmp_path, extension):
    clip = write_clip(tmp_path / f'a.{extension}', noisy(3, scene()), 'libx264', sound=True)
    data = (tmp_path / f'a.{extension}').read_bytes().replace(b'soun', b'meta').replace(b'mp4a', b'mebx')
    (tmp_path / f'a.{extension}').write_bytes(data)  # as phones write the metadata of a shot
    notes = enhance_video(network, clip, str(tmp_path / f'b.{extension}'), SAME)
    assert notes == ['the data stream (unknown) cannot be kept']
    with av.open(str(tmp_path / f'b.{extension}')) as container:
        assert [stream.type for stream in container.streams] == ['video']


@pytest.mark.parametrize('extension', ['mp4', 'mkv'])
def test_cover_further_video_chapters_and_titles_are_copied(network, tmp_path, extension):
    sources = [write_clip(tmp_path / f'{i}.mp4', noisy(4, scene(i)), 'libx264', options={'bf': '0'}) for i in range(2)]
    picture = cv2.imencode('.jpg', scene(5))[1].tobytes()
    chapters = [{'id': 1, 'start': 0, 'end': 60, 'time_base': Fraction(1, 1000), 'metadata': {'title': 'one'}}]
    with av.open(str(tmp_path / f'a.{extension}'), 'w') as container:
        container.metadata['title'] = 'a title'
        container.set_chapters(chapters)
        opened = [av.open(source) for source in sources]
        streams = [container.add_stream_from_template(source.streams.video[0], opaque=True) for source in opened]
        if extension == 'mkv':
            container.add_attachment('cover.jpg', 'image/jpeg', picture)
        else:
            cover = container.add_stream('mjpeg', 1)
            cover.width, cover.height, cover.pix_fmt, cover.disposition = 128, 96, 'yuvj420p', 1024
        streams[0].disposition, streams[1].disposition = 1, 0
        for stream, source in zip(streams, opened, strict=True):
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        if extension == 'mp4':
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 600)
            container.mux(packet)
        for source in opened:
            source.close()
    notes = enhance_video(network, str(tmp_path / f'a.{extension}'), str(tmp_path / f'b.{extension}'))
    assert notes == ['only the main video stream of a file is enhanced, the others are copied']
    packets, titles = [], []
    for name in 'ab':
        with av.open(str(tmp_path / f'{name}.{extension}')) as container:
            main = container.streams.video[0]
            packets.append(
                [bytes(p) for p in container.demux() if p.size and p.stream.type == 'video' and p.stream is not main]
            )
            titles.append((container.metadata['title'], [c['metadata']['title'] for c in container.chapters()]))
    assert sorted(packets[0]) == sorted(packets[1])
    assert picture in packets[1]
    assert len(packets[1]) == 5
    assert titles[0] == titles[1] == ('a title', ['one'])


def test_damaged_file_is_named(network, tmp_path):
    clip = write_clip(tmp_path / 'a.mp4', noisy(4, scene()), 'libx264')
    with open(clip, 'r+b') as file:
        file.truncate(os.path.getsize(clip) // 2)
    with pytest.raises((ValueError, OSError), match=r'a\.mp4'):
        enhance_video(network, clip, str(tmp_path / 'b.mp4'))
    assert os.listdir(tmp_path) == ['a.mp4']


def test_file_without_video_is_named(network, tmp_path):
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        tone = container.add_stream('aac', 16000, layout='mono')
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format='s16', layout='mono')
        part.sample_rate = 16000
        container.mux(tone.encode(part))
        container.mux(tone.encode(None))
    with pytest.raises(ValueError, match=r'a\.mp4: expected a video stream'):
        enhance_video(network, str(tmp_path / 'a.mp4'), str(tmp_path / 'b.mp4'))


# ------------------------------------------------------------------------------------------------- inference.py


def run_inference(folder, **options):
    values = {**vars(inference.opt), 'images_dir': str(folder), 'result_dir': str(folder / 'out'), **options}
    return inference.main(SimpleNamespace(**values))


def test_inference_enhances_photos_and_videos_of_a_folder(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'a.png'), scene())
    write_clip(tmp_path / 'b.mkv', noisy(3, scene()))
    assert run_inference(tmp_path, format='jpg') == 0
    assert sorted(os.listdir(tmp_path / 'out')) == ['.deepupe_results', 'a.jpg', 'b.mkv']
    assert '2 enhanced' in capsys.readouterr().out
    assert read_clip(str(tmp_path / 'out' / 'b.mkv'))[0][0].to_ndarray(format='rgb24').mean() > 2 * scene().mean()


def test_inference_leaves_videos_that_are_there_unless_told(tmp_path, capsys):
    write_clip(tmp_path / 'b.mkv', noisy(2, scene()))
    assert run_inference(tmp_path, strength=0.0) == 0
    first = (tmp_path / 'out' / 'b.mkv').read_bytes()
    assert run_inference(tmp_path, strength=0.0, jpeg_444=True) == 0
    assert (tmp_path / 'out' / 'b.mkv').read_bytes() == first
    assert run_inference(tmp_path) == 0  # other options
    assert (tmp_path / 'out' / 'b.mkv').read_bytes() != first


def test_without_pyav_videos_are_named_and_photos_go_on(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name == 'av' or name.startswith('video.')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'av', None)
    cv2.imwrite(str(tmp_path / 'a.png'), scene())
    (tmp_path / 'b.mp4').write_bytes(b'a video')
    assert run_inference(tmp_path) == 1
    said = capsys.readouterr()
    assert "b.mp4: video needs PyAV: pip install 'av>=18'" in said.err
    assert '1 enhanced' in said.out
    assert '1 failed' in said.out
    assert os.listdir(tmp_path / 'out') == ['.deepupe_results', 'a.png']


# ---------------------------------------------------------------------------------------------------- stages


def test_stages_keep_the_order_and_pass_errors_on():
    def numbers():
        yield from range(20)
        raise ValueError('after 20')

    seen = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match='after 20'):
        seen.extend(map_in_order(pool, lambda value: value * 2, prefetch(numbers(), 3), 4))
    assert seen == [2 * value for value in range(17)]


def test_stage_whose_consumer_stops_ends_its_thread():
    closed = []

    def endless():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    items = prefetch(endless(), 2)
    next(items)
    items.close()
    assert closed == [True]
