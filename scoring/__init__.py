"""How good a result is: metrics, appearance and faults of a photo, protocols and baselines, the report.

test.py puts them together; train.py validates with the same metrics. A new metric goes into metrics.METRICS and LABELS,
a new baseline into protocol.choose_baselines. Nothing here knows a network.
"""
