"""A page in the browser that enhances photos; it runs on this machine and nothing leaves it.

    pip install 'gradio>=6'
    python app.py
    python app.py --port 8000 --max_megapixels 50

Drop photos, compare before and after, choose look, strength and denoising; then all are enhanced at full size, each in
its own format with all that inference.py keeps: a result is, byte for byte, the file that inference.py writes. The
preview is a small copy, so that it follows the slider: a photo's grid is predicted once, from the whole photo.

Photos, previews and results lie in a temporary folder while their tab is open, and go with it, or with the page.
"""

import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np
import torch

import inference
import utils
from kernels import Edit, apply_grid, predict_grid
from photos import formats
from photos.folder import Job, result_name
from photos.levels import to_8bit, to_photo
from photos.picture import is_photo, read_picture, write_photo
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
    max_megapixels=300.0,  # larger photos are refused (decompression bombs)
    device='',  # '' takes CUDA when there is one
)

RULES = {'port': (1, 65535), 'max_megapixels': (1e-6, None)}
PREVIEW = 1024  # pixels of a preview's longer side
PROGRESS = gr.Progress() if gr else None  # gradio's way to give a function a bar
CLEAN = (3600, 86400)  # seconds: every hour, what was uploaded more than a day ago and never taken is removed
NOISE = (('where it shows', -1), ('nowhere', 0), ('everywhere', 1), ('everywhere, twice', 2))  # to Edit.denoise
OLD = 60  # seconds after which the browser has a preview


def main(opt):
    utils.check_options(opt, RULES)
    if gr is None:
        raise ValueError("app: expected gradio, it is not installed: pip install 'gradio>=6'")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    signal.signal(signal.SIGINT, lambda *_: stopped.set())
    with tempfile.TemporaryDirectory(prefix='deepupe-') as folder:
        os.environ['GRADIO_TEMP_DIR'] = folder  # where gradio puts uploads and previews
        page = build_page(Desk(opt, folder))
        page.launch(
            server_name=opt.host, server_port=opt.port, share=False, prevent_thread_lock=True, quiet=True,
            theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),  # none from the net
            run_history=False, footer_links=[], enable_monitoring=False,
        )  # fmt: skip
        print(f'open http://{opt.host}:{opt.port} in a browser; Ctrl-C stops', flush=True)
        stopped.wait()
        page.close(verbose=False)


def build_page(desk):
    """The page, and which function of the desk each of its parts calls."""
    with gr.Blocks(title='DeepUPE', analytics_enabled=False, delete_cache=CLEAN) as page:
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                drop = gr.File(label='Photos', file_count='multiple', height=140)
                name = gr.Dropdown([], label='Shown', interactive=True)
                look = gr.Dropdown(desk.looks, value=desk.looks[0], label='Look', interactive=True)
                strength = gr.Slider(0, 1, 1, step=0.01, label='Strength')
                denoise = gr.Dropdown(NOISE, value=-1, label='Take out noise', interactive=True)
                make = gr.Button('Enhance at full size', variant='primary')
                results = gr.File(label='Results', file_count='multiple', interactive=False, visible=False)
            with gr.Column(scale=3):
                view = {'interactive': False, 'buttons': ['fullscreen']}
                pair = gr.ImageSlider(label='Before and after', max_height=720, **view)
                illumination = gr.Image(label='Illumination', height=300, **view)

        settings = [look, strength, denoise]
        drop.upload(desk.add, [drop, look], [drop, name])
        gr.on(
            [name.change, *(part.change for part in settings)], desk.show, [name, *settings],
            [pair, illumination, results], trigger_mode='always_last', show_progress='hidden',
        )  # fmt: skip
        make.click(desk.enhance, settings, results)
        page.unload(desk.forget)
    return page


class Photo(NamedTuple):
    """A photo that was dropped on the page."""

    job: Job  # its path here, and its result's
    before: str  # path of the preview as it is
    preview: np.ndarray  # (h, w, 3) RGB of the photo's dtype, up to PREVIEW pixels wide and high
    grey: bool
    grids: dict  # {look: (1, 12, D, Gh, Gw)}


