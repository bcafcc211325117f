"""Video files: their streams, the colours of their frames, grids smoothed over time. enhance.py is the way in.

All of it needs PyAV (pip install av), so nothing here is imported where no video is met.
"""
