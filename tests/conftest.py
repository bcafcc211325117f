import os
import sys

# several processes test at once: torch's threads must not spin while they wait, told before its import
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

import cv2
import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from system.process import use_wide_vectors

use_wide_vectors()  # as the scripts do, so that what runs here equals what they run


@pytest.fixture
def shared():
    """The folder of real photos beside the repository; tests that need it skip where it is not."""
    folder = os.path.join(os.path.dirname(__file__), '..', '..', 'shared')
    if not os.path.isdir(folder):
        pytest.skip('no ../shared with real photos')
    return folder


@pytest.fixture
def make_pairs(tmp_path):
    """make_pairs(n) writes n tiny pairs to <tmp_path>/data/input and target and returns the folder."""

    def make(count=4, size=(40, 48), names=('input', 'target'), extensions=('.png', '.png')):
        rng = np.random.default_rng(0)
        for i in range(count):
            target = cv2.resize(rng.integers(60, 255, (5, 6, 3), dtype=np.uint8), size[::-1])
            for name, extension, photo in zip(
                names, extensions, ((target * 0.3).astype(np.uint8), target), strict=True
            ):
                folder = tmp_path / 'data' / name
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'p{i}{extension}'), photo)
        return str(tmp_path / 'data')

    return make
