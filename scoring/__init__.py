"""How good a result is: metrics and appearance of a photo, the protocol, baselines, statistics, the report, sheets.

test.py puts them together; train.py validates with the same metrics. A new metric goes into metrics.METRICS, a new
standard protocol into protocol.STANDARDS, a new baseline into baselines.BASELINES. Nothing here knows a network.
"""
