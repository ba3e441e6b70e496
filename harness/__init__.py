"""Everything that a run needs around the algorithm in run.py, which is never imported here."""

from pathlib import Path

PROJECT = Path(__file__).parent.parent  # the folder of run.py; on a cluster's nodes, Ray's copy
