"""Pairs of photos to train and test on: where they are, how they are split, how they are augmented."""
