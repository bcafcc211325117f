"""What a training run is and leaves behind: its state, its folder and lock, whether it may go on, curves, checkpoints.

train.py opens a folder and saves a state into it; every script reads checkpoints here. Checkpoints of older versions
must go on loading; their runs are not resumed.
"""
