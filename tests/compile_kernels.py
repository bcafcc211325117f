"""Compiles a Triton kernel for an NVIDIA GPU, which needs none: run by test_kernels_cuda.py in a process of its own.

The interpreter that the other tests run in proves the arithmetic, not that the compiler takes the code.
"""

import os
import sys

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from kernels.cuda import enhance_kernel, guide_back_kernel, illumination_back_kernel, illumination_kernel, loss_kernel

KERNELS = {
    kernel.__name__: kernel
    for kernel in (illumination_kernel, illumination_back_kernel, guide_back_kernel, enhance_kernel, loss_kernel)
}
NETWORKS = (  # hdrnet's and deepupe's
    {'gw': 8, 'bins': 8, 'units': 16, 'tanh': True, 'align': True, 'clip': False, 'luma': False, 'clamp': True},
    {'gw': 16, 'bins': 8, 'units': 48, 'tanh': False, 'align': False, 'clip': True, 'luma': True, 'clamp': False},
)
SIZES = {'lines': 4, 'group': 16, 'steps': 32}
COUNTS = ('height', 'width', 'plane', 'parts')
LEVELS = ('photo', 'enhanced')  # of enhance_kernel, 8 bit
FACTORS = ('eps', 'strength', 'tiny', 'top', 'shift', 'pedestal', 'scale', 'f_mse', 'f_color', 'f_x', 'f_y')


def compile_kernel(kernel, constants, capability=90):
    """Compile for H100 and H200; whatever is neither a count nor a factor points to float32."""
    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    types = dict.fromkeys(kernel.arg_names, '*fp32') | {'starts': '*i32'}
    types |= dict.fromkeys(COUNTS, 'i32') | dict.fromkeys(FACTORS, 'fp32') | dict.fromkeys(constants, 'constexpr')
    if kernel is enhance_kernel:
        types |= dict.fromkeys(LEVELS, '*u8')
    types = {name: types[name] for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return compile(ASTSource(kernel, types, values), target=GPUTarget('cuda', capability, 32))


if __name__ == '__main__':
    compiled = KERNELS[sys.argv[1]]
    for network in NETWORKS:
        done = compile_kernel(
            compiled, {**network, 'full': network['tanh'], 'keep': network['clip'], 'block': 64, **SIZES}
        )
        print(compiled.__name__, len(done.asm['cubin']))
