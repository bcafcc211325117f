import contextlib
import os
import pathlib
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import inference

FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CAVE = os.path.join(FOLDER, 'sample_imgs', 'cave.jpg')
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
        shutil.copy(CAVE, folder / name)
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
    """Names of what is left of users' photos below a folder; gradio keeps copies of the samples and empty files."""
    names = set()
    for at, _, found in os.walk(folder):
        for name in found:
            with contextlib.suppress(FileNotFoundError):  # the page may be removing it just now
                names |= {name} if os.path.getsize(os.path.join(at, name)) else set()
    return sorted(names - set(os.listdir(os.path.dirname(CAVE))))


class Progress:
    """Stands for the page's bar; calls a function at each step."""

    def __init__(self, step=lambda: None):
        self.step = step

    def __call__(self, *args, **more):
        self.step()

    def tqdm(self, photos, title):
        """The photos."""
        return photos


def add(desk, *paths, settings=('general', 1.0, 0)):
    """Drop photos; gives what every part of the page shows."""
    return desk.add(list(paths), *settings, TAB, Progress())


def enhance(desk, step=lambda: None):
    """Names of the results that the page lists in the end, and the path of the .zip that it offers."""
    _, _, results, archive = list(desk.enhance(TAB, Progress(step)))[-1]
    return [os.path.basename(entry['path']) for entry in results.value or ()], archive.value and archive.value['path']


def result_of(desk, name):
    return pathlib.Path(desk.tabs['tab'].photos[name].job.result)


def test_results_are_the_files_that_inference_writes(desk, tmp_path, messages):
    deep = np.random.default_rng(0).integers(0, 9000, (40, 50, 4), dtype=np.uint16)
    paths = [upload(tmp_path, 'deep.png', deep), upload(tmp_path, 'cave.jpg')]
    expected = [run_inference(path, tmp_path / 'ours', strength=0.5) for path in paths]
    add(desk, *paths, settings=('general', 0.5, -1))
    assert enhance(desk)[0] == ['deep.png', 'cave.jpg']
    assert [result_of(desk, name).read_bytes() for name in ('deep.png', 'cave.jpg')] == expected
    assert messages == []


@pytest.mark.parametrize('name', ['colour.png', 'grey.png'])
def test_previews_are_cut_and_shrunk_from_the_result(desk, tmp_path, app, monkeypatch, name):
    """To the last level: in a small copy its noise, hardly any, would not be taken out."""
    monkeypatch.setattr(app, 'PREVIEW', 256)
    noise = np.random.default_rng(0).normal(0, 5, (600, 900) if name == 'grey.png' else (600, 900, 3))
    dark = np.linspace(6, 40, 900) if name == 'grey.png' else np.linspace(6, 40, 900)[:, None]
    add(desk, upload(tmp_path, name, (dark + noise).clip(0, 255).astype(np.uint8)), settings=('general', 1.0, -1))
    enhance(desk)
    result = cv2.imread(str(result_of(desk, name)))[..., ::-1]
    for place, (top, left) in (((), (60, 226)), ((0, 0), (0, 0)), ((255, 170), (120, 452)), ((128, 80), (41, 226))):
        desk.tabs['tab'].photos[name].place = place
        (_, after), _, (_, close) = desk.show(desk.tabs['tab'])
        for path, part in ((after, app.shrink(result)), (close, result[top : top + 480, left : left + 448])):
            assert (cv2.imread(path) == cv2.imread(app.save_preview(str(tmp_path), part))).all()


def test_a_file_that_cannot_be_read_is_named_and_the_others_stay(desk, tmp_path, messages):
    large = np.zeros((1000, 1000, 3), np.uint8)
    add(
        desk,
        upload(tmp_path, 'broken.jpg', b'\xff\xd8'),
        upload(tmp_path, 'large.png', large),
        upload(tmp_path, 'notes.txt', b''),
        upload(tmp_path, 'a.jpg'),
    )
    assert list(desk.tabs['tab'].photos) == ['a.jpg']
    assert [message.split(':')[0] for message in messages] == ['broken.jpg', 'large.png', 'notes.txt']
    assert 'expected up to 0.9 megapixels' in messages[1]
    assert str(tmp_path) not in ' '.join(messages)


