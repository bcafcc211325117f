"""How good a result is: metrics, appearance and faults of a photo, protocols and baselines, the report.

test.py puts them together; train.py validates with the same metrics. A new metric goes into metrics.METRICS and LABELS,
a new baseline into protocol.choose_baselines. Nothing here knows a network.
"""

import importlib.util
import sys

if importlib.util.find_spec('skimage') is None:
    sys.exit('error: training and scoring need scikit-image and more: pip install -r requirements.txt')
