"""Photo files: read, written, with all that they hold beside their pixels. Knows no network.

Others use picture.py; formats.py and nvjpeg.py serve it.
"""
