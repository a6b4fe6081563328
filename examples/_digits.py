"""Scikit-learn's handwritten digits as class folders of PNG files, for the examples that take a folder of images."""

from pathlib import Path

from kiln.jobs.demo import write_digits


def digits_folder() -> str:
    return str(write_digits(Path("runs/digits-images")))
