"""Photo files: read, written, with all that they hold beside their pixels. Knows no network.

Others use picture.py, folder.py and levels.py; codecs.py chooses among jpeg.py, png.py, tiff.py and the other formats'.
These raise ValueError for whatever file they cannot read or write; picture.py puts the file's name in front of it.
"""
