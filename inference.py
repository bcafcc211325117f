"""Enhance a folder of photos, or one photo, and keep everything else about them.

    python inference.py --images_dir my_photos --result_dir brighter
    python inference.py --images_dir my_photos --result_dir brighter --recursive --contact_sheet
    python inference.py --images_dir 'my_photos/**/IMG_*.jpg' --result_dir brighter --strength 0.7
    torchrun --nproc_per_node=4 inference.py --images_dir ... --result_dir ...

Every photo comes out under its own name, upright, at its own size, bit depth and format, with alpha, EXIF, XMP and
colour profile (README has the table). Photos that are in result_dir already are left as they are unless --overwrite, so
a stopped run goes on where it stopped. A file that cannot be enhanced is named on one line and the rest goes on; the
exit status is then 1.
"""

import contextlib
import glob
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from tqdm import tqdm

import utils
from kernels import Edit, enhance_photo
from photos import formats, nvjpeg
from photos.levels import to_8bit, to_photo
from photos.picture import is_photo, read_photo, read_picture, write_photo, write_picture
from runs.checkpoint import load_network
from system.files import describe, remove_stale_parts
from system.process import cores, keep_memory
from system.ranks import ranks

opt = SimpleNamespace(
    images_dir='sample_imgs',  # a folder of photos, one photo, or a pattern in quotes, such as 'a/**/*.jpg'
    result_dir='sample_results',  # made when it is not there; not the photos' own folder
    recursive=False,  # the folders below images_dir too; result_dir mirrors them
    checkpoints_file='checkpoints/general/best.pth',  # ours, or the predecessor's plain state dict
    strength=1.0,  # 0 leaves the photo as it is, 1 is the model's result
    denoise=0.0,  # 1 takes out the noise that brightening brings up, as much as it was brightened; slower
    format='',  # '' keeps each photo's; jpg, png, tif, webp, avif ... writes all so
    jpeg_444=False,  # full chroma resolution in every JPEG; else the input's, or 4:2:0
    save_extra=False,  # write input, R (enhanced) and S (illumination) side by side
    save_illumination=False,  # write S as PNG into <result_dir>/illumination
    contact_sheet=False,  # <result_dir>/contact_sheet.jpg: before and after of up to 200 photos
    overwrite=False,  # enhance again what is in result_dir already
    max_megapixels=300.0,  # larger photos are refused (decompression bombs)
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
    nvjpeg=False,  # decode and encode JPEG on the GPU too; written as 4:4:4
)

SHEET = 'contact_sheet.jpg'
ILLUMINATIONS = 'illumination'


def main(opt):
    if not 0 <= opt.strength <= 1:
        raise ValueError(f'strength: expected between 0 and 1, got {opt.strength}')
    if opt.denoise < 0:
        raise ValueError(f'denoise: expected 0 or more, got {opt.denoise}')
    if opt.max_megapixels <= 0:
        raise ValueError(f'max_megapixels: expected above 0, got {opt.max_megapixels}')
    keep_memory()
    rank, world = ranks()
    root, paths, ignored = find_photos(opt.images_dir, opt.recursive, opt.result_dir)
    results = name_results(root, paths, opt.result_dir, opt.format)
    device = utils.pick_device(opt.device)
    if opt.nvjpeg and device.type != 'cuda':
        raise ValueError(f'nvjpeg: expected a CUDA device, got {device}')
    gpu = device if opt.nvjpeg and nvjpeg.load_codec(device) else None
    network, _ = load_network(opt.checkpoints_file, device)
    os.makedirs(opt.result_dir, exist_ok=True)
    remove_stale_parts(results)

    mine = list(zip(paths, results, strict=True))[rank::world]
    todo = [pair for pair in mine if opt.overwrite or not os.path.lexists(pair[1])]
    originals = {os.path.realpath(path) for path in paths}
    failed, lost = 0, {}
    # one thread per core, each with one photo: reading, enhancing and writing overlap, memory does not grow
    with ThreadPoolExecutor(min(cores(), len(todo)) or 1) as pool:
        try:
            all_cores = len(todo) < cores()
            outcomes = pool.map(lambda pair: enhance_file(network, *pair, opt, originals, all_cores, gpu), todo)
            for path, reason, notes in tqdm(outcomes, 'enhance', len(todo), disable=None, leave=False):
                if reason:
                    failed += 1
                    tqdm.write(f'failed: {reason}', file=sys.stderr)
                for note in notes:
                    lost.setdefault(note, []).append(path)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    for note, names in lost.items():
        others = f' and {len(names) - 1} more' if len(names) > 1 else ''
        print(f'note: {note} ({names[0]}{others})', file=sys.stderr)
    if opt.contact_sheet and rank == 0:
        save_contact_sheet(os.path.join(opt.result_dir, SHEET), zip(paths, results, strict=True))
    share = f' (rank {rank} of {world})' if world > 1 else ''
    print(
        f'{len(todo) - failed} enhanced into {opt.result_dir}{share}, '
        f'{len(mine) - len(todo)} there already (--overwrite redoes them), {failed} failed, '
        f'{ignored} other files left out'
    )
    return 1 if failed else 0


