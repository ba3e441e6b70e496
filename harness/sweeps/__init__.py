"""The parts of sweep.py: grids and searches, Ray to run them, statistics, tables, pictures."""
