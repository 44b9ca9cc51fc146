"""``python -m zemosaic_phase3`` is the command line."""

from zemosaic_phase3.app.program import run_program

run_program()
