"""Tests of the service (app) and of the repository (repo)."""
