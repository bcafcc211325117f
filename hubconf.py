"""Call the network from Python, from any folder and beside any other code:

    python -c "import torch; print(torch.hub.load('.', 'deepupe', source='local'))"

    enhance = torch.hub.load('path/to/this/folder', 'deepupe', source='local')
    brighter = enhance(image)                    # numpy, PIL or a batch of tensors; the same comes back
    brighter = enhance(image, strength=0.5)

Our modules have plain names, such as `utils` and `model`, which a user's own code may have too. So they are imported
all at once, while the user's are set aside, and leave no name behind.
"""

import functools
import numbers
import os
import pkgutil
import sys

import cv2
import numpy as np
import torch

dependencies = ['torch', 'numpy', 'cv2']  # read by torch.hub, which names those that are missing

FOLDER = os.path.dirname(os.path.abspath(__file__))
OURS = {module.name for module in pkgutil.iter_modules([FOLDER])}


def deepupe(checkpoint='general', device=''):
    """A function that enhances images, see Enhance; `.network` is the network itself.

    Args:
        checkpoint: one that is shipped, such as 'general' or 'paper_lol', or a checkpoint's path.
        device: '' takes CUDA where there is one; there TF32 is switched off, torch.backends.cudnn.allow_tf32.
    Raises:
        FileNotFoundError: no such checkpoint. ValueError: it does not fit, or no such device.
    """
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in OURS}
    sys.path.insert(0, FOLDER)
    try:
        import kernels
        import utils
        from runs.checkpoint import find_checkpoint, load_network

        path = os.path.abspath(find_checkpoint(checkpoint))
        network, _ = load_network(path, utils.pick_device(device))
        # has the rest imported and Numba's cache read, while our names are there
        kernels.enhance_photo(network, np.zeros((8, 8, 3), np.uint8), kernels.Edit(denoise=1.0))
        kernels.enhance_batch(network, torch.zeros(1, 3, 8, 8, device=next(network.parameters()).device))
    finally:
        sys.path.remove(FOLDER)
        for name in [name for name in sys.modules if name.partition('.')[0] in OURS]:
            del sys.modules[name]
        sys.modules.update(aside)
    return Enhance(network, kernels, path, device)