class Desk:
    """The photos of every open tab, and what its buttons do.

    Args:
        folder: where files may lie while the page runs.
    """

    def __init__(self, opt, folder):
        self.opt, self.folder = opt, folder
        self.device = utils.pick_device(opt.device)
        here = os.path.isdir(opt.checkpoints_dir)
        self.checkpoints = opt.checkpoints_dir if here else os.path.join(ROOT, opt.checkpoints_dir)
        self.looks = find_looks(self.checkpoints)
        self.network = lru_cache(self.load)  # of a look
        self.photos = {}  # {session: {name: Photo}}

    def load(self, look):
        return load_network(os.path.join(self.checkpoints, look, 'best.pth'), self.device)[0]

    def add(self, paths, look, request: gr.Request):
        """Take photos that were dropped; those that cannot be read are named. Empties the drop zone, fills the list."""
        photos, new = self.photos.setdefault(request.session_hash, {}), []
        for path in paths or ():
            name = base = os.path.basename(path)
            while name in photos:
                name = f'{base} ({len(photos) + 1})'
            folder = os.path.join(self.tab(request), secrets.token_hex(8))
            os.makedirs(folder)
            job = Job(shutil.move(path, folder), base, os.path.join(folder, 'enhanced', result_name(base)))
            try:
                picture = self.read(job)
                grids = {look: predict_grid(self.network(look), picture.photo)}
            except (OSError, ValueError, MemoryError, RuntimeError, cv2.error) as error:
                gr.Warning(reason(inference.one_line(error_line(error), job.path), job), duration=None)  # until closed
                shutil.rmtree(folder)
                continue
            preview = shrink(picture.photo)
            photos[name] = Photo(job, save_preview(folder, preview), preview, picture.grey, grids)
            new.append(name)
        shown = new[0] if new else next(iter(photos), None)
        return None, gr.Dropdown(list(photos), value=shown)

    def read(self, job):
        if not is_photo(os.path.basename(job.path)):
            raise ValueError(f'{job.path}: expected a photo (known are {" ".join(formats.READABLE)})')
        return read_picture(job.path, self.opt.max_megapixels)

    def show(self, name, look, strength, denoise, request: gr.Request):
        """((before, after), illumination) of a preview; results of other settings are taken off the page."""
        photo = self.photos.get(request.session_hash, {}).get(name)
        if photo is None:
            return None, None, gr.File(None, visible=False)
        network = self.network(look)
        if look not in photo.grids:
            photo.grids[look] = predict_grid(network, self.read(photo.job).photo)
        edit = Edit(strength, denoise)
        after, illumination = apply_grid(network, photo.preview, photo.grids[look], edit, keep_illumination=True)
        if photo.grey:
            after = cv2.cvtColor(cv2.cvtColor(after, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        illumination = to_photo(torch.from_numpy(illumination).permute(2, 0, 1))
        after, illumination = (save_preview(self.tab(request), image) for image in (after, illumination))
        return (photo.before, after), illumination, gr.File(None, visible=False)

    def enhance(self, look, strength, denoise, request: gr.Request, progress=PROGRESS):
        """Files of all photos at full size, as inference.py writes them."""
        photos = self.photos.get(request.session_hash, {})
        if not photos:
            raise gr.Error('no photo to enhance: drop one first')
        theirs = {'strength': strength, 'denoise': denoise, 'max_megapixels': self.opt.max_megapixels}
        edit = SimpleNamespace(**{**vars(inference.opt), **theirs})
        results = []
        for photo in progress.tqdm(list(photos.values()), 'enhance'):
            _, failed, notes = inference.enhance_file(self.network(look), photo.job, edit, True)
            if failed:
                gr.Warning(reason(failed, photo.job), duration=None)
            else:
                results.append(photo.job.result)
            for note in notes:
                gr.Info(f'{os.path.basename(photo.job.path)}: {note}')
        return gr.File(results, visible=True)

    def forget(self, request: gr.Request):
        """Remove the photos of a tab that was closed."""
        self.photos.pop(request.session_hash, None)
        shutil.rmtree(self.tab(request), ignore_errors=True)

    def tab(self, request):
        return os.path.join(self.folder, f'tab-{request.session_hash}')


def find_looks(folder):
    """Names of the checkpoints in a folder, the general one first.

    Raises:
        FileNotFoundError: none.
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    looks = [name for name in names if os.path.isfile(os.path.join(folder, name, 'best.pth'))]
    if not looks:
        raise FileNotFoundError(f'{folder}: expected folders with a best.pth, found none')
    return sorted(looks, key=lambda name: (name != 'general', name))


def shrink(photo):
    """A copy of a photo of at most PREVIEW pixels a side."""
    scale = PREVIEW / max(photo.shape[:2])
    if scale >= 1:
        return photo
    size = (max(round(photo.shape[1] * scale), 1), max(round(photo.shape[0] * scale), 1))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA)


def save_preview(folder, photo):
    """Write a preview into a folder under a new name, so that the browser fetches it; old ones there are removed."""
    for entry in os.scandir(folder):
        if entry.name.startswith('preview-') and entry.stat().st_mtime < time.time() - OLD:
            os.remove(entry)
    path = os.path.join(folder, f'preview-{secrets.token_hex(8)}.jpg')
    write_photo(path, to_8bit(photo))
    return path


def reason(message, job):
    """A message with a photo's name in place of its path here."""
    return message.replace(job.result, os.path.basename(job.result)).replace(job.path, os.path.basename(job.path))


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__)
    utils.run_script(main, opt)
