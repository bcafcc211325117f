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
import re
import shutil
import signal
import tempfile
import threading
import time
import weakref
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import cv2
import numpy as np

import inference
import utils
from kernels import Edit, apply_grid, predict_grid
from photos.folder import Job, is_video, result_name
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
BENCHMARKS = {'paper_lol', 'predecessor_lol'}  # checkpoints for one benchmark's photos, which are no looks
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
                make = gr.Button('Enhance at full size', variant='primary')
                stop = gr.Button('Stop', variant='stop', visible=False)
                results = gr.File(label='Results', file_count='multiple', interactive=False, height=140)
                archive = gr.DownloadButton('Download all', visible=False)
        with gr.Row():
            place = gr.Image(label='Click where to look closer', height=CLOSE[1], **narrow, **view)
            close = gr.ImageSlider(label='At 100 %', max_height=CLOSE[1], min_width=CLOSE[0] + 2, **view)

        settings, views, files = [look, strength, denoise], [pair, place, close], [results, archive]
        whole = [drop, samples, photos, remove, *settings, *views, *files]
        drop.upload(desk.add, [drop, *settings], whole)
        samples.click(desk.add, [samples, *settings], whole)
        photos.select(desk.pick, None, whole, show_progress='hidden')
        remove.click(desk.remove, None, whole, show_progress='hidden')
        place.select(desk.look_closer, None, views, show_progress='hidden')
        gr.on(
            [part.input for part in settings], desk.change, [*settings, scope], [*views, *files],
            trigger_mode='always_last', show_progress='hidden',
        )  # fmt: skip
        make.click(desk.enhance, None, [make, stop, *files], show_progress_on=results, concurrency_limit=None)
        stop.click(desk.stop, queue=False)
        page.unload(desk.forget)
    return page


@dataclass
class Photo:
    """A photo or video that was dropped on the page."""

    path: str  # in a folder of its own
    settings: tuple  # (look, strength, denoise)
    before: str = ''  # path of its preview
    place: tuple = ()  # middle of the view at 100 %, in pixels of the preview; () is the photo's

    @property
    def job(self):
        """What inference.py is to do; results of other settings lie in other folders."""
        folder, name = os.path.split(self.path)
        return Job(self.path, name, os.path.join(folder, ' '.join(map(str, self.settings)), result_name(name)))


class Tab:
    """An open tab. Its folder goes with it, that is, when nothing works on it any more."""

    def __init__(self, folder):
        self.folder = tempfile.mkdtemp(prefix='tab-', dir=folder)
        self.photos, self.shown = {}, ''  # {name: Photo}; the name of the one that is shown
        self.packed = [], None  # results, and the .zip that holds them
        self.stopped = threading.Event()  # whether no more results shall be made
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


