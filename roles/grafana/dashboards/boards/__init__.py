"""One file per dashboard; each names its panels, in rows, as BOARD."""
