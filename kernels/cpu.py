"""The kernels for the CPU, in Numba; the plain torch path in model.py and loss.py is the definition.

cpu_jit.py compiles them and shares rows among threads, cpu_math.py has their exponential and logarithm, cpu_slice.py
the guide and the slice, cpu_shrink.py makes lowres, cpu_photo.py photos, cpu_denoise.py
takes out noise, cpu_train.py and cpu_loss.py train.
"""

from kernels.cpu_denoise import denoise
from kernels.cpu_loss import FusedLoss
from kernels.cpu_photo import enhance
from kernels.cpu_shrink import shrink
from kernels.cpu_train import SliceApply, illuminate

__all__ = ['FusedLoss', 'SliceApply', 'denoise', 'enhance', 'illuminate', 'shrink']
