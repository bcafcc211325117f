"""Enhance a folder of photos and videos, or one of them, and keep everything else about them.

    python inference.py --images_dir my_photos --result_dir brighter
    python inference.py my_photos --result_dir brighter --recursive --contact_sheet
    python inference.py my_photos/IMG_*.jpg --result_dir brighter --strength 0.7
    torchrun --nproc_per_node=4 inference.py --images_dir ... --result_dir ...

Every photo comes out under its own name, upright, at its own size, bit depth and format, with alpha, EXIF, XMP and
colour profile (docs/formats.md). A video, which needs PyAV (pip install 'av>=18'), keeps codec, bit depth, colour
tags, rotation, the times of its frames, sound and subtitles. What is in result_dir already is left as it is unless
--overwrite, so a stopped run goes on where it stopped. A file that cannot be enhanced is named on one line and the rest
goes on; the exit status is then 1.
"""

import errno
import os
import sys
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from tqdm import tqdm

import utils
from kernels import Edit, enhance_photo
from photos.contact_sheet import save_contact_sheet
from photos.folder import SHEET, find_photos, is_video, plan_jobs
from photos.levels import to_photo
from photos.picture import as_plain_srgb, read_picture, write_photo, write_picture
from runs.checkpoint import load_network
from system.files import error_line, printable, remove_stale_parts
from system.process import cores, tune_malloc
from system.ranks import all_gather_list, init_distributed, on_rank0

opt = SimpleNamespace(
    # photos and videos
    images_dir='sample_imgs',  # a folder, a photo or video, or a pattern in quotes, such as 'a/**/*.jpg'
    recursive=False,  # the folders below images_dir too; result_dir mirrors them
    max_megapixels=300.0,  # larger photos and frames are refused (decompression bombs)
    # enhancing
    checkpoints_file='checkpoints/general/best.pth',  # ours (also .safetensors) or the predecessor's
    strength=1.0,  # 0 leaves the photo as it is, 1 is the model's result
    denoise=-1.0,  # 1 takes out the noise that brightening brings up; -1 only in photos where it shows; 0 none
    video_smoothing=1.0,  # seconds before and after, over which a video's brightness is evened; 0: each frame alone
    # results
    result_dir='sample_results',  # made when it is not there; not the photos' own folder
    overwrite=False,  # enhance again what is in result_dir already
    format='',  # '' keeps each photo's; jpg, png, tif, webp, avif ... writes all so, a.png as a_png.jpg
    keep_times=False,  # the result gets the photo's time of modification; its permissions it gets always
    jpeg_444=False,  # full chroma resolution in every JPEG; else the input's, or 4:2:0
    save_extra=False,  # photos: write input, R (enhanced) and S (illumination) side by side
    save_illumination=False,  # photos: write S as PNG into <result_dir>/illumination, that of a.jpg as a_jpg.png
    contact_sheet=False,  # <result_dir>/contact_sheet.jpg: before and after of up to 200 photos, no videos
    # machine
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
)

RULES = {
    'strength': (0.0, 1.0),
    'denoise': [-1.0, (0.0, None)],
    'max_megapixels': (1e-6, None),
    'video_smoothing': (0.0, 10.0),
}
STOPPING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # disk full, quota used up, disk became read-only: not one file's


def main(opt):
    utils.check_options(opt, RULES)
    tune_malloc()
    found = find_photos(opt.images_dir, opt.recursive, opt.result_dir)
    jobs = plan_jobs(found, opt.result_dir, opt.format, opt.save_illumination, opt.contact_sheet)
    device = utils.pick_device(opt.device)
    network, _ = load_network(opt.checkpoints_file, device)
    network.fused = opt.fused

    rank, world = init_distributed(timedelta(days=30))  # a share may take long
    os.makedirs(opt.result_dir, exist_ok=True)
    remove_stale_parts({os.path.dirname(path) for job in jobs for path in (job.result, job.illumination) if path})
    todo = [job for job in jobs if opt.overwrite or not os.path.lexists(job.result)]
    jobs, todo = on_rank0(lambda: (jobs, todo))  # so that each is one rank's
    mine = todo[rank::world]
    done = enhance_jobs(network, [job for job in mine if not is_video(job.path)], opt)
    done += enhance_videos(network, [job for job in mine if is_video(job.path)], opt)

    outcomes = all_gather_list(done)  # waits for all ranks
    failed = report(outcomes, found, len(jobs) - len(todo), opt.result_dir) if rank == 0 else 0
    if opt.contact_sheet and rank == 0:
        photos = [(job.path, job.result) for job in jobs if not is_video(job.path)]
        save_contact_sheet(os.path.join(opt.result_dir, SHEET), photos)
    all_gather_list([])  # all end together: torchrun kills the others when one ends with status 1
    return 1 if failed else 0


