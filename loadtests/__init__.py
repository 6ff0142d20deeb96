"""Load and benchmark programs: `python -m loadtests.NAME` prints a table and writes `loadtests/results/NAME.json` and `.png`."""
