"""Helpers for tests of releases: variants of the service, and a fleet under load."""
