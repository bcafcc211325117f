"""2^x and the base 2 logarithm inside the CPU kernels.

libm's are scalar calls that stop vectorisation; these are within 2 ulp in float32. float64 takes libm's.
"""

import math

import numba
import numpy as np
from numba.extending import intrinsic, overload

from kernels.cpu_jit import FAST


@intrinsic
def bits_of(context, value):
    def code(_, builder, signature, args):
        from llvmlite import ir

        return builder.bitcast(args[0], ir.IntType(32))

    return numba.int32(numba.float32), code


@intrinsic
def float_of(context, bits):
    def code(_, builder, signature, args):
        from llvmlite import ir

        return builder.bitcast(args[0], ir.FloatType())

    return numba.float32(numba.int32), code


def ordered(x):
    """A number that sorts as x does, for x of 0 or more: float32's bits, whose minimum takes one cycle, not four."""


def unordered(x):
    """The float32 that `ordered` was given."""


@overload(ordered)
def _ordered(x):
    return (lambda x: bits_of(x)) if x == numba.float32 else (lambda x: x)


@overload(unordered)
def _unordered(x):
    return (lambda x: float_of(x)) if x == numba.int32 else (lambda x: x)


def exp2(x):
    """2^x; the exponent is clipped to what float32 holds."""


def log2(x):
    """Base 2 logarithm of a positive normal number."""


@overload(exp2, fastmath=FAST)
def _exp2(x):
    if x != numba.float32:
        return lambda x: math.exp(x * 0.6931471805599453)
    f = np.float32
    top, half, ln2, one = f(126), f(0.5), f(math.log(2)), f(1)
    c2, c3, c4, c5, c6, c7 = (f(1 / math.factorial(k)) for k in range(2, 8))
    bias, shift = np.int32(127), np.int32(23)

    def fast(x):
        x = top if x > top else x
        x = -top if x < -top else x
        whole = np.floor(x + half)
        y = (x - whole) * ln2
        series = one + y * (one + y * (c2 + y * (c3 + y * (c4 + y * (c5 + y * (c6 + y * c7))))))
        return series * float_of(np.int32((np.int32(whole) + bias) << shift))

    return fast


@overload(log2, fastmath=FAST)
def _log2(x):
    if x != numba.float32:
        return lambda x: math.log(x) * 1.4426950408889634
    f = np.float32
    root_half, shift = np.int32(0x3F3504F3), np.int32(23)
    one, scale = f(1), f(2 / math.log(2))
    c3, c5, c7, c9 = (f(1 / k) for k in (3, 5, 7, 9))

    def fast(x):
        bits = bits_of(x)
        exponent = np.int32(np.int32(bits - root_half) >> shift)
        mantissa = float_of(np.int32(bits - np.int32(exponent << shift)))  # in [sqrt 1/2, sqrt 2)
        s = (mantissa - one) / (mantissa + one)
        s2 = s * s
        return f(exponent) + scale * s * (one + s2 * (c3 + s2 * (c5 + s2 * (c7 + s2 * c9))))

    return fast
