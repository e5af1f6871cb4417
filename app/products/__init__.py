"""Products: the reference domain, from the endpoint to the table."""
