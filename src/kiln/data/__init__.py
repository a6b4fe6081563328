"""Where samples come from: sources, tables, archives, splits and the check of their headers."""
