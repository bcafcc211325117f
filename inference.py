"""Brighten photos and videos: a folder of them, or one.

    python inference.py my_photos                        into my_photos/enhanced
    python inference.py photo.jpg brighter.jpg           one photo to one file
    python inference.py my_photos -o brighter --strength 0.7
    python inference.py my_photos/IMG_*.jpg -o brighter --recursive --contact_sheet

Every photo comes out under its own name, upright, at its own size, bit depth and format, with transparency, EXIF, XMP
and colour profile (docs/formats.md). Videos keep sound, subtitles and the times of their frames; they need PyAV (pip
install 'av>=18'). Originals are never written to. A result that is there already stays, unless it was made with other
options; so a stopped run goes on where it stopped. A file that cannot be enhanced is named with the reason, the rest
goes on, and the exit status is 1.
"""

import contextlib
import errno
import hashlib
import os
import sys
import traceback
import zlib
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from types import SimpleNamespace

from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # for the installed command: its package is this folder

import utils
from photos.folder import SHEET, find_photos, is_due, is_video, plan_jobs, read_record, remember
from system.files import error_line, printable, remove_stale_parts
from system.process import cores, tune_malloc, use_wide_vectors

# torch and OpenCV are imported where they are used, so that --help and a mistyped name are answered at once

opt = SimpleNamespace(
    # photos and videos
    images_dir='sample_imgs',  # folder, photos, videos, or a pattern in quotes, such as 'a/**/*.jpg'
    recursive=False,  # the folders below too; the result folder mirrors them
    max_megapixels=300.0,  # larger photos and frames are refused
    # light and colour
    checkpoints_file='general',  # a shipped network's name, or the file of one that you trained
    strength=1.0,  # 0 leaves the photo as it is, 0.5 brightens it half as much, 1.5 more
    denoise=-1.0,  # noise that brightening brings up is taken out: 1 always, 0 never, -1 in photos where it shows
    video_smoothing=1.0,  # seconds before and after, over which a video's brightness is evened; 0: each frame alone
    # results
    result_dir='',  # a folder, for one photo also a file; '' makes the folder 'enhanced' beside the photos
    overwrite=False,  # enhance again what is there already
    format='',  # '' keeps each photo's; jpg, png, tif, webp, avif ... writes all so
    keep_times=False,  # results get their photos' time of modification; permissions they get always
    jpeg_444=False,  # full colour resolution in every JPEG; else the photo's, or 4:2:0
    save_extra=False,  # also extra/a_jpg.png: photo, result and illumination side by side
    save_illumination=False,  # also illumination/a_jpg.png: the light that the photo is divided by
    contact_sheet=False,  # also contact_sheet.jpg: before and after of up to 200 photos
    # machine
    fused=True,  # --no-fused takes the plain torch path
    device='',  # cpu or cuda; '' takes CUDA when there is one
)

RULES = {
    'strength': (0.0, 1.5),
    'denoise': [-1.0, (0.0, None)],
    'max_megapixels': (0.01, None),
    'video_smoothing': (0.0, 10.0),
}
FLAGS = {'checkpoints_file': '--look', 'result_dir': '-o'}  # other names of options
STOPPING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # disk full, quota used up, disk became read-only: not one file's


def main(opt):
    utils.check_options(opt, RULES)
    found = find_photos(opt.images_dir, opt.recursive, opt.result_dir)
    record = read_record(found.results)
    jobs = plan_jobs(found, record, opt.format, opt.save_illumination, opt.save_extra, opt.contact_sheet)
    tune_malloc()
    use_wide_vectors()  # before Numba is imported

    from runs.checkpoint import find_checkpoint, load_network
    from system.ranks import all_gather_list, init_distributed, on_rank0

    network, _ = load_network(opt.checkpoints_file, utils.pick_device(opt.device))
    network.fused = opt.fused
    with open(find_checkpoint(opt.checkpoints_file), 'rb') as file:
        weights = hashlib.sha256(file.read()).hexdigest()[:12]

    def made_with(job):
        """The options that change a result, and which photo it is of, as the record has them."""
        photo = ''
        with contextlib.suppress(OSError):  # it is gone: its turn will say so
            photo = '{0.st_size} {0.st_mtime:.0f}'.format(os.stat(job.path))
        more = f'smoothing {opt.video_smoothing:g}' if is_video(job.path) else '4:4:4' if opt.jpeg_444 else ''
        return f'{weights} strength {opt.strength:g} denoise {opt.denoise:g} {more} photo {photo}'

    rank, world = init_distributed(timedelta(days=30))  # a share may take long
    os.makedirs(found.results, exist_ok=True)
    remove_stale_parts({os.path.dirname(path) for job in jobs for path in job.written()})
    todo = [job for job in jobs if opt.overwrite or is_due(found.results, record, job, made_with(job))]
    jobs, todo = on_rank0(lambda: (jobs, todo))  # so that each is one rank's
    again = sum(os.path.lexists(job.result) for job in todo)
    if again and rank == 0 and not opt.overwrite:
        print(f'note: earlier results of other options or photos are made again: {again}', file=sys.stderr)

    outcomes = enhance_jobs(network, todo[rank::world], opt, lambda job: remember(found.results, job, made_with(job)))
    outcomes = all_gather_list(outcomes)  # waits for all ranks
    failed = report(outcomes, found, len(jobs) - len(todo)) if rank == 0 else 0
    if opt.contact_sheet and rank == 0:
        from photos.contact_sheet import save_contact_sheet

        photos = [(job.path, job.result) for job in jobs if not is_video(job.path)]
        save_contact_sheet(os.path.join(found.results, SHEET), photos)
    all_gather_list([])  # all end together: torchrun kills the others when one ends with status 1
    return 1 if failed else 0


