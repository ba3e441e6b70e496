"""Everything that a run needs around the algorithm in run.py, which is never imported here."""
