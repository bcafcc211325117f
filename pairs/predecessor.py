"""The split of hermosayhl/DeepUPE_pytorch out of its options.pkl, without running the code in it."""

import io
import os
import pickle
import re

from pairs.lists import find_pairs
from system.files import raise_all
from system.pickles import check_pickle


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
    """Reads plain values out of a pickle; imports nothing and runs nothing that the pickle names."""

    def find_class(self, module, name):
        return Inert

    def persistent_load(self, pid):
        return Inert


def read_options_pickle(path, dataset_dir):
    """Training and validation pairs of the predecessor's options.pkl, found by file name in the user's dataset_dir.

    The file is a dill pickle that holds code; its lists are read and nothing in it is imported or run.

    Returns:
        (train pairs, valid pairs) of (input path, target path).
    Raises:
        OSError: it cannot be opened. ValueError: not such a pickle, or photos that dataset_dir lacks, named.
    """
    try:
        with open(path, 'rb') as opened:
            file = io.BytesIO(opened.read())
        check_pickle(file)
        content = InertUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f'{path}: not a readable pickle ({type(error).__name__})') from error
    names = ('train_images_list', 'valid_images_list')
    if not isinstance(content, dict) or not all(isinstance(content.get(name), (list, tuple)) for name in names):
        raise ValueError(f'{path}: expected a pickled dict with {" and ".join(names)}')
    at_hand = {os.path.basename(pair[0]): pair for pair in find_pairs(dataset_dir)}
    problems, splits = [], []
    for name in names:
        splits.append([])
        for pair in content[name]:
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
                raise ValueError(f'{path}: expected pairs of paths in {name}')
            photo = re.split(r'[/\\]', pair[0])[-1]  # it may come from Windows
            if photo in at_hand:
                splits[-1].append(at_hand[photo])
            elif name == 'valid_images_list':
                problems.append(f'{photo}: in {name}, not in {dataset_dir}')
    raise_all(problems, path)
    if not splits[1]:
        raise ValueError(f'{path}: valid_images_list is empty')
    return tuple(splits)