def test_a_zip_holds_all_results_photos_of_one_name_too(desk, tmp_path):
    add(desk, upload(tmp_path, 'a.jpg'), upload(tmp_path, 'a.jpg'))
    names, archive = enhance(desk)
    assert names == ['a.jpg', 'a (2).jpg']
    with zipfile.ZipFile(archive) as file:
        assert {name: file.read(name) for name in names} == {name: result_of(desk, name).read_bytes() for name in names}
        assert file.namelist() == names


def test_the_zip_stays_when_another_photo_is_picked(desk, tmp_path):
    add(desk, upload(tmp_path, 'a.jpg'), upload(tmp_path, 'b.jpg'))
    _, archive = enhance(desk)
    assert desk.pick(SimpleNamespace(index=1), TAB)[-1].value['path'] == archive


def test_settings_change_for_all_photos_or_for_one(desk, tmp_path):
    add(desk, *(upload(tmp_path, f'{name}.jpg') for name in 'abc'))
    desk.change('general', 0.5, 0, 'this one', TAB)
    desk.pick(SimpleNamespace(index=1), TAB)
    desk.looks['mine'] = desk.looks['general']
    desk.change('mine', 1.0, 0, 'all', TAB)
    assert [photo.settings for photo in desk.tabs['tab'].photos.values()] == [
        ('mine', 0.5, 0), ('mine', 1.0, 0), ('mine', 1.0, 0)]  # fmt: skip


def test_less_strength_gives_a_darker_preview(desk, tmp_path):
    add(desk, upload(tmp_path, 'a.jpg'))
    means = [cv2.imread(desk.change('general', strength, 0, 'all', TAB)[0][1]).mean() for strength in (1.0, 0.5, 0.0)]
    assert means[0] > means[1] > means[2]


def test_only_results_of_other_settings_are_made_again(desk, tmp_path):
    add(desk, upload(tmp_path, 'a.jpg'), upload(tmp_path, 'b.jpg'))
    enhance(desk)
    first = [result_of(desk, name).stat().st_ino for name in ('a.jpg', 'b.jpg')]
    *_, results, archive = desk.change('general', 0.5, 0, 'this one', TAB)
    assert [os.path.basename(entry['path']) for entry in results.value] == ['b.jpg']
    assert archive.value is None
    assert enhance(desk)[0] == ['a.jpg', 'b.jpg']
    again = [result_of(desk, name).stat().st_ino for name in ('a.jpg', 'b.jpg')]
    assert again[0] != first[0]
    assert again[1] == first[1]


def test_work_that_is_stopped_goes_on_when_asked_again(desk, tmp_path, messages):
    add(desk, *(upload(tmp_path, f'{name}.jpg') for name in 'abc'))
    assert enhance(desk, lambda: desk.stop(TAB)) == (['a.jpg'], None)
    assert enhance(desk)[0] == ['a.jpg', 'b.jpg', 'c.jpg']
    assert messages == []


def test_a_photo_that_is_removed_makes_way_for_the_next(desk, tmp_path):
    add(desk, *(upload(tmp_path, f'{name}.jpg') for name in 'abc'))
    desk.pick(SimpleNamespace(index=1), TAB)
    shown = []
    for _ in range(3):
        desk.remove(TAB)
        shown.append(desk.tabs['tab'].shown)
    assert shown == ['c.jpg', 'a.jpg', '']
    assert all(name.startswith('preview-') for name in photos_below(desk.folder))


def test_a_closed_tab_leaves_no_file(desk, tmp_path):
    add(desk, upload(tmp_path, 'a.jpg'))
    enhance(desk)
    assert len(os.listdir(desk.folder)) == 1
    desk.forget(TAB)
    assert os.listdir(desk.folder) == []


def test_a_tab_that_closes_during_work_leaves_no_file(desk, tmp_path, messages):
    add(desk, upload(tmp_path, 'a.jpg'), upload(tmp_path, 'b.jpg'))
    assert len(list(desk.enhance(TAB, Progress(lambda: desk.forget(TAB))))) == 1
    assert os.listdir(desk.folder) == []
    assert messages == []