def find_photos(images_dir, recursive, result_dir):
    """(root folder, sorted photo paths, number of files that are none) of a folder, a file, or a glob pattern.

    What lies in result_dir is never an input.

    Raises:
        FileNotFoundError: nothing there, or no photo in it. ValueError: result_dir is the photos' own folder.
    """
    if os.path.isfile(images_dir):
        root, found = os.path.dirname(images_dir) or '.', [images_dir]
    elif os.path.isdir(images_dir):
        root = images_dir
        walk = os.walk(root) if recursive else [next(os.walk(root))]
        found = [os.path.join(folder, name) for folder, folders, names in walk
                 for name in names + [name for name in folders if is_photo(name)]
                 if not hidden(os.path.relpath(folder, root))]  # fmt: skip
    elif glob.has_magic(images_dir):
        fixed = images_dir[: len(images_dir) - len(images_dir.lstrip('/'))]
        for part in images_dir.lstrip('/').split('/')[:-1]:
            if glob.has_magic(part):
                break
            fixed = os.path.join(fixed, part)
        root, found = fixed or '.', [p for p in glob.glob(images_dir, recursive=True) if not os.path.isdir(p)]
    else:
        raise FileNotFoundError(f'{images_dir}: expected a folder of photos, a photo or a pattern, found none')
    results = os.path.realpath(result_dir)
    if results == os.path.realpath(root):
        raise ValueError(f'result_dir: expected another folder than that of the photos, got {result_dir}')
    if not os.path.realpath(root).startswith(results + os.sep):
        found = [path for path in found if not os.path.realpath(path).startswith(results + os.sep)]
    paths = sorted(path for path in found if is_photo(os.path.basename(path)))
    if not paths:
        hint = '' if recursive else '; --recursive looks into the folders below'
        raise FileNotFoundError(f'{images_dir}: no photos (looked for {" ".join(formats.READABLE)}{hint})')
    return root, paths, len(found) - len(paths)


def hidden(folder):
    return any(part.startswith('.') and part not in ('.', '..') for part in folder.split(os.sep))


def name_results(root, paths, result_dir, format=''):
    """A path in result_dir for every photo: its own path below root, with the extension of `format` if given.

    Camera RAW becomes TIFF. A name that two photos would share gets the photo's old extension: a.jpg, a_png.jpg.

    Raises:
        ValueError: not a format that can be written.
    """
    wanted = f'.{format.lower().lstrip(".")}' if format else ''
    writable = [e for e in formats.READABLE if e not in (*formats.RAW, *formats.FLOAT)]
    if wanted and wanted not in writable:
        raise ValueError(f'format: expected one of {" ".join(e[1:] for e in writable)}, got {format!r}')
    names, taken = [], {SHEET}
    for path in paths:
        stem, extension = os.path.splitext(os.path.relpath(path, root))
        same = extension.lower() == wanted or (extension.lower() in formats.JPEG and wanted in formats.JPEG)
        new = extension if same or not wanted else wanted
        if not wanted and extension.lower() in formats.RAW:
            new = '.tif'
        name, count = stem + new, 1
        while name.lower() in taken:
            name = f'{stem}_{extension[1:]}{"" if count == 1 else count}{new}'
            count += 1
        taken.add(name.lower())
        names.append(os.path.join(result_dir, name))
    return names


