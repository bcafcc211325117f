"""The kernels for CUDA, in Triton; the plain torch path in model.py and loss.py is the definition.

cuda_slice.py has the guide and the slice, cuda_photo.py makes photos, cuda_train.py and cuda_loss.py train. Tested with
Triton's interpreter on the CPU (TRITON_INTERPRET=1), which proves the arithmetic; not yet run on a GPU.
"""

from kernels.cuda_loss import FusedLoss
from kernels.cuda_photo import enhance
from kernels.cuda_train import illuminate

__all__ = ['FusedLoss', 'enhance', 'illuminate']
