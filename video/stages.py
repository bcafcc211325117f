"""Stages of a pipeline, each a generator on a thread of its own, in order and with bounded memory."""

import queue
import threading
from collections import deque

WAIT = 0.1  # seconds between looks at whether the consumer has stopped


def ahead(items, size):
    """Yield the items of an iterable, which runs on a thread up to `size` items ahead.

    What it raises is raised here. Where the consumer stops, by closing this generator or by an exception, the iterable
    is closed and its thread ends before `close` returns.
    """
    ready, stopped = queue.Queue(size), threading.Event()

    def put(kind, value):
        while not stopped.is_set():
            try:
                return ready.put((kind, value), timeout=WAIT)
            except queue.Full:
                continue

    def run():
        try:
            for item in items:
                put('item', item)
                if stopped.is_set():
                    break
        except BaseException as error:  # the consumer's thread raises it
            put('error', error)
        finally:
            if hasattr(items, 'close'):
                items.close()
            put('end', None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == 'error':
                raise value
            if kind == 'end':
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def map_ahead(pool, work, items, count):
    """Yield work(item) of every item in order, with up to `count` of them at work on a pool of threads."""
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
        if hasattr(items, 'close'):
            items.close()
