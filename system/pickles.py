"""Pickles from strangers, before they are read."""

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
        if opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and value > size:
            raise ValueError(f'a pickle of {size} bytes that remembers {value} values')
        if opcode.name == 'FRAME' and value > size:
            raise ValueError(f'a pickle of {size} bytes with a frame of {value}')
    file.seek(start)
