"""JPEG on the GPU: what nvjpeg.py asks of torchvision, with torchvision's own CPU codec where it imports and with a
stand-in, and what happens where it is missing, wrong or refuses. No GPU takes part: the real nvJPEG is not tested here.
"""

import sys
import threading
import time
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import inference
from model import build_network
from photos import jpeg, nvjpeg
from photos.folder import Job
from photos.picture import read_photo, read_picture, write_picture

CPU = torch.device('cpu')
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def real_torchvision():
    try:
        import torchvision.io as codec
    except Exception as error:  # it does not import against every build of torch
        pytest.skip(f'torchvision does not import here: {error}')
    return codec


def stand_in(decode=lambda pixels: pixels, encode=lambda data: data):
    """torchvision.io by OpenCV; `decode` and `encode` change what it returns."""

    def decode_jpeg(data, mode, device):
        assert (data.dtype, data.ndim, mode, device) == (torch.uint8, 1, 'RGB', CPU)
        bgr = cv2.imdecode(data.numpy(), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        return decode(torch.from_numpy(bgr[..., ::-1].copy()).permute(2, 0, 1))

    def encode_jpeg(rgb, quality):
        assert (rgb.dtype, rgb.shape[0], rgb.is_contiguous()) == (torch.uint8, 3, True)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, jpeg.SAMPLING[1, 1]]
        data = cv2.imencode('.jpg', rgb.permute(1, 2, 0).numpy()[..., ::-1], options)[1]
        return encode(torch.from_numpy(data))

    return types.SimpleNamespace(
        decode_jpeg=decode_jpeg, encode_jpeg=encode_jpeg, ImageReadMode=types.SimpleNamespace(RGB='RGB')
    )


@pytest.fixture
def install(monkeypatch):
    """install(codec) makes it torchvision.io."""
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: None)

    def put(codec):
        nvjpeg.load_codec.cache_clear()
        monkeypatch.setitem(sys.modules, 'torchvision', codec and types.SimpleNamespace(io=codec))
        monkeypatch.setitem(sys.modules, 'torchvision.io', codec)

    yield put
    nvjpeg.load_codec.cache_clear()


