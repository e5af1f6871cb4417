"""The products domain, the example to copy: endpoints, service, repository, schemas, models."""
