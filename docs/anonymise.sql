-- Rules for the included service: docs/backups.md, "A copy for staging".

-- database: api
SELECT keep('alembic_version', 'version_num');
SELECT keep('cache_epochs', 'prefix');
SELECT keep('products', 'name', 'category');

SELECT anonymise('users', 'name', $$ 'user-' || id $$);
-- A well-formed hash without a known password: `user-add --replace` sets one in staging.
SELECT anonymise('users', 'password_hash', $$
  '$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
$$);
SELECT keep('users', 'scopes');

SELECT empty('idempotency_keys');
SELECT empty('sign_in_attempts');
SELECT empty('sign_in_networks');
