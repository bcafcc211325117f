"""The machine: files written whole, cores and memory, torchrun's ranks. Knows no photos."""
