"""The parts of sweep.py: a grid of runs, Ray to run them, statistics and tables of the results."""
