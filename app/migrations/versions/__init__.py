"""One file per revision, named NNNN_description.py."""
