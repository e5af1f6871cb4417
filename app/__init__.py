"""The Fastmetal service: products on Postgres, cached in Redis, served by Gunicorn."""

__version__ = "0.1.0"
