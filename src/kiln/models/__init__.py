"""Models: made by name, filled with weights, saved in one file. Import from the modules: this stays without torch."""