@pytest.mark.parametrize('stops', [False, True])
def test_a_video_goes_through_the_page_as_through_inference(desk, tmp_path, messages, stops):
    av = pytest.importorskip('av')
    clip = upload(tmp_path, 'clip.avi', b'')
    with av.open(clip, 'w') as container:
        stream = container.add_stream('ffv1', 30, options={'slices': '4'})
        stream.height, stream.width, stream.pix_fmt = 96, 128, 'yuv420p'
        for level in range(20, 32):
            frame = av.VideoFrame.from_ndarray(np.full((96, 128, 3), level, np.uint8), format='rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    expected = run_inference(clip, tmp_path / 'ours')
    (before, _), *_ = add(desk, clip, settings=('general', 1.0, -1))[7:]
    assert 18 < cv2.imread(before).mean() < 33  # one of its frames; limited range rounds
    steps = []
    results, _ = enhance(desk, lambda: steps.append(1) or (stops and len(steps) == 4 and desk.stop(TAB)))
    assert results == ([] if stops else ['clip.avi'])
    assert len(steps) == (4 if stops else 13)
    assert stops or result_of(desk, 'clip.avi').read_bytes() == expected
    assert messages == []


def test_a_checkpoint_of_a_benchmark_is_no_look(app, tmp_path):
    for name in ('mine', 'paper_lol', 'general', 'predecessor_lol', 'unfinished'):
        (tmp_path / name).mkdir()
        if name != 'unfinished':
            (tmp_path / name / 'best.pth').touch()
    assert list(app.find_looks(str(tmp_path))) == ['general', 'mine']


def test_without_gradio_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    app = runpy.run_path(os.path.join(FOLDER, 'app.py'))
    with pytest.raises(ValueError, match=r"pip install 'gradio>=6'"):
        app['main'](app['opt'])


SERVER = """
import os, sys, time
import app, inference

def enhance_file(*args, work=inference.enhance_file):
    while os.path.exists('held'):
        time.sleep(0.05)
    return work(*args)

inference.enhance_file = enhance_file
app.opt.port, app.opt.open_browser = int(sys.argv[1]), False
app.main(app.opt)
"""


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    """The page's address, and its working folder: while a file `held` lies there, the photo at work is not done."""
    pytest.importorskip('gradio')
    folder = tmp_path_factory.mktemp('server')
    (folder / 'tmp').mkdir()
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, '-c', SERVER, str(port)], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, 'TMPDIR': str(folder / 'tmp'), 'PYTHONPATH': FOLDER},
    )  # fmt: skip
    try:
        assert f'http://127.0.0.1:{port}' in server.stdout.readline()
        yield SimpleNamespace(url=f'http://127.0.0.1:{port}', folder=folder)
    finally:
        server.send_signal(signal.SIGTERM)
        printed, _ = server.communicate(timeout=60)
    assert server.returncode == 0
    assert printed == ''  # no traceback, of a tab that closed during work neither
    assert [name for _, _, names in os.walk(folder) for name in names] == []


class Browser:
    """Headless Chromium that finds no host but this machine and saves to a folder."""

    def __init__(self, downloads):
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
        options.add_experimental_option('prefs', {'download.default_directory': str(downloads)})
        self.downloads = downloads
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))

    def wait(self, condition):
        """What a condition gives, as soon as it is true."""
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 120, 0.1, [StaleElementReferenceException]).until(lambda _: condition())

    def find(self, selector, count=1):
        """Elements that are seen, as soon as there are so many."""

        def look():
            found = [e for e in self.driver.find_elements('css selector', selector) if e.is_displayed()]
            return found[count - 1 :] and found

        return self.wait(look)

    def click(self, words):
        self.wait(lambda: [e for e in self.find('button') if e.text == words and e.is_enabled()])[0].click()

    def drop(self, *paths):
        fields = self.wait(lambda: self.driver.find_elements('css selector', 'input[type=file]'))  # which are not seen
        fields[0].send_keys('\n'.join(paths))

    def views(self):
        """Addresses of the previews: before, after, the one to click on, both at 100 %."""
        return [e.get_attribute('src') for e in self.find('.image-container img, .image-frame img', 5)]

    def save(self, name):
        """Download a result by its link, all by their button."""
        path = self.downloads / name
        path.unlink(missing_ok=True)
        if name == 'enhanced.zip':
            self.click('Download all')
        else:
            self.find(f'a[download="{name}"]')[0].click()
        self.wait(path.exists)
        return path


