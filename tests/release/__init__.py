"""What proves releases: variants of the service, and the fleet they are deployed to under load."""
