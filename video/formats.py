"""Containers and codecs: which are read, what each is written with, and at which quality."""

CONTAINERS = {'.mp4': 'mp4', '.m4v': 'mp4', '.mov': 'mov', '.mkv': 'matroska', '.webm': 'webm', '.avi': 'avi'}

# codec of a file: encoder and its settings. A crf is a constant quality, about as good as what cameras write.
ENCODERS = {
    'h264': ('libx264', {'preset': 'medium', 'crf': '20'}),
    'hevc': ('libx265', {'preset': 'medium', 'crf': '22', 'x265-params': 'log-level=error'}),
    'vp8': ('libvpx', {'deadline': 'good', 'cpu-used': '4', 'crf': '10'}),
    'vp9': ('libvpx-vp9', {'deadline': 'good', 'cpu-used': '4', 'row-mt': '1', 'crf': '28'}),
    'av1': ('libsvtav1', {'preset': '8', 'crf': '28'}),
    'mpeg4': ('mpeg4', {}),
    'mjpeg': ('mjpeg', {}),
    'prores': ('prores_ks', {}),
    'ffv1': ('ffv1', {'level': '3', 'slicecrc': '1'}),
    'huffyuv': ('huffyuv', {}),
    'ffvhuff': ('ffvhuff', {}),
    'utvideo': ('utvideo', {}),
    'rawvideo': ('rawvideo', {}),
}
INSTEAD = {'webm': 'vp9', 'avi': 'mpeg4'}  # what a container gets whose codec has no encoder here; else h264
QUANTISER = {'mpeg4': 2, 'mjpeg': 2}  # constant quality of encoders that have no crf
