"""Programs for measuring: python -m tools.benchmark, tools.ablate, tools.compare_runs."""
