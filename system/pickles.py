"""Pickles from strangers: checked before they are read, and read without running anything in them."""

import pickle
import pickletools


def check_pickle(file):
    """Refuse a pickle that takes more memory than its bytes justify; the file's position stays.

    A length that is written in front of text or bytes is allocated before they are read, and the place of a remembered
    value makes a table of that size: nine bytes can take gigabytes. Here each length is compared with what is there.

    Args:
        file: io.BytesIO, at the start of a pickle.
    Raises:
        ValueError: it claims more than the file holds, or is no pickle.
    """
    start, size = file.tell(), len(file.getbuffer())
    for opcode, value, _ in pickletools.genops(file):  # raises ValueError where text or bytes end too early
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'FRAME') and value > size:
            raise ValueError(f'a pickle of {size} bytes that claims {value}')
    file.seek(start)


class InertType(type):
    """Type of Inert: calling it gives Inert itself, which a pickle may want to use as a class or as an object."""

    def __call__(cls, *args, **kwargs):
        return cls

    def __setitem__(cls, key, value):
        pass


class Inert(metaclass=InertType):
    """Stands for whatever an untrusted pickle names or builds: it takes everything and does nothing."""

    def __new__(cls, *args, **kwargs):
        return cls

    @staticmethod
    def ignore(*values):
        """Take anything."""

    __setstate__ = append = extend = add = ignore


class InertUnpickler(pickle.Unpickler):
    """Reads plain values out of a pickle, see check_pickle; imports nothing and runs nothing that the pickle names."""

    def __init__(self, file):
        check_pickle(file)
        super().__init__(file)

    def find_class(self, module, name):
        return Inert
