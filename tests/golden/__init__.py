"""What the inventories resolve to, kept in files: a change of the wiring shows as a change of these."""
