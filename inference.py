"""Enhance a folder of photos, or one photo.

    python inference.py --images_dir my_photos --result_dir brighter
    python inference.py --images_dir one.jpg --result_dir brighter --strength 0.7

Every photo comes out under its own name, at its own size and bit depth (8 or 16). Photos that are in result_dir already
are left as they are unless --overwrite. A file that cannot be read is named and the rest goes on; the exit status is
then 1.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import utils
from fast import enhance_photo
from photos import list_photos, read_photo, to_photo, write_photo

opt = SimpleNamespace(
    images_dir='sample_imgs',  # a folder of photos, or one photo
    result_dir='sample_results',  # made when it is not there
    checkpoints_file='checkpoints/general/best.pth',  # ours, or the predecessor's plain state dict
    strength=1.0,  # 0 leaves the photo as it is, 1 is the model's result
    save_extra=False,  # write input, R (enhanced) and S (illumination) side by side
    overwrite=False,  # enhance again what is in result_dir already
    fused=True,  # --no-fused takes the plain torch path
    device='',  # '' takes CUDA when there is one
)


def main(opt):
    if not 0 <= opt.strength <= 1:
        raise ValueError(f'strength: expected between 0 and 1, got {opt.strength}')
    paths = [opt.images_dir] if os.path.isfile(opt.images_dir) else list_photos(opt.images_dir)
    if os.path.realpath(opt.result_dir) == os.path.realpath(os.path.dirname(paths[0]) or '.'):
        raise ValueError(f'result_dir: expected another folder than that of the photos, got {opt.result_dir}')
    network, _ = utils.load_network(opt.checkpoints_file, utils.pick_device(opt.device))
    os.makedirs(opt.result_dir, exist_ok=True)

    results = [os.path.join(opt.result_dir, os.path.basename(path)) for path in paths]
    todo = [pair for pair in zip(paths, results, strict=True) if opt.overwrite or not os.path.exists(pair[1])]
    failed = 0
    # one thread per core, each with one photo: reading, enhancing and writing overlap, memory does not grow
    with ThreadPoolExecutor(min(utils.cores(), len(todo)) or 1) as pool:
        try:
            reasons = pool.map(lambda pair: enhance_file(network, *pair, opt, alone=len(todo) < utils.cores()), todo)
            for reason in tqdm(reasons, 'enhance', len(todo), disable=None, leave=False, dynamic_ncols=True):
                if reason:
                    failed += 1
                    tqdm.write(f'failed: {reason}', file=sys.stderr)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    done, skipped = len(todo) - failed, len(paths) - len(todo)
    print(f'{done} enhanced into {opt.result_dir}, {skipped} there already (--overwrite redoes them), {failed} failed')
    return 1 if failed else 0


def enhance_file(network, path, result, opt, alone):
    """Read, enhance and write one photo; returns '' or the reason why not."""
    try:
        photo = read_photo(path)
        enhanced, light = enhance_photo(
            network, photo, opt.strength, opt.save_extra, opt.fused, reuse=not opt.save_extra, alone=alone
        )
        if opt.save_extra:
            light = to_photo(torch.from_numpy(light).permute(2, 0, 1), photo.dtype)
            enhanced = np.concatenate([photo, enhanced, light], axis=1)
        write_photo(result, enhanced, reuse=True)
        return ''
    except (OSError, ValueError) as error:
        return utils.describe(error)
    except (MemoryError, RuntimeError) as error:  # too large for this machine or its GPU
        return f'{path}: {error}'


if __name__ == '__main__':
    utils.run_script(main, opt)