def enhance_jobs(network, jobs, opt, done):
    """What enhance_file gives for every job, photos first; failures are printed as they come.

    One thread per core, each with one photo: reading, enhancing and writing overlap, and memory does not grow. Then
    videos one after the other, each on all cores.

    Args:
        done: function to call with every job that is done.
    Raises:
        OSError: the disk is full; what was not started is left out.
    """
    from kernels import announce_compiling

    def enhance(job):
        try:
            outcome = enhance_file(network, job, opt)
        except OSError:  # no other is started
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        if outcome[1]:
            tqdm.write(f'failed: {outcome[1]}', file=sys.stderr)
        else:
            done(job)
        return outcome

    photos = [job for job in jobs if not is_video(job.path)]
    with announce_compiling(), ThreadPoolExecutor(min(cores(), len(photos)) or 1) as pool:
        futures = [pool.submit(enhance, job) for job in photos]
        try:
            for future in tqdm(as_completed(futures), 'enhance', len(photos), disable=None, leave=False):
                future.result()
        except BaseException:  # Ctrl-C too
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures] + [enhance(job) for job in jobs if is_video(job.path)]


def enhance_file(network, job, opt, progress=None):
    """Read, enhance and write the photo or video of a photos.folder.Job.

    Args:
        progress: of a video, see video.enhance.enhance_video; None shows a bar on the terminal.
    Returns:
        (path, '' or the reason why not, list of what could not be kept).
    Raises:
        OSError: the disk is full.
    """
    make = enhance_one_video if is_video(job.path) else enhance_one_photo
    return attempt(job, lambda: make(network, job, opt, progress))


def enhance_one_photo(network, job, opt, _):
    """What could not be kept of the photo of a job."""
    import numpy as np
    import torch

    from kernels import Edit, apply_grid, predict_grid
    from photos.levels import to_photo
    from photos.picture import read_picture, write_photo, write_picture

    picture = read_picture(job.path, opt.max_megapixels)
    photo = picture.photo.copy() if job.extra else picture.photo
    keep, edit = bool(job.illumination or job.extra), Edit(opt.strength, opt.denoise)
    grid, asked = predict_grid(network, photo), opt.denoise > 0  # then it is said where nothing is taken out
    noisy = zlib.crc32(apply_grid(network, photo, grid, edit._replace(denoise=0.0))[0]) if asked else 0
    enhanced, illumination = apply_grid(network, photo, grid, edit, keep_illumination=keep, in_place=True)
    for path in filter(None, (job.illumination, job.extra)):
        image = to_photo(torch.from_numpy(illumination).permute(2, 0, 1), photo.dtype)
        if path == job.extra:
            image = np.concatenate([picture.photo, enhanced, image], axis=1)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_photo(path, image)
    same = asked and noisy == zlib.crc32(enhanced)
    notes = ['--denoise took nothing out: it was not brightened, or its compression left no noise'] if same else []
    return notes + write_picture(job.result, picture, enhanced, True, opt.jpeg_444, opt.keep_times)


def enhance_one_video(network, job, opt, progress):
    """What could not be kept of the video of a job."""
    from kernels import Edit
    from video.enhance import enhance_video

    def show_bar(frames, total):
        return tqdm(frames, os.path.basename(job.path), total or None, unit=' frames', disable=None, leave=False)

    edit = Edit(opt.strength, max(opt.denoise, 0))  # noise that shows in some frames alone would flicker
    asked = edit, opt.video_smoothing, opt.max_megapixels, opt.keep_times
    return enhance_video(network, job.path, job.result, *asked, progress or show_bar)


def attempt(job, work):
    """(path, '', work()) or (path, why not in one line that names the file, []); a full disk is raised."""
    import cv2

    path = job.path
    try:
        if job.problem:
            raise ValueError(job.problem)
        os.makedirs(os.path.dirname(job.result) or '.', exist_ok=True)
        return path, '', work()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in STOPPING:
            raise
        if isinstance(error, (OSError, ValueError)):
            reason = error_line(error)
        elif isinstance(error, ImportError) and is_video(path):  # absent, or too old
            reason = f"video needs PyAV: pip install 'av>=18' ({error})"
        elif isinstance(error, (MemoryError, RuntimeError, cv2.error)):  # too large for this machine or its GPU
            reason = str(error) or 'out of memory'
        else:  # a defect of ours, with this one
            at = traceback.extract_tb(error.__traceback__)[-1]
            reason = f'defect: {type(error).__name__}: {error} ({os.path.basename(at.filename)}, line {at.lineno})'
    reason = reason if path in reason else f'{path}: {reason}'
    return path, printable(' '.join(reason.replace(path, '\0').split()).replace('\0', path)), []


def report(outcomes, found, there):
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
    plural = {'earlier result': 'earlier results', 'linked folder': 'linked folders'}
    counts = (+found.others).most_common()
    kinds = ', '.join(f'{count} {kind if count == 1 else plural.get(kind, kind)}' for kind, count in counts)
    where = printable(os.path.normpath(os.path.join(found.results, found.name)))
    print(
        f'{enhanced} enhanced into {where}, {there} there already (--overwrite redoes them), '
        f'{failed} failed, {found.others.total()} other files left out' + (f' ({kinds})' if kinds else ''),
        flush=True,
    )
    return failed


def command():
    """What `python inference.py` does, and the installed command deepupe."""
    utils.parse_overrides(opt, RULES, __file__, 'images_dir', FLAGS)
    utils.run_script(main, opt)


if __name__ == '__main__':
    command()
