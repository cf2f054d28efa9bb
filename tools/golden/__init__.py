"""The parts of tools/golden.py, which writes tests/golden."""
