"""A page in the browser that enhances photos and videos; it runs on this machine and nothing leaves it.

    pip install 'gradio>=6'
    python app.py
    python app.py --port 8000 --no-open_browser

What it shows is made from the whole photo at full size and then cut or shrunk, and what it gives is, byte for byte, the
file that inference.py writes, in the photo's own format with all that it keeps.

Photos, previews and results lie in a temporary folder while their tab is open, and go with it, or with the page.
"""

from __future__ import annotations  # without gradio there is no gr.Request

import glob
import itertools
import os
import shutil
import signal
import tempfile
import threading
import time
import weakref
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import cv2
import numpy as np

import inference
import utils
from kernels import Edit, apply_grid, predict_grid
from photos import formats
from photos.folder import Job, is_photo, is_video, result_name
from photos.levels import to_8bit
from photos.picture import list_photos, read_picture, write_photo
from runs.checkpoint import ROOT, load_network
from system.files import error_line

try:
    import gradio as gr
except ImportError:
    gr = None

opt = SimpleNamespace(
    checkpoints_dir='checkpoints',  # every folder in it with a best.pth is a look
    host='127.0.0.1',  # this machine only; 0.0.0.0 lets the whole network in
    port=7860,
    open_browser=True,  # --no-open_browser on a server
    max_megapixels=300.0,  # larger photos and frames are refused (decompression bombs)
    device='',  # '' takes CUDA when there is one
)

RULES = {'port': (1, 65535), 'max_megapixels': (1e-6, None)}
PREVIEW, CLOSE = 1024, (448, 480)  # pixels of a preview's longer side; width and height of the view at 100 %
OLD = 60  # seconds after which the browser has a preview
CLEAN = (3600, 86400)  # seconds: every hour, what was uploaded more than a day ago and never taken is removed
PROGRESS = gr.Progress() if gr else None  # gradio's way to give a function a bar
NOISE = (('where it shows', -1), ('nowhere', 0), ('everywhere', 1), ('everywhere, twice', 2))  # to Edit.denoise
BENCHMARKS = {'lol', 'lol_standard'}  # checkpoints for one benchmark's photos, which are no looks
SAMPLES = os.path.join(ROOT, 'sample_imgs')


def main(opt):
    utils.check_options(opt, RULES)
    if gr is None:
        raise ValueError("app: expected gradio, it is not installed: pip install 'gradio>=6'")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix='deepupe-', ignore_cleanup_errors=True) as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # where gradio puts uploads and previews
        page = build_page(Desk(opt, folder))
        page.launch(
            server_name=opt.host, server_port=opt.port, inbrowser=opt.open_browser, share=False, quiet=True,
            prevent_thread_lock=True, allowed_paths=[SAMPLES], run_history=False, footer_links=[],
            enable_monitoring=False,
            theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),  # none from the net
        )  # fmt: skip
        print(f'open http://{opt.host}:{opt.port} in a browser; Ctrl-C stops', flush=True)
        stopped.wait()
        page.close(verbose=False)


def build_page(desk):
    """The page, and which function of the desk each of its parts calls."""
    view, narrow = {'interactive': False, 'buttons': ['fullscreen']}, {'min_width': 280}
    with gr.Blocks(title='DeepUPE', analytics_enabled=False, delete_cache=CLEAN, fill_width=True) as page:
        with gr.Row():
            with gr.Column(scale=1, **narrow):
                drop = gr.File(label='Photos and videos', file_count='multiple', height=140)
                samples = gr.Dataset(label='Or try one of these', components=['image'], samples=desk.samples)
                photos = gr.Gallery(columns=2, height=320, visible=False, allow_preview=False, show_label=False, **view)
                remove = gr.Button('Remove this one', size='sm', visible=False)
            with gr.Column(scale=4, min_width=320):
                pair = gr.ImageSlider(label='Before and after', max_height=720, **view)
            with gr.Column(scale=1, **narrow):
                look = gr.Dropdown(list(desk.looks), value=next(iter(desk.looks)), label='Look', interactive=True)
                strength = gr.Slider(0, inference.RULES['strength'][1], 1, step=0.01, label='Strength')
                denoise = gr.Dropdown(NOISE, value=-1, label='Take out noise', interactive=True)
                scope = gr.Radio(['all', 'this one'], value='all', label='Change these for')
                make = gr.Button('Enhance at full size', variant='primary', interactive=False)
                stop = gr.Button('Stop', variant='stop', visible=False)
                results = gr.File(label='Results', file_count='multiple', interactive=False, visible=False)
                archive = gr.DownloadButton('Download all', visible=False)
        with gr.Row():
            place = gr.Image(label='Click where to look closer', height=CLOSE[1], **narrow, **view)
            close = gr.ImageSlider(label='At 100 %', max_height=CLOSE[1], min_width=CLOSE[0] + 2, **view)
            light = gr.Image(label='The light that it had', height=CLOSE[1], **narrow, **view)

        settings, views, work = [look, strength, denoise], [pair, place, close, light], [make, stop, results, archive]
        whole = [drop, samples, photos, remove, *settings, *views, *work]
        drop.upload(desk.add, [drop, *settings], whole)
        samples.click(desk.add, [samples, *settings], whole)
        photos.select(desk.pick, None, whole, show_progress='hidden')
        remove.click(desk.remove, None, whole, show_progress='hidden')
        place.select(desk.look_closer, None, views, show_progress='hidden')
        gr.on(
            [part.input for part in settings], desk.change, [*settings, scope], [*views, *work],
            trigger_mode='always_last', show_progress='hidden',
        )  # fmt: skip
        make.click(desk.enhance, None, work, show_progress_on=results, concurrency_limit=None)
        stop.click(desk.stop, queue=False)
        page.unload(desk.forget)
    return page