@pytest.fixture(scope='module')
def started_browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('downloads'))
    yield browser
    browser.driver.quit()


@pytest.fixture
def browser(started_browser, server):
    """A browser with a new page; after the test its tab is closed."""
    started_browser.driver.get(server.url)
    yield started_browser
    started_browser.driver.get('about:blank')
    started_browser.wait(lambda: not photos_below(server.folder))


def test_a_photo_goes_through_the_browser_as_through_inference(app, browser, tmp_path):
    from selenium.webdriver.common.keys import Keys

    noise = np.random.default_rng(0).normal(20, 5, (900, 1200, 3)).clip(0, 255).astype(np.uint8)
    photo = upload(tmp_path, 'noise.png', noise)
    browser.drop(photo, upload(tmp_path, 'broken.jpg', b'no photo'))
    assert 'broken.jpg: expected' in browser.find('.toast-body')[0].get_attribute('textContent')  # while it fades in
    first = browser.views()[1]
    slider = browser.find('input[type=range]')[0]
    slider.send_keys(Keys.ARROW_LEFT * 30)
    browser.wait(lambda: browser.views()[1] != first)
    assert float(slider.get_attribute('value')) == 0.7
    browser.click('Enhance at full size')
    saved = browser.save('noise.png')
    assert saved.read_bytes() == run_inference(photo, tmp_path / 'ours', strength=0.7)
    result = cv2.imread(str(saved))[..., ::-1]
    for address, part in zip(browser.views()[1::3], (app.shrink(result), result[210:690, 376:824]), strict=True):
        with urllib.request.urlopen(address) as preview:
            assert preview.read() == pathlib.Path(app.save_preview(str(tmp_path), part)).read_bytes()


def test_the_page_shows_progress_at_once_and_stops(browser, server, tmp_path):
    browser.drop(*(upload(tmp_path, f'{name}.jpg') for name in 'abc'))
    browser.find('.thumbnail-item', 3)
    (server.folder / 'held').touch()
    browser.click('Enhance at full size')
    assert 'a.jpg' in browser.find('.progress-level-inner')[0].text
    assert browser.wait(lambda: browser.find('.progress-text')[0].text).startswith('0/3 files')
    browser.click('Stop')
    (server.folder / 'held').unlink()
    assert [e.get_attribute('download') for e in browser.find('a[download]')] == ['a.jpg']
    browser.click('Enhance at full size')
    assert len(browser.find('a[download]', 3)) >= 3


def test_all_results_come_as_a_zip_without_what_was_removed(browser, tmp_path):
    browser.drop(*(upload(tmp_path, f'{name}.jpg') for name in 'abc'))
    browser.find('.thumbnail-item', 3)[1].click()
    browser.wait(lambda: 'selected' in browser.find('.thumbnail-item')[1].get_attribute('class'))
    browser.click('Remove this one')
    browser.wait(lambda: len(browser.find('.thumbnail-item')) == 2)
    browser.click('Enhance at full size')
    with zipfile.ZipFile(browser.save('enhanced.zip')) as archive:
        assert archive.namelist() == ['a.jpg', 'c.jpg']


def test_a_sample_photo_is_there_to_click(browser):
    browser.find('button.gallery-item')[0].click()
    assert len(browser.views()) == 5
    assert len(browser.find('.thumbnail-item')) == 1


def test_a_click_moves_the_view_at_full_size(browser, tmp_path):
    browser.drop(upload(tmp_path, 'a.jpg'))
    before, _, _, *close = browser.views()
    browser.find('.image-frame img')[0].click()
    browser.wait(lambda: browser.views()[3] != close[0])
    assert browser.views()[0] == before


def test_a_tab_closes_during_work(browser, server, tmp_path):
    browser.drop(upload(tmp_path, 'a.jpg'), upload(tmp_path, 'b.jpg'))
    browser.find('.thumbnail-item', 2)
    (server.folder / 'held').touch()
    browser.click('Enhance at full size')
    browser.find('.progress-level-inner')
    browser.driver.get('about:blank')
    time.sleep(1)  # for the server to see it
    (server.folder / 'held').unlink()
    browser.wait(lambda: not photos_below(server.folder))
