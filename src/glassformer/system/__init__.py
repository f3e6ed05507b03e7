"""This machine and its files: folders, hardware, atomic writes and locks."""
