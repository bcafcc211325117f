"""What torch.save wrote, read without torch.load: nothing in a file runs, and it takes no more memory than it is long.

torch.load believes what a file says of itself: it unpacks archives, and makes tensors of sizes that the file's bytes
do not fill. Here each size is compared with the bytes that are there before anything is made. Both layouts are read,
the zip archive (torch 1.6 and later) and the one before, in which the predecessor's weights are published.
"""

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict

import torch

from system.pickles import check_pickle

LEGACY = 0x1950A86A20F9469CFC6C  # torch's first number in a file of the old layout
DTYPES = {
    'FloatStorage': torch.float32, 'DoubleStorage': torch.float64, 'HalfStorage': torch.float16,
    'BFloat16Storage': torch.bfloat16, 'LongStorage': torch.int64, 'IntStorage': torch.int32,
    'ShortStorage': torch.int16, 'CharStorage': torch.int8, 'ByteStorage': torch.uint8, 'BoolStorage': torch.bool,
    'ComplexFloatStorage': torch.complex64, 'ComplexDoubleStorage': torch.complex128,
}  # fmt: skip


def read_tensors(data):
    """The object that torch.save wrote: tensors on the CPU and plain values.

    Args:
        data: the file's bytes.
    Raises:
        ValueError, or what else a damaged file makes pickle and zipfile raise: not such a file, or a hostile one.
    """
    return read_zip(data) if data[:4] == b'PK\3\4' else read_legacy(data)


def read_zip(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError('compressed, which torch.save never does')
        if sum(entry.file_size for entry in entries) > len(data):
            raise ValueError('its parts are larger than the file')
        names = archive.namelist()
        folder = next(name for name in names if name.endswith('data.pkl')).removesuffix('data.pkl')
        if f'{folder}byteorder' in names and archive.read(f'{folder}byteorder') != sys.byteorder.encode():
            raise ValueError('from a machine of another byte order')
        storages = {}

        def find(key, dtype, count):
            if key not in storages:
                storages[key] = as_storage(archive.read(f'{folder}data/{key}'), dtype, count)
            return storages[key]

        return TensorUnpickler(io.BytesIO(archive.read(f'{folder}data.pkl')), find).load()


def read_legacy(data):
    """The old layout: three plain values, the object, the keys of its storages, then these, each behind its length."""
    file = io.BytesIO(data)
    if TensorUnpickler(file).load() != LEGACY:
        raise ValueError('no file of torch.save')
    TensorUnpickler(file).load(), TensorUnpickler(file).load()  # version and machine
    start, claims, storages = file.tell(), {}, {}
    TensorUnpickler(file, lambda key, *claim: claims.update({key: claim})).load()
    for key in TensorUnpickler(file).load():
        dtype, count = claims[key]
        if int.from_bytes(file.read(8), 'little') != count:
            raise ValueError('lengths of its tensors that disagree')
        storages[key] = as_storage(file.read(count * dtype.itemsize), dtype, count)
    file.seek(start)
    return TensorUnpickler(file, lambda key, *claim: storages[key]).load()


def as_storage(data, dtype, count):
    """Bytes as a (count) tensor of a dtype."""
    if len(data) != count * dtype.itemsize:
        raise ValueError(f'{count} values of {dtype} in {len(data)} bytes')
    return torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)


class TensorUnpickler(pickle.Unpickler):
    """Reads tensors and plain values; refuses whatever else a pickle names.

    Args:
        find: function (key, dtype, count) that gives the values that a tensor is made of, or None for no tensor.
    """

    def __init__(self, file, find=None):
        check_pickle(file)
        super().__init__(file)
        self.find = find

    def find_class(self, module, name):
        if module == 'torch' and name in DTYPES:
            return DTYPES[name]
        known = {
            'collections.OrderedDict': OrderedDict,
            'torch.Size': tuple,
            'torch._utils._rebuild_tensor_v2': rebuild,
            'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
        }
        if f'{module}.{name}' not in known:
            raise pickle.UnpicklingError(f'it names {module}.{name}')
        return known[f'{module}.{name}']

    def persistent_load(self, pid):
        _, dtype, key, _, count, *_ = pid
        return self.find(key, dtype, count)


def rebuild(storage, offset, size, stride, *_):
    """A tensor as a part of its storage, each value of it once; None of None."""
    if storage is None:
        return None
    if math.prod(size) > len(storage) or min((*size, *stride, 0)) < 0:
        raise ValueError(f'a tensor of {tuple(size)} of {len(storage)} values')
    return storage.as_strided(size, stride, offset)