@dataclass
class Photo:
    """A photo or video that was dropped on the page."""

    job: Job
    before: str  # path of its preview
    settings: tuple  # (look, strength, denoise)
    made: tuple = ()  # settings of the result that is there
    place: tuple = ()  # middle of the view at 100 %, in pixels of the preview; () is the photo's


class Tab:
    """An open tab. Its folder goes with it, that is, when nothing works on it any more."""

    def __init__(self, folder):
        self.folder = tempfile.mkdtemp(prefix='tab-', dir=folder)
        self.photos, self.shown = {}, ''  # {name: Photo}; the name of the one that is shown
        self.busy, self.stopped = False, threading.Event()  # whether results are being made, and shall not be
        self.archive = None  # path of what 'Download all' gives
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def results(self):
        """Paths of the results that are there; those of other settings do not count."""
        return [photo.job.result for photo in self.photos.values() if photo.made == photo.settings]


class Desk:
    """The photos of every open tab, and what its buttons do.

    Args:
        folder: where files may lie while the page runs.
    """

    def __init__(self, opt, folder):
        self.opt, self.folder = opt, folder
        here, device = os.path.isdir(opt.checkpoints_dir), utils.pick_device(opt.device)
        self.looks = find_looks(opt.checkpoints_dir if here else os.path.join(ROOT, opt.checkpoints_dir))
        self.network = lru_cache(lambda look: load_network(self.looks[look], device)[0])
        self.read = lru_cache(maxsize=1)(self.read)  # this and the next not again for each step of a slider
        self.grid = lru_cache(maxsize=1)(lambda look, path: predict_grid(self.network(look), self.read(path)[0]))
        self.samples = [[path] for path in list_photos(SAMPLES)] if os.path.isdir(SAMPLES) else []
        self.tabs = {}  # {session: Tab}

    def read(self, path):
        """(photo (H, W, 3), whether it is grey) of a file; of a video a key frame before its middle."""
        if is_video(path):
            try:
                from video.reader import open_source
            except ImportError as error:  # absent, or too old
                raise ValueError(f"{path}: video needs PyAV: pip install 'av>=18' ({error})") from error
            source = open_source(path)
            with source.container as container:
                container.seek((container.duration or 0) // 2)
                frame = next(container.decode(source.stream))
                return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90)), False
        if not is_photo(os.path.basename(path)):
            raise ValueError(f'{path}: expected a video or a photo (known are {" ".join(formats.READABLE)})')
        picture = read_picture(path, self.opt.max_megapixels)
        return picture.photo, picture.grey

    def add(self, paths, look, strength, denoise, request: gr.Request, progress=PROGRESS):
        """Take photos that were dropped and show the first; those that cannot be read are named."""
        tab = self.tabs.get(request.session_hash) or self.tabs.setdefault(request.session_hash, Tab(self.folder))
        new = []
        for path in progress.tqdm(paths or (), 'reading'):
            taken = {os.path.basename(photo.job.result) for photo in tab.photos.values()}
            stem, extension = os.path.splitext(os.path.basename(path))
            numbers = itertools.chain([''], (f' ({i})' for i in itertools.count(2)))
            name = next(name for i in numbers if result_name(name := stem + i + extension) not in taken)
            folder = tempfile.mkdtemp(dir=tab.folder)
            job = Job(os.path.join(folder, name), name, os.path.join(folder, 'enhanced', result_name(name)))
            (shutil.copy if [path] in self.samples else shutil.move)(path, job.path)
            _, failed, before = inference.attempt(
                job, lambda f=folder, j=job: save_preview(f, shrink(self.read(j.path)[0]))
            )
            if failed:
                warn(failed, job)
                shutil.rmtree(folder)
                continue
            tab.photos[name] = Photo(job, before, (look, strength, denoise))
            new.append(name)
        tab.shown = new[0] if new else tab.shown
        return self.show_all(tab)

    def pick(self, event: gr.SelectData, request: gr.Request):
        tab = self.tabs[request.session_hash]
        tab.shown = list(tab.photos)[event.index]
        return self.show_all(tab)

    def remove(self, request: gr.Request):
        """Remove the photo that is shown, and show the one after it, or the last."""
        tab = self.tabs[request.session_hash]
        at = list(tab.photos).index(tab.shown)
        shutil.rmtree(os.path.dirname(tab.photos.pop(tab.shown).job.path), ignore_errors=True)
        tab.shown, tab.archive = (list(tab.photos)[at : at + 1] or list(tab.photos)[-1:] or [''])[0], None
        return self.show_all(tab)

    def look_closer(self, event: gr.SelectData, request: gr.Request):
        """Show at 100 % the place that was clicked."""
        tab = self.tabs[request.session_hash]
        tab.photos[tab.shown].place = tuple(event.index)
        return self.show(tab)

    def change(self, look, strength, denoise, scope, request: gr.Request):
        """Take the setting that was changed, for all photos or for the one that is shown."""
        tab = self.tabs.get(request.session_hash)
        if not (tab and tab.photos):
            return gr.skip()
        before, after = tab.photos[tab.shown].settings, (look, strength, denoise)
        for name, photo in tab.photos.items():
            if scope == 'all' or name == tab.shown:
                theirs = zip(before, after, photo.settings, strict=True)
                photo.settings = tuple(own if old == new else new for old, new, own in theirs)
        tab.archive = None
        return *self.show(tab), *self.show_work(tab)

    def show(self, tab):
        """What the four views show."""
        if not tab.shown:
            return [None] * 4
        photo = tab.photos[tab.shown]
        _, failed, views = inference.attempt(photo.job, lambda: self.make_previews(tab.folder, photo))
        if failed:
            warn(failed, photo.job)
        return views or [None] * 4

    def make_previews(self, folder, photo):
        """(before, after), where the third lies, (before, after) at 100 %, and the light: paths of previews."""
        look, strength, denoise = photo.settings
        denoise = max(denoise, 0) if is_video(photo.job.path) else denoise  # as inference.enhance_videos has it
        full, grey = self.read(photo.job.path)
        network, grid = self.network(look), self.grid(look, photo.job.path)
        enhanced, _ = apply_grid(network, full, grid, Edit(strength, denoise))
        _, light = apply_grid(network, shrink(full), grid, keep_illumination=True)
        if grey:
            enhanced = cv2.cvtColor(cv2.cvtColor(enhanced, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        after, (top, left, bottom, right) = to_8bit(shrink(enhanced)), find_close(full.shape, photo.place)
        corners = np.array([[left, top], [right, bottom]]) * light.shape[0] // full.shape[0]
        place = cv2.rectangle(after.copy(), *corners.tolist(), (255, 255, 255), 3)
        close = [whole[top:bottom, left:right] for whole in (full, enhanced)]
        views = after, place, *close, np.uint8(light.clip(0, 1) * 255)
        after, place, *close, light = (save_preview(folder, view) for view in views)
        return (photo.before, after), place, tuple(close), light

    def show_work(self, tab):
        results = tab.results()
        return (
            gr.Button(interactive=bool(tab.photos), visible=not tab.busy), gr.Button(visible=tab.busy),
            gr.File(results or None, visible=bool(results) or tab.busy),
            gr.DownloadButton(value=tab.archive, visible=bool(tab.archive)),
        )  # fmt: skip

    def show_all(self, tab):
        photos = [(photo.before, name) for name, photo in tab.photos.items()]
        at = list(tab.photos).index(tab.shown) if tab.shown else None
        settings = tab.photos[tab.shown].settings if tab.shown else [gr.skip()] * 3
        return (
            None, gr.Dataset(visible=not photos), gr.Gallery(photos, selected_index=at, visible=bool(photos)),
            gr.Button(visible=bool(photos)), *settings, *self.show(tab), *self.show_work(tab),
        )  # fmt: skip

    def enhance(self, request: gr.Request, progress=PROGRESS):
        """Write the results that are not there yet, as inference.py writes them."""
        tab = self.tabs[request.session_hash]
        tab.busy, tab.archive = True, None
        tab.stopped.clear()
        yield self.show_work(tab)
        todo = [photo for photo in tab.photos.values() if photo.made != photo.settings]
        for i, photo in enumerate(todo):
            name, settings = os.path.basename(photo.job.path), photo.settings
            if tab.stopped.is_set():
                break
            progress((i, len(todo)), desc=name, unit='files')
            try:
                _, failed, notes = self.write(photo, tab.stopped, progress)
            except (OSError, ValueError) as error:  # the disk is full; the look's file is broken
                warn(error_line(error), photo.job)
                break
            photo.made = () if failed else settings
            if failed and name in tab.photos and not tab.stopped.is_set():
                warn(failed, photo.job)
            for note in notes:
                gr.Info(f'{name}: {note}')
        tab.busy = False
        if self.tabs.get(request.session_hash) is tab:
            tab.archive = pack(tab.results(), tab.folder)
            yield self.show_work(tab)

    def write(self, photo, stopped, progress):
        """What inference.enhance_file gives for a photo; a video is stopped between frames."""
        look, strength, denoise = photo.settings
        asked = {'strength': strength, 'denoise': denoise, 'max_megapixels': self.opt.max_megapixels}
        asked = SimpleNamespace(**{**vars(inference.opt), **asked})
        if not is_video(photo.job.path):
            return inference.enhance_file(self.network(look), photo.job, asked)

        def count(frames, total):
            for i, frame in enumerate(frames):
                if stopped.is_set():
                    raise ValueError('stopped')
                progress((i, total or None), desc=os.path.basename(photo.job.path), unit='frames')
                yield frame

        return inference.enhance_videos(self.network(look), [photo.job], asked, lambda job: None, count)[0]

    def stop(self, request: gr.Request):
        self.tabs[request.session_hash].stopped.set()

    def forget(self, request: gr.Request):
        """Stop and remove what belongs to a tab that was closed."""
        if tab := self.tabs.pop(request.session_hash, None):
            tab.stopped.set()
            self.read.cache_clear()


def find_looks(folder):
    """{name: path} of the checkpoints in a folder, the general one first.

    Raises:
        FileNotFoundError: none.
    """
    names = {os.path.dirname(path) for path in glob.glob('*/best.pth', root_dir=folder)} - BENCHMARKS
    if not names:
        raise FileNotFoundError(f'{folder}: expected folders with a best.pth, found none')
    names = sorted(names, key=lambda name: (name != 'general', name))
    return {name: os.path.join(folder, name, 'best.pth') for name in names}


def shrink(photo):
    """A copy of a photo of at most PREVIEW pixels a side."""
    scale = min(PREVIEW / max(photo.shape[:2]), 1)
    return cv2.resize(photo, [max(round(side * scale), 1) for side in photo.shape[1::-1]], interpolation=cv2.INTER_AREA)


def find_close(shape, place):
    """(top, left, bottom, right) of what is seen at 100 % of a photo, around a place (x, y) of its preview."""
    size = shape[1::-1]
    middle = np.multiply(place, max(*size, PREVIEW) / PREVIEW) if place else np.divide(size, 2)
    left, top = np.clip(middle - np.divide(CLOSE, 2), 0, np.maximum(np.subtract(size, CLOSE), 0)).astype(int)
    return top, left, min(top + CLOSE[1], size[1]), min(left + CLOSE[0], size[0])


def save_preview(folder, photo):
    """Write a preview into a folder under a new name, so that the browser fetches it; old ones there are removed."""
    for entry in os.scandir(folder):
        if entry.name.startswith('preview-') and entry.stat().st_mtime < time.time() - OLD:
            os.remove(entry)
    path = os.path.join(folder, f'preview-{time.time_ns()}.jpg')
    write_photo(path, to_8bit(photo))
    return path


def pack(results, folder):
    """Path of a new .zip with all results; None for fewer than two."""
    if len(results) < 2:
        return None
    path = os.path.join(tempfile.mkdtemp(dir=folder), 'enhanced.zip')
    with zipfile.ZipFile(path, 'w', strict_timestamps=False) as archive:  # stored: photos hardly get smaller
        for result in results:
            archive.write(result, os.path.basename(result))
    return path


def warn(message, job):
    """Say until it is closed why something failed, with the photo's name in place of its path here."""
    for path in (job.result, job.path):
        message = message.replace(path, os.path.basename(path))
    gr.Warning(message, duration=None)


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
