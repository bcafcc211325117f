"""Programs for measuring, each run as python -m tools.NAME; nothing else imports them.

benchmark, benchmark_video and compare_systems measure time and memory (by measure.py, of what workloads.py holds),
ablate trains variants, compare_runs draws the curves of training runs.
"""