class Enhance:
    """enhance(image, strength=1.0, denoise=-1.0): a brighter image of the same type, shape and depth.

    Attributes:
        network: model.IlluminationNet in eval mode; network(lowres, fullres) is the illumination.
    """

    def __init__(self, network, kernels, path, device):
        self.network, self.kernels, self.path, self.device = network, kernels, path, device

    def __repr__(self):
        return f'enhance(image, strength=1.0, denoise=-1.0) by {self.path}'

    def __reduce__(self):  # other processes load it as this one did, then take this one's weights
        load = functools.partial(torch.hub.load, source='local')
        return load, (FOLDER, 'deepupe', self.path, self.device), self.network.state_dict()

    def __setstate__(self, weights):
        self.network.load_state_dict(weights)

    @torch.no_grad()
    def __call__(self, image, strength=1.0, denoise=-1.0):
        """Enhance one image, or a batch of tensors.

        Args:
            image: one of
                numpy (H, W) or (H, W, C) of uint8, uint16 or float in [0, 1]: grey, grey with alpha, RGB or RGBA;
                PIL of mode L, LA, RGB, RGBA, I;16 or P (which becomes RGB or RGBA), upright as it lies;
                torch (N, 3, H, W) RGB on any device, of uint8 or float in [0, 1].
            strength: in [0, 1.5]; 0 gives the image back, 1 the network's result.
            denoise: noise that brightening brings up is taken out: 1 always, 0 never, -1 where it shows (not in float).
        Returns:
            of the image's type, dtype and shape; alpha as it was. uint8 and uint16 are what inference.py writes.
        Raises:
            TypeError: not an image. ValueError: a shape, dtype, range, strength or denoise that is not as above.
        """
        for name, value in (('strength', strength), ('denoise', denoise)):
            if not isinstance(value, numbers.Real):
                raise TypeError(f'enhance: expected {name} as a number, got {type(value).__name__}')
        edit = self.kernels.Edit(float(strength), float(denoise))
        if isinstance(image, torch.Tensor):
            return self.enhance_batch(image, edit)
        if isinstance(image, np.ndarray):
            return self.enhance_array(image, edit)
        if hasattr(image, 'mode') and hasattr(image, 'getbands'):
            return self.enhance_pil(image, edit)
        expected = 'a numpy array, a PIL image or a batch of tensors (N, 3, H, W)'
        raise TypeError(f'enhance: expected {expected}, got {type(image).__name__}')

    def enhance_pil(self, image, edit):
        """A PIL image of the same mode; EXIF, colour profile and the rest of its `info` go with it."""
        from PIL import Image

        mode = image.mode
        if mode == 'P':
            mode = 'RGBA' if 'transparency' in image.info else 'RGB'
        if mode not in ('L', 'LA', 'RGB', 'RGBA', 'I;16'):
            raise ValueError(f'enhance: expected a PIL image of mode L, LA, RGB, RGBA, I;16 or P, got {mode}')
        pixels = np.asarray(image if mode == image.mode else image.convert(mode))
        enhanced = Image.fromarray(self.enhance_array(pixels, edit))
        enhanced.info = {name: value for name, value in image.info.items() if name != 'transparency'}
        return enhanced

    def enhance_array(self, image, edit):
        """A numpy image (H, W) or (H, W, C), C from 1 to 4."""
        if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and image.shape[2] > 4):
            raise ValueError(f'enhance: expected a numpy array (H, W) or (H, W, 1 to 4), got {image.shape}')
        planes = np.atleast_3d(image)
        grey = planes.shape[2] < 3
        colours, alpha = np.split(planes, [1 if grey else 3], axis=2)
        photo = np.array(np.broadcast_to(colours, (*image.shape[:2], 3)), order='C')
        if image.dtype in (np.uint8, np.uint16):
            enhanced, _ = self.kernels.enhance_photo(self.network, photo, edit, in_place=True)
        elif image.dtype.kind == 'f':
            batch = torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1)[None]
            enhanced = np.ascontiguousarray(self.enhance_batch(batch, edit)[0].permute(1, 2, 0))
        else:
            raise ValueError(f'enhance: expected an array of uint8, uint16 or float in [0, 1], got {image.dtype}')
        if grey:
            enhanced = cv2.cvtColor(enhanced, cv2.COLOR_RGB2GRAY)[..., None]
        return np.concatenate([enhanced, alpha], axis=2).astype(image.dtype, copy=False).reshape(image.shape)

    def enhance_batch(self, images, edit):
        """Tensors (N, 3, H, W), each on its own; floats are not rounded anywhere."""
        if images.layout != torch.strided or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            got = tuple(images.shape) if images.layout == torch.strided else images.layout
            raise ValueError(f'enhance: expected a batch of tensors (N, 3, H, W), got {got}')
        if images.dtype == torch.uint8:
            photos = [self.enhance_array(image.permute(1, 2, 0).cpu().numpy(), edit) for image in images]
            return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().to(images.device)
        if not images.dtype.is_floating_point:
            raise ValueError(f'enhance: expected tensors of uint8 or float in [0, 1], got {images.dtype}')
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise ValueError(f'enhance: expected float values in [0, 1], got {low:g} to {high:g}')
        if edit.denoise not in (-1, 0):
            raise ValueError(f'enhance: expected denoise -1 or 0 for float, got {edit.denoise:g}')
        device = next(self.network.parameters()).device
        photos = (image[None].to(device, torch.float32) for image in images)
        return torch.cat([self.kernels.enhance_batch(self.network, one, edit.strength).to(images) for one in photos])
