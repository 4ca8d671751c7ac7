"""Folders of data before any layout is recognised: what lies in them, what their names say, what a user chooses."""
