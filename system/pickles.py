"""Pickles from strangers: read without running anything in them."""

import pickle
import pickletools


class InertType(type):
    """Type of Inert: whatever is done with that gives Inert itself, be it used as a class or as an object."""

    def take(cls, *args, **kwargs):
        """Take anything, do nothing."""
        return cls

    __call__ = __setitem__ = __setstate__ = append = extend = add = take


class Inert(metaclass=InertType):
    """Stands for whatever an untrusted pickle names or builds: it takes everything and does nothing."""

    def __new__(cls, *args, **kwargs):
        return cls


class InertUnpickler(pickle.Unpickler):
    """Reads plain values out of an io.BytesIO of a pickle; imports nothing and runs nothing that the pickle names.

    Raises:
        ValueError: the place of a remembered value is beyond the file's size: a table up to there takes gigabytes.
    """

    def __init__(self, file):
        size = len(file.getbuffer())
        for opcode, value, _ in pickletools.genops(file):
            if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and value > size:
                raise ValueError(f'a pickle of {size} bytes that claims {value}')
        file.seek(0)
        super().__init__(file)

    def find_class(self, module, name):
        return Inert