def scene(height=90, width=121):
    small = np.random.default_rng(1).integers(20, 120, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def save_jpeg(path, **options):
    block = Image.Exif()
    block[274], block[271] = 6, 'Maker'
    Image.fromarray(scene()).save(path, exif=block, icc_profile=ICC, xmp=b'<x:xmpmeta/>', quality=90, **options)


@pytest.mark.parametrize('make', [stand_in, real_torchvision])
def test_photo_goes_through_the_codec_with_all_that_its_file_holds(install, tmp_path, make):
    install(make())
    path = str(tmp_path / 'a.jpg')
    save_jpeg(path)
    ours, theirs = read_picture(path, gpu=CPU), read_picture(path)
    assert ours.photo.shape == (121, 90, 3)  # upright
    assert cv2.absdiff(ours.photo, theirs.photo).mean() < 1
    write_picture(str(tmp_path / 'b.jpg'), ours, ours.photo, gpu=CPU)
    with Image.open(tmp_path / 'b.jpg') as image:
        assert (image.getexif()[274], image.getexif()[271], image.info['icc_profile']) == (1, 'Maker', ICC)
        assert image.info['xmp'] == b'<x:xmpmeta/>'
        assert cv2.absdiff(np.asarray(image), theirs.photo).mean() < 2


def test_codec_is_asked_for_plain_three_channel_jpeg_only(install, tmp_path):
    asked = []
    install(stand_in(decode=lambda pixels: (asked.append('decode'), pixels)[1],
                     encode=lambda data: (asked.append('encode'), data)[1]))  # fmt: skip
    nvjpeg.load_codec(CPU)
    asked.clear()
    grey, cmyk = Image.fromarray(scene()).convert('L'), Image.fromarray(scene()).convert('CMYK')
    for name, image in {'grey.jpg': grey, 'cmyk.jpg': cmyk, 'a.png': Image.fromarray(scene())}.items():
        image.save(tmp_path / name)
        picture = read_picture(str(tmp_path / name), gpu=CPU)
        write_picture(str(tmp_path / f'{name}.png'), picture, picture.photo, gpu=CPU)
    Image.fromarray(scene()).save(tmp_path / 'rgb.jpg', keep_rgb=True)
    read_picture(str(tmp_path / 'rgb.jpg'), gpu=CPU)
    assert asked == []
    save_jpeg(tmp_path / 'p.jpg', progressive=True)
    picture = read_picture(str(tmp_path / 'p.jpg'), gpu=CPU)
    write_picture(str(tmp_path / 'q.jpg'), picture, picture.photo, gpu=CPU)
    assert asked == ['decode']  # what was progressive stays so
    assert Image.open(tmp_path / 'q.jpg').info['progressive']


def broken(*_):
    raise RuntimeError('nvJPEG does not support it')


@pytest.mark.parametrize(
    ('codec', 'reason'),
    [
        (None, 'torchvision'),
        (stand_in(decode=lambda pixels: pixels.flip(2)), 'its decoder differs'),
        (stand_in(decode=broken), 'does not support'),
        (stand_in(encode=lambda data: data[: len(data) // 8]), 'its encoder differs'),
    ],
)
def test_codec_that_fails_its_trial_is_not_used(install, tmp_path, capsys, codec, reason):
    install(codec)
    path = str(tmp_path / 'a.jpg')
    save_jpeg(path)
    picture = read_picture(path, gpu=CPU)
    write_picture(str(tmp_path / 'b.jpg'), picture, picture.photo, gpu=CPU)
    assert np.array_equal(picture.photo, read_photo(path))
    assert cv2.absdiff(read_photo(str(tmp_path / 'b.jpg')), picture.photo).mean() < 2
    notes = capsys.readouterr().err
    assert notes.count('nvJPEG is not usable') == 1
    assert reason in notes


def test_what_the_codec_refuses_opencv_takes(install, tmp_path):
    codec = stand_in()
    install(codec)
    data, path = cv2.imencode('.jpg', scene())[1].tobytes(), str(tmp_path / 'a.jpg')
    Path(path).write_bytes(data)
    assert nvjpeg.decode(data, CPU) is not None
    codec.decode_jpeg = codec.encode_jpeg = broken
    header = jpeg.read_header(data)
    assert np.array_equal(jpeg.decode(data, header, CPU), jpeg.decode(data, header))
    assert np.array_equal(jpeg.encode(scene(), header, {}, 95, gpu=CPU), jpeg.encode(scene(), header, {}, 95))


def test_one_thread_at_a_time_and_an_idle_device_on_both_sides(install, tmp_path, monkeypatch):
    """Decoding, enhancing and encoding of several threads never overlap, and the device is drained between them."""
    busy, events = threading.Lock(), []

    def alone(value):
        assert busy.acquire(blocking=False)
        time.sleep(0.005)
        events.append('work')
        busy.release()
        return value

    install(stand_in(decode=alone, encode=alone))
    nvjpeg.load_codec(CPU)
    events.clear()
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda device: events.append('idle'))
    enhance = inference.enhance_photo
    monkeypatch.setattr(inference, 'enhance_photo', lambda *a, **k: alone(enhance(*a, **k)))
    network = build_network('hdrnet').eval()
    names = [str(tmp_path / f'{i}.jpg') for i in range(6)]
    outcomes = []

    def work(name):
        save_jpeg(name)
        outcomes.append(inference.enhance_file(network, Job(name, f'{name}.out.jpg', ''), inference.opt, False, CPU))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reason for _, reason, _ in outcomes] == [''] * 6
    assert events.count('work') == 18
    at = [i for i, event in enumerate(events) if event == 'work']
    assert all(events[i - 1] == events[i + 1] == 'idle' for i in at)


def test_option_needs_a_cuda_device(tmp_path):
    options = {**vars(inference.opt), 'nvjpeg': True, 'device': 'cpu', 'result_dir': str(tmp_path / 'out')}
    save_jpeg(tmp_path / 'a.jpg')
    options['images_dir'] = str(tmp_path)
    with pytest.raises(ValueError, match='nvjpeg: expected a CUDA device, got cpu'):
        inference.main(types.SimpleNamespace(**options))
