"""One verb each. Here a recipe becomes objects (`assemble.py`), and the objects do the work."""
