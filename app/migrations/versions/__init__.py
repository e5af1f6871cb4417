"""One file for each revision, named NNNN_what.py."""