class Desk:
    """The photos of every open tab, below a folder, and what its buttons do."""

    def __init__(self, opt, folder):
        self.opt, self.folder = opt, folder
        self.looks, device = find_looks(opt.checkpoints_dir), utils.pick_device(opt.device)
        self.network = lru_cache(lambda look: load_network(self.looks[look], device)[0])
        self.read = lru_cache(maxsize=1)(self.read)  # this and the next not again for each step of a slider
        self.grid = lru_cache(maxsize=1)(lambda look, path: predict_grid(self.network(look), self.read(path)[0]))
        self.samples = [[path] for path in list_photos(SAMPLES)] if os.path.isdir(SAMPLES) else []
        self.tabs = defaultdict(lambda: Tab(folder))  # {session: Tab}

    def read(self, path):
        """(photo (H, W, 3), whether it is grey) of a file; of a video a key frame before its middle."""
        if is_video(path):
            from video.reader import Source, read_frames

            source = Source(path)
            with source.container as container:
                container.seek((container.duration or 0) // 2)
                frame = next(read_frames(source, self.opt.max_megapixels))
                return np.ascontiguousarray(np.rot90(frame.to_ndarray(format='rgb24'), frame.rotation // 90)), False
        picture = read_picture(path, self.opt.max_megapixels)
        return picture.photo, picture.grey

    def add(self, paths, look, strength, denoise, request: gr.Request, progress=PROGRESS):
        """Take photos that were dropped and show the first; those that cannot be read are named."""
        tab, new = self.tabs[request.session_hash], []
        for path in progress.tqdm(paths or (), 'reading'):
            stem, extension = os.path.splitext(os.path.basename(path))
            names = itertools.chain([stem + extension], (f'{stem} ({i}){extension}' for i in itertools.count(2)))
            taken = set(map(result_name, tab.photos))
            name = next(name for name in names if result_name(name) not in taken)
            photo = Photo(os.path.join(tempfile.mkdtemp(dir=tab.folder), name), (look, strength, denoise))
            (shutil.copy if [path] in self.samples else shutil.move)(path, photo.path)
            _, failed, read = inference.attempt(photo.job, lambda p=photo: self.read(p.path))
            if failed:
                warn(failed, photo.path)
            else:
                photo.before = save_preview(os.path.dirname(photo.path), shrink(read[0]))
                tab.photos[name] = photo
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
        shutil.rmtree(os.path.dirname(tab.photos.pop(tab.shown).path), ignore_errors=True)
        tab.shown = (list(tab.photos)[at : at + 1] or list(tab.photos)[-1:] or [''])[0]
        return self.show_all(tab)

    def look_closer(self, event: gr.SelectData, request: gr.Request):
        """Show at 100 % the place that was clicked."""
        tab = self.tabs[request.session_hash]
        tab.photos[tab.shown].place = tuple(event.index)
        return self.show(tab)

    def change(self, look, strength, denoise, scope, request: gr.Request):
        """Take the setting that was changed, for all photos or for the one that is shown."""
        tab = self.tabs[request.session_hash]
        before, after = tab.shown and tab.photos[tab.shown].settings, (look, strength, denoise)
        for name, photo in tab.photos.items():
            if scope == 'all' or name == tab.shown:
                theirs = zip(before, after, photo.settings, strict=True)
                photo.settings = tuple(own if old == new else new for old, new, own in theirs)
        return *self.show(tab), *show_results(tab)

    def show(self, tab):
        """(before, after), the preview to click on, and (before, after) at 100 %, as paths of previews."""
        if not tab.shown:
            return [None] * 3
        photo = tab.photos[tab.shown]
        look, strength, denoise = photo.settings
        denoise = max(denoise, 0) if is_video(photo.path) else denoise  # as inference.enhance_one_video has it

        def work():
            full, grey = self.read(photo.path)
            enhanced, _ = apply_grid(self.network(look), full, self.grid(look, photo.path), Edit(strength, denoise))
            if grey:
                enhanced = cv2.cvtColor(cv2.cvtColor(enhanced, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            after, where = save_preview(tab.folder, shrink(enhanced)), find_close(full.shape, photo.place)
            close = tuple(save_preview(tab.folder, side[where]) for side in (full, enhanced))
            return (photo.before, after), after, close

        _, failed, views = inference.attempt(photo.job, work)
        if failed:
            warn(failed, photo.path)
        return views or [None] * 3

    def show_all(self, tab):
        photos = [(photo.before, name) for name, photo in tab.photos.items()]
        at = list(tab.photos).index(tab.shown) if tab.shown else None
        settings = tab.photos[tab.shown].settings if tab.shown else [gr.skip()] * 3
        return (
            None, gr.Dataset(visible=not photos), gr.Gallery(photos, selected_index=at, visible=bool(photos)),
            gr.Button(visible=bool(photos)), *settings, *self.show(tab), *show_results(tab),
        )  # fmt: skip

    def enhance(self, request: gr.Request, progress=PROGRESS):
        """Write the results that are not there yet, as inference.py writes them."""
        tab = self.tabs[request.session_hash]
        tab.stopped.clear()
        yield gr.Button(visible=False), gr.Button(visible=True), *show_results(tab)
        todo = {name: photo for name, photo in tab.photos.items() if not os.path.exists(photo.job.result)}
        for i, (name, photo) in enumerate(todo.items()):
            if tab.stopped.is_set():
                break
            progress((i, len(todo)), desc=name, unit='files')
            try:
                _, failed, notes = self.write(photo, tab.stopped, progress)
            except (OSError, ValueError) as error:  # the disk is full; the look's file is broken
                warn(error_line(error), photo.path)
                break
            if failed and name in tab.photos and not tab.stopped.is_set():
                warn(failed, photo.path)
            for note in notes:
                gr.Info(f'{name}: {note}')
        if request.session_hash in self.tabs:
            yield gr.Button(visible=True), gr.Button(visible=False), *show_results(tab, pack=True)

    def write(self, photo, stopped, progress):
        """What inference.enhance_file gives for a photo; a video is stopped between frames."""
        look, strength, denoise = photo.settings
        asked = {'strength': strength, 'denoise': denoise, 'max_megapixels': self.opt.max_megapixels}

        def count(frames, total):
            for i, frame in enumerate(frames):
                if stopped.is_set():
                    raise ValueError('stopped')
                progress((i, total or None), desc=os.path.basename(photo.path), unit='frames')
                yield frame

        asked = SimpleNamespace(**vars(inference.opt) | asked)
        return inference.enhance_file(self.network(look), photo.job, asked, count)

    def stop(self, request: gr.Request):
        self.tabs[request.session_hash].stopped.set()

    def forget(self, request: gr.Request):
        """Stop and remove what belongs to a tab that was closed."""
        if tab := self.tabs.pop(request.session_hash, None):
            tab.stopped.set()
            self.read.cache_clear()


def show_results(tab, pack=False):
    """The list of the results of the photos' settings, and the button for all of them, packed anew or as before."""
    results = [photo.job.result for photo in tab.photos.values() if os.path.exists(photo.job.result)]
    if pack and len(results) > 1:
        path = os.path.join(tempfile.mkdtemp(dir=tab.folder), 'enhanced.zip')
        with zipfile.ZipFile(path, 'w', strict_timestamps=False) as archive:  # stored: photos hardly get smaller
            for result in results:
                archive.write(result, os.path.basename(result))
        tab.packed = results, path
    path = tab.packed[1] if tab.packed[0] == results else None
    return gr.File(results or None), gr.DownloadButton(value=path, visible=bool(path))


def find_looks(folder):
    """{name: path} of the checkpoints in a folder, the general one first; FileNotFoundError where there is none."""
    folder = folder if os.path.isdir(folder) else os.path.join(ROOT, folder)
    names = {os.path.dirname(path) for path in glob.glob('*/best.pth', root_dir=folder)} - BENCHMARKS
    if not names:
        raise FileNotFoundError(f'{folder}: expected folders with a best.pth, found none')
    return {name: os.path.join(folder, name, 'best.pth') for name in sorted(names, key=lambda n: (n != 'general', n))}


def shrink(photo):
    """A copy of a photo of at most PREVIEW pixels a side."""
    scale = min(PREVIEW / max(photo.shape[:2]), 1)
    return cv2.resize(photo, [max(round(side * scale), 1) for side in photo.shape[1::-1]], interpolation=cv2.INTER_AREA)


def find_close(shape, place):
    """The slices of a photo that are seen at 100 %, around a place (x, y) of its preview."""
    size = shape[1::-1]
    middle = np.multiply(place, max(*size, PREVIEW) / PREVIEW) if place else np.divide(size, 2)
    left, top = np.clip(middle - np.divide(CLOSE, 2), 0, np.maximum(np.subtract(size, CLOSE), 0)).astype(int)
    return slice(top, top + CLOSE[1]), slice(left, left + CLOSE[0])


def save_preview(folder, photo):
    """Write a preview into a folder under a new name, so that the browser fetches it; old ones there are removed."""
    for entry in os.scandir(folder):
        if entry.name.startswith('preview-') and entry.stat().st_mtime < time.time() - OLD:
            os.remove(entry)
    path = os.path.join(folder, f'preview-{time.time_ns()}.jpg')
    write_photo(path, to_8bit(photo))
    return path


def warn(message, path):
    """Say until it is closed why something failed, without the folders of this page."""
    gr.Warning(re.sub(re.escape(os.path.dirname(path)) + r'/(.*/)?', '', message), duration=None)


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