def enhance_jobs(network, jobs, opt):
    """enhance_file for every job, as many at a time as there are cores; failures are printed as they come.

    One thread per core, each with one photo: reading, enhancing and writing overlap, and memory does not grow.

    Returns:
        list of what enhance_file gave.
    Raises:
        OSError: the disk is full; what was not started is left out.
    """
    outcomes, full = [], []

    def enhance(job):
        if full:
            raise full[0]
        try:
            return enhance_file(network, job, opt)
        except OSError as error:
            full.append(error)
            raise

    with ThreadPoolExecutor(min(cores(), len(jobs)) or 1) as pool:
        try:
            for outcome in tqdm(pool.map(enhance, jobs), 'enhance', len(jobs), disable=None, leave=False):
                outcomes.append(outcome)
                if outcome[1]:
                    tqdm.write(f'failed: {outcome[1]}', file=sys.stderr)
        except BaseException:  # Ctrl-C too
            pool.shutdown(cancel_futures=True)
            raise
    return outcomes


def enhance_file(network, job, opt):
    """Read, enhance and write one photo.

    Args:
        job: photos.folder.Job.
    Returns:
        (path, '' or the reason why not, list of what could not be kept).
    Raises:
        OSError: the disk is full.
    """

    def work():
        picture = read_picture(job.path, opt.max_megapixels)
        keep = opt.save_extra or opt.save_illumination
        photo = picture.photo.copy() if opt.save_extra else picture.photo
        edit = Edit(opt.strength, opt.denoise)
        enhanced, illumination = enhance_photo(network, photo, edit, keep_illumination=keep, in_place=True)
        if keep:
            illumination = to_photo(torch.from_numpy(illumination).permute(2, 0, 1), photo.dtype)
        if job.illumination:
            os.makedirs(os.path.dirname(job.illumination), exist_ok=True)
            write_photo(job.illumination, illumination)
        if opt.save_extra:
            enhanced = np.concatenate([picture.photo, enhanced, illumination], axis=1)
            picture.alpha, picture.grey = None, False
            as_plain_srgb(picture)
        return write_picture(job.result, picture, enhanced, True, opt.jpeg_444, opt.keep_times)

    return attempt(job, work)


def enhance_videos(network, jobs, opt):
    """Enhance videos one after the other, each on all cores; arguments and results as of enhance_jobs."""
    outcomes = []
    for job in jobs:
        name = os.path.basename(job.path)

        def work(job=job, name=name):
            try:
                from video.enhance import VideoEdit, enhance_video
            except ImportError as error:  # absent, or too old
                raise ValueError(f"{job.path}: video needs PyAV: pip install 'av>=18' ({error})") from error
            edit = Edit(opt.strength, max(opt.denoise, 0))  # noise that shows in some frames alone would flicker
            ask = VideoEdit(edit, opt.video_smoothing, opt.max_megapixels, opt.keep_times)
            return enhance_video(
                network, job.path, job.result, ask,
                lambda frames, total: tqdm(frames, name, total or None, unit=' frames', disable=None, leave=False),
            )  # fmt: skip

        outcomes.append(attempt(job, work))
        if outcomes[-1][1]:
            tqdm.write(f'failed: {outcomes[-1][1]}', file=sys.stderr)
    return outcomes


def attempt(job, work):
    """(path, '', work()) or (path, reason why not, []); a full disk is raised."""
    path = job.path
    try:
        if job.problem:
            raise ValueError(job.problem)
        os.makedirs(os.path.dirname(job.result) or '.', exist_ok=True)
        return path, '', work()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in STOPPING:
            raise
        return path, one_line(error_line(error), path), []
    except (MemoryError, RuntimeError, cv2.error) as error:  # too large for this machine or its GPU
        return path, one_line(str(error) or 'out of memory', path), []
    except Exception as error:  # a defect of ours, with this one
        at = traceback.extract_tb(error.__traceback__)[-1]
        reason = f'defect: {type(error).__name__}: {error} ({os.path.basename(at.filename)}, line {at.lineno})'
        return path, one_line(reason, path), []


def one_line(reason, path):
    """A reason as one line that names the photo."""
    named = path in reason
    reason = ' '.join(reason.replace(path, '\0').split()).replace('\0', path)
    return printable(reason if named else f'{path}: {reason}')


def report(outcomes, found, there, result_dir):
    """Print what could not be kept, each once, and the counts; returns how many photos and folders failed."""
    lost = {}
    for path, _, notes in outcomes:
        for note in notes:
            lost.setdefault(note, []).append(path)
    for note, names in lost.items():
        others = f' and {len(names) - 1} more' if len(names) > 1 else ''
        print(printable(f'note: {note} ({names[0]}{others})'), file=sys.stderr)
    for problem in found.problems:
        print(f'failed: {printable(problem)}', file=sys.stderr)
    failed = sum(1 for _, reason, _ in outcomes if reason) + len(found.problems)
    enhanced = sum(1 for _, reason, _ in outcomes if not reason)
    kinds = ', '.join(f'{count} {kind}' for kind, count in (+Counter(found.others)).most_common())
    print(
        f'{enhanced} enhanced into {printable(result_dir)}, {there} there already (--overwrite redoes them), '
        f'{failed} failed, {found.others.total()} other files left out' + (f' ({kinds})' if kinds else ''),
        flush=True,
    )
    return failed


if __name__ == '__main__':
    utils.parse_overrides(opt, RULES, __file__, positional='images_dir')
    utils.run_script(main, opt)