def enhance_file(network, path, result, opt, originals, all_cores, gpu=None):
    """Read, enhance and write one photo; returns (path, '' or the reason why not, what could not be kept).

    Args:
        originals: real paths that must not be written to.
        all_cores: no other thread has a photo.
        gpu: torch.device that decodes and encodes JPEG; None is the CPU.
    """
    try:
        if os.path.realpath(result) in originals:
            raise ValueError(f'{path}: its result would replace the original {result}')
        picture = read_picture(path, opt.max_megapixels, gpu)
        keep = opt.save_extra or opt.save_illumination
        photo = picture.photo.copy() if opt.save_extra else picture.photo
        with nvjpeg.exclusive(gpu) if gpu else contextlib.nullcontext():
            enhanced, illumination = enhance_photo(
                network,
                photo,
                Edit(opt.strength, opt.denoise),
                keep_illumination=keep,
                fused=opt.fused,
                in_place=True,
                all_cores=all_cores,
            )
        if keep:
            illumination = to_photo(torch.from_numpy(illumination).permute(2, 0, 1), photo.dtype)
        os.makedirs(os.path.dirname(result) or '.', exist_ok=True)
        if opt.save_illumination:
            name = os.path.splitext(os.path.relpath(result, opt.result_dir))[0]
            beside = os.path.join(opt.result_dir, ILLUMINATIONS, f'{name}.png')
            os.makedirs(os.path.dirname(beside), exist_ok=True)
            write_photo(beside, illumination)
        if opt.save_extra:
            enhanced = np.concatenate([picture.photo, enhanced, illumination], axis=1)
            picture.alpha, picture.grey = None, False
        return path, '', write_picture(result, picture, enhanced, True, opt.jpeg_444, gpu)
    except (OSError, ValueError) as error:
        return path, one_line(describe(error), path), []
    except (MemoryError, RuntimeError, cv2.error) as error:  # too large for this machine or its GPU
        return path, one_line(str(error), path), []


def one_line(reason, path):
    reason = ' '.join(reason.split())
    return reason if path in reason else f'{path}: {reason}'


def save_contact_sheet(path, pairs, cell=240, limit=200):
    """Before and after of each photo that has a result, two pairs to a row, with their names."""
    cells = []
    for original, result in pairs:
        if len(cells) == limit:
            break
        try:
            before, after = (to_8bit(read_photo(name)) for name in (original, result))
        except (OSError, ValueError):  # reported already, or a file of the user's under a result's name
            continue
        height = max(min(round(cell * before.shape[0] / before.shape[1]), 2 * cell), 1)
        both = [cv2.resize(image, (cell, height), interpolation=cv2.INTER_AREA) for image in (before, after)]
        title = np.full((20, 2 * cell, 3), 255, np.uint8)
        name = os.path.basename(original).encode('ascii', 'replace').decode()
        cv2.putText(title, name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
        cells.append(np.concatenate([title, np.concatenate(both, axis=1)]))
    rows = []
    for first in range(0, len(cells), 2):
        pair = cells[first : first + 2]
        sheet = np.full((max(len(c) for c in pair), 4 * cell + 8, 3), 255, np.uint8)
        for i, picture in enumerate(pair):
            sheet[: len(picture), i * (2 * cell + 8) : i * (2 * cell + 8) + 2 * cell] = picture
        rows.append(sheet)
    if rows:
        write_photo(path, np.concatenate(rows))


if __name__ == '__main__':
    utils.run_script(main, opt)
