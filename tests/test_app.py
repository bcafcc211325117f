import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import inference

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RACCOON = os.path.join(FOLDER, 'sample_imgs', 'raccoon.jpg')
TAB = SimpleNamespace(session_hash='tab')


@pytest.fixture
def app():
    pytest.importorskip('gradio')
    import app

    return app


@pytest.fixture
def messages(app, monkeypatch):
    """What the page tells its user."""
    messages = []
    for name in ('Warning', 'Info'):
        monkeypatch.setattr(app.gr, name, lambda message, duration=10: messages.append(message))
    return messages


@pytest.fixture
def desk(app, tmp_path, messages):
    opt = SimpleNamespace(**{**vars(app.opt), 'max_megapixels': 0.9, 'device': 'cpu'})
    (tmp_path / 'page').mkdir()
    return app.Desk(opt, str(tmp_path / 'page'))


def upload(tmp_path, name, data=None):
    """A file as gradio leaves it: in a folder of its own."""
    folder = tmp_path / f'upload{len(os.listdir(tmp_path))}'
    folder.mkdir()
    if data is None:
        shutil.copy(RACCOON, folder / name)
    elif isinstance(data, bytes):
        (folder / name).write_bytes(data)
    else:
        cv2.imwrite(str(folder / name), data)
    return str(folder / name)


def run_inference(photo, result_dir, **options):
    opt = SimpleNamespace(**{**vars(inference.opt), 'images_dir': photo, 'result_dir': str(result_dir), **options})
    assert inference.main(opt) == 0
    return (result_dir / os.path.basename(photo)).read_bytes()


def photos_below(folder):
    return [name for _, _, names in os.walk(folder) for name in names if name.endswith('.jpg')]


class Progress:
    """Stands for the page's bar."""

    @staticmethod
    def tqdm(photos, title):
        """The photos."""
        return photos


def test_results_are_the_files_that_inference_writes(desk, tmp_path, messages):
    deep = np.random.default_rng(0).integers(0, 9000, (40, 50, 4), dtype=np.uint16)
    paths = [upload(tmp_path, 'deep.png', deep), upload(tmp_path, 'raccoon.jpg')]
    expected = [run_inference(path, tmp_path / 'ours', strength=0.5) for path in paths]
    desk.add(paths, 'general', TAB)
    results = desk.enhance('general', 0.5, -1, TAB, Progress()).value
    got = [pathlib.Path(entry['path']).read_bytes() for entry in results]
    assert got == expected
    assert messages == []


def test_a_file_that_cannot_be_read_is_named_and_the_others_stay(desk, tmp_path, messages):
    large = np.zeros((1000, 1000, 3), np.uint8)
    paths = [
        upload(tmp_path, 'broken.jpg', b'\xff\xd8'),
        upload(tmp_path, 'large.png', large),
        upload(tmp_path, 'a.jpg'),
    ]
    _, names = desk.add(paths, 'general', TAB)
    assert (names.choices, names.value) == ([('a.jpg', 'a.jpg')], 'a.jpg')
    assert [message.split(':')[0] for message in messages] == ['broken.jpg', 'large.png']
    assert 'expected up to 0.9 megapixels' in messages[1]
    assert str(tmp_path) not in ' '.join(messages)


def test_photos_of_one_name_both_stay(desk, tmp_path):
    desk.add([upload(tmp_path, 'a.jpg'), upload(tmp_path, 'a.jpg')], 'general', TAB)
    assert list(desk.photos['tab']) == ['a.jpg', 'a.jpg (2)']
    assert len(desk.enhance('general', 1.0, 0.0, TAB, Progress()).value) == 2


def test_a_grid_is_predicted_once_for_each_look(desk, tmp_path, app, monkeypatch):
    calls = []
    predict = app.predict_grid
    monkeypatch.setattr(app, 'predict_grid', lambda *args: calls.append(args) or predict(*args))
    desk.add([upload(tmp_path, 'a.jpg')], 'general', TAB)
    pictures = [cv2.imread(desk.show('a.jpg', look, strength, 0.0, TAB)[0][1])
                for look, strength in (('general', 1.0), ('general', 0.5), ('lol', 0.5), ('general', 0.2))]  # fmt: skip
    assert len(calls) == 2
    means = [picture.mean() for picture in pictures]
    assert means[0] > means[1] > means[3]
    assert (pictures[1] != pictures[2]).any()


def test_a_closed_tab_leaves_no_file(desk, tmp_path):
    desk.add([upload(tmp_path, 'a.jpg')], 'general', TAB)
    desk.show('a.jpg', 'general', 1.0, 0.0, TAB)
    desk.enhance('general', 1.0, 0.0, TAB, Progress())
    assert os.listdir(desk.folder) == ['tab-tab']
    desk.forget(TAB)
    assert os.listdir(desk.folder) == []


def test_without_gradio_the_install_line_is_named(app, monkeypatch):
    monkeypatch.setattr(app, 'gr', None)
    with pytest.raises(ValueError, match=r"pip install 'gradio>=6'"):
        app.main(app.opt)


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium that finds no host but this machine and saves to <tmp_path>/downloads."""
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    driver = shutil.which('chromedriver')
    if not (chromium and driver):
        pytest.skip('no chromium and chromedriver')
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage', 'window-size=1400,1050',
                 'host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1'):  # fmt: skip
        options.add_argument(f'--{flag}')
    options.add_experimental_option('prefs', {'download.default_directory': str(tmp_path / 'downloads')})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def test_a_photo_goes_through_the_page_as_through_inference(app, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector, count=1):
        """Elements of the page, as soon as there are so many."""
        wait = WebDriverWait(browser, 120)
        return wait.until(lambda page: (found := page.find_elements('css selector', selector))[count - 1 :] and found)

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    (tmp_path / 'tmp').mkdir()
    server = subprocess.Popen(
        [sys.executable, 'app.py', '--port', str(port)], cwd=FOLDER, stdout=subprocess.PIPE, text=True,
        env={**os.environ, 'TMPDIR': str(tmp_path / 'tmp')},
    )  # fmt: skip
    try:
        assert f'http://127.0.0.1:{port}' in server.stdout.readline()
        browser.get(f'http://127.0.0.1:{port}')
        find('input[type=file]')[0].send_keys(f'{RACCOON}\n{upload(tmp_path, "broken.jpg", b"no photo")}')
        assert 'broken.jpg: expected' in find('.toast-body')[0].get_attribute('textContent')  # while it fades in
        before, after, _ = find('img', 3)  # and the illumination
        first = after.get_attribute('src')
        assert before.get_attribute('src') != first
        slider = find('input[type=range]')[0]
        slider.send_keys(Keys.ARROW_LEFT * 30)
        WebDriverWait(browser, 120).until(lambda page: find('img', 3)[1].get_attribute('src') != first)
        assert float(slider.get_attribute('value')) == 0.7
        find('button.primary')[0].click()
        find('a[download="raccoon.jpg"]')[0].click()
        saved = tmp_path / 'downloads' / 'raccoon.jpg'
        WebDriverWait(browser, 60).until(lambda page: saved.exists())
        expected = run_inference(RACCOON, tmp_path / 'ours', strength=0.7)
        assert saved.read_bytes() == expected
        browser.get('about:blank')
        WebDriverWait(browser, 60).until(lambda page: not photos_below(tmp_path / 'tmp'))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert [name for _, _, names in os.walk(tmp_path / 'tmp') for name in names] == []
