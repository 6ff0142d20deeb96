"""Load and benchmark programs: `python -m loadtests.NAME` writes `loadtests/results/NAME.json` and `.png`."""
